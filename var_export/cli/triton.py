"""`var-export triton`: a model repository for NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.cli.common import POSITIVE, Runtime, check_option, json_option, json_out, refuse, runtime_options, show
from engines.spec.choices import GRAPH_TARGETS, ONNXRUNTIME, TENSORRT
from var_export.cli.common import FOLDER, bundle_argument, open_bundle

_PYTHON_ONLY = (
    "max_batch",
    "queue_size",
    "queue_seconds",
    "instances",
    "cache",
    "link",
    "backend",
    "threads",
    "precision_hint",
    "check",
)


@click.command("triton")
@bundle_argument
@click.option(
    "--repository", type=FOLDER, required=True, metavar="DIR", help="Model repository; other models in it stay."
)
@click.option("--name", default="var", help="Of the unary model; the streaming one is NAME_stream.")
@click.option("--max-batch", type=POSITIVE, default=8, help="Images at once, at most.")
@click.option("--queue-size", type=POSITIVE, default=64, help="Requests that wait, at most.")
@click.option(
    "--queue-timeout",
    "queue_seconds",
    type=click.FloatRange(min=0.001),
    default=60,
    metavar="SECONDS",
    help="A request that waited so long is refused.",
)
@click.option("--instances", type=POSITIVE, default=1, help="Processes with engines of their own.")
@click.option("--cache", is_flag=True, help="Let Triton answer repeated requests from its response cache.")
@click.option("--link", is_flag=True, help="Refer to the bundle where it lies, instead of holding its files.")
@click.option(
    "--stock",
    type=click.Choice(GRAPH_TARGETS),
    help="Only the fused graph, for this backend of Triton's own, without Python.",
)
@runtime_options
@check_option
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
    runtime: Runtime,
    overwrite: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Write a model repository that `tritonserver --model-repository DIR` serves.

    Two models: NAME answers with the image, NAME_stream with an image after each scale. They hold the runtime's
    code and the bundle; the server's Python needs numpy and ONNX Runtime (or TensorRT).
    """
    if stock is not None:
        refuse(context, _PYTHON_ONLY, "is for the Python models and cannot be combined with --stock")
        if runtime.provider not in ("cpu", "cuda") or (stock == TENSORRT and runtime.provider != "cpu"):
            raise click.UsageError(f"--provider {runtime.provider} cannot be combined with --stock {stock}")
    from engines.triton.writing.pbtxt import Serving
    from engines.triton.writing.repository import plan_python, write
    from engines.triton.writing.stock import plan_stock

    opened = open_bundle(bundle)
    if stock is None:
        models = plan_python(opened, Serving(**values, **vars(runtime)), embed=not link)
    else:
        gpu = None if stock == ONNXRUNTIME and runtime.provider == "cpu" else runtime.device or 0
        if isinstance(gpu, str):
            raise click.UsageError(f"--device {gpu} cannot be combined with --stock {stock}, which counts GPUs from 0")
        models = [plan_stock(opened, stock, name=values["name"], gpu=gpu)]
    folders = write(models, repository, overwrite=overwrite)
    if as_json:
        json_out({"bundle": str(opened.path), "models": [str(folder) for folder in folders]})
        return
    for folder in folders:
        show(str(folder))
