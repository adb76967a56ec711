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

_PYTHON_ONLY = ("max_batch", "queue_size", "queue_timeout", "instances", "cache", "link", "backend", "threads")


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
@click.option(
    "--stock",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    help="Only the fused graph, for this backend of Triton's own, without Python.",
)
@runtime_options
@threads_option
@click.option("--overwrite", is_flag=True, help="Replace models of this command that were edited since.")
@json_option
@click.pass_context
def triton(
    context: click.Context,
    /,
    bundle: Path | None,
    repository: Path,
    link: bool,
    stock: str | None,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Write a model repository that `tritonserver --model-repository DIR` serves.

    Two models: NAME answers with the image, NAME_stream with an image after each scale. They hold the runtime's
    code and the bundle; the server's Python needs numpy and ONNX Runtime (or TensorRT).
    """
    if stock is not None:
        _check_stock(context, stock)
    from engines.triton.writing.pbtxt import Serving
    from engines.triton.writing.repository import plan_python, write
    from engines.triton.writing.stock import plan_stock

    opened = open_bundle(bundle)
    if stock is None:
        models = plan_python(opened, Serving(queue_seconds=values.pop("queue_timeout"), **values), embed=not link)
    else:
        gpu = None if stock == "onnxruntime" and values["provider"] == "cpu" else values["device"]
        models = [plan_stock(opened, stock, name=values["name"], gpu=gpu)]
    folders = write(models, repository, overwrite=overwrite)
    if as_json:
        json_out({"bundle": str(opened.path), "models": [str(folder) for folder in folders]})
        return
    for folder in folders:
        show(str(folder), to_stdout=True)


def _check_stock(context: click.Context, stock: str) -> None:
    """Raises `click.UsageError` on options of the Python models."""
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is not click.core.ParameterSource.DEFAULT
        if given and parameter.name in _PYTHON_ONLY:
            raise click.UsageError(f"{parameter.opts[0]} is for the Python models and cannot be combined with --stock")
    provider = context.params["provider"]
    if provider not in ("cpu", "cuda") or (stock == "tensorrt" and provider != "cpu"):
        raise click.UsageError(f"--provider {provider} cannot be combined with --stock {stock}")
