"""`var-export triton`: a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.cli.common import json_out
from var_export.cli.common import (
    FOLDER,
    POSITIVE,
    bundle_argument,
    json_option,
    open_bundle,
    runtime_options,
    show,
    threads_option,
)


@click.command("triton", short_help="Write a model repository for Triton.")
@bundle_argument
@click.option(
    "--repository", type=FOLDER, required=True, metavar="DIR", help="Model repository; other models in it stay."
)
@click.option("--name", default="var", show_default=True, help="Of the unary model; the streaming one is NAME_stream.")
@click.option("--max-batch", type=POSITIVE, default=8, show_default=True, help="Images at once, at most.")
@click.option("--queue-size", type=POSITIVE, default=64, show_default=True, help="Requests that wait, at most.")
@click.option(
    "--queue-timeout",
    type=click.FloatRange(min=0.001),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="A request that waited so long is refused.",
)
@click.option("--instances", type=POSITIVE, default=1, show_default=True, help="Processes with engines of their own.")
@click.option("--cache", is_flag=True, help="Let Triton answer repeated requests from its response cache.")
@click.option("--link", is_flag=True, help="Refer to the bundle where it lies, instead of holding its files.")
@runtime_options
@threads_option
@click.option("--overwrite", is_flag=True, help="Replace models of this command that were edited since.")
@json_option
def triton(bundle: Path | None, repository: Path, link: bool, overwrite: bool, as_json: bool, **values: Any) -> None:
    """Write a model repository that `tritonserver --model-repository DIR` serves.

    Two models: NAME answers with the image, NAME_stream with an image after each scale. They hold the runtime's
    code and the bundle; the server's Python needs numpy and ONNX Runtime (or TensorRT).
    """
    from engines.triton.config import Serving
    from engines.triton.repository import plan_python, write

    opened = open_bundle(bundle)
    serving = Serving(queue_seconds=values.pop("queue_timeout"), **values)
    folders = write(plan_python(opened, serving, embed=not link), repository, overwrite=overwrite)
    if as_json:
        json_out({"bundle": str(opened.path), "models": [str(folder) for folder in folders]})
        return
    for folder in folders:
        show(str(folder), to_stdout=True)
