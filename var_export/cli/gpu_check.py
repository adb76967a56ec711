"""`var-export gpu-check`: everything on a machine with a GPU, and one page about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engines.cli.common import POSITIVE, json_option, json_out, show
from engines.cli.progress import StageClock
from engines.errors import CheckFailedError
from engines.spec.choices import FLOAT_PRECISIONS, FORMS
from var_export.cli.common import FOLDER, sizes_option
from var_export.gpu_check.cases import CHECKED_BACKENDS, MODELS


def _list_option(flag: str, name: str, known: tuple[str, ...], help_text: str) -> Callable[[Any], Any]:
    """An option that takes some of `known`, with commas; all of them by default."""

    def parse(_: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
        if not set(names) <= set(known):
            raise click.BadParameter(f"{value!r} is no list of some of {','.join(known)}", param=parameter)
        return names

    return click.option(flag, name, default=",".join(known), metavar="A,B", callback=parse, help=help_text)


@click.command("gpu-check")
@_list_option("--model", "models", MODELS, "demo: the embedded one; d16: random weights of the official size.")
@_list_option("--precision", "precisions", FLOAT_PRECISIONS, "Of the engines.")
@_list_option("--form", "forms", FORMS, "Scale by scale, or class to image in one graph.")
@_list_option(
    "--backend",
    "backends",
    CHECKED_BACKENDS,
    "onnxruntime: its CUDA provider. What is not here is listed as not run.",
)
@click.option("--device", type=click.IntRange(min=0), default=0, help="Which GPU.")
@sizes_option("1,8", "Images at once, to time.")
@click.option("--runs", type=POSITIVE, default=20, help="Timed runs of each case.")
@click.option("--out", type=FOLDER, default="gpu-check", metavar="DIR", help="Where it all goes.")
@click.option("--no-torch", is_flag=True, help="Leave out the comparison with PyTorch on the GPU.")
@click.option("--resume/--no-resume", default=True, help="Take what earlier runs found and what still holds.")
@json_option
def gpu_check(out: Path, resume: bool, as_json: bool, batch: tuple[int, ...], no_torch: bool, **values: Any) -> None:
    """On a machine with a GPU: build, check and time every precision and form, and write one page about it.

    Bundles and plans of the demo model and of d16 with random weights are built, held against the PyTorch reference,
    timed alone and in turns with PyTorch on the GPU. A step that fails is recorded and the others go on. Interrupt
    it at any time: the same command continues.

    The exit code is 1 where a build, a check or a timing failed, 2 where there is no GPU to check.
    """
    from var_export.gpu_check.cases import Settings
    from var_export.gpu_check.steps import PAGE, GpuCheck

    settings = Settings(batches=batch, torch=not no_torch, **values)
    with StageClock() as progress:
        document = GpuCheck(settings, out.absolute(), resume=resume, progress=progress).run()
    verdict, page = document["verdict"], out / PAGE
    if as_json:
        json_out(document)
    else:
        counts = f"{verdict['within_thresholds']} of {verdict['checked']} engines within every threshold"
        show(f"{page}: {counts}, {len(document['not_run'])} not run")
    if not verdict["passed"]:
        raise CheckFailedError(f"the GPU check failed, see {page}: {'; '.join(verdict['failures'])}")
