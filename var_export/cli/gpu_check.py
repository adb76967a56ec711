"""`var-export gpu-check`: everything on a machine with a GPU, and one page about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engines.cli.common import json_out
from engines.errors import CheckFailedError
from engines.spec.choices import FLOAT_PRECISIONS, FORMS
from var_export.cli.common import FOLDER, POSITIVE, json_option, show
from var_export.cli.progress import Progress
from var_export.gpu_check.cases import CHECKED_BACKENDS, MODELS


def _some_of(known: tuple[str, ...]) -> Callable[[click.Context, click.Parameter, str], tuple[str, ...]]:
    """A list with commas, of these."""

    def parse(_: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
        if not set(names) <= set(known):
            raise click.BadParameter(f"{value!r} is no list of some of {','.join(known)}", param=parameter)
        return names

    return parse


def _sizes(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    sizes = tuple(dict.fromkeys(int(part) for part in parts if part.isdecimal()))
    if not all(part.isdecimal() for part in parts) or min(sizes) < 1:
        raise click.BadParameter(f"{value!r} is no list of batch sizes such as 1,8", param=parameter)
    return sizes


def _list_option(name: str, known: tuple[str, ...], help_text: str) -> Callable[[Any], Any]:
    return click.option(
        name, default=",".join(known), show_default=True, metavar="A,B", callback=_some_of(known), help=help_text
    )


@click.command("gpu-check", short_help="On a machine with a GPU: build, check and time everything.")
@_list_option("--model", MODELS, "demo: the embedded one; d16: random weights of the official size.")
@_list_option("--precision", FLOAT_PRECISIONS, "Of the engines.")
@_list_option("--form", FORMS, "Scale by scale, or class to image in one graph.")
@_list_option("--backend", CHECKED_BACKENDS, "onnxruntime: its CUDA provider. What is not here is listed as not run.")
@click.option("--device", type=click.IntRange(min=0), default=0, show_default=True, help="Which GPU.")
@click.option(
    "--batch", default="1,8", show_default=True, metavar="N,M", callback=_sizes, help="Images at once, to time."
)
@click.option("--runs", type=POSITIVE, default=20, show_default=True, help="Timed runs of each case.")
@click.option("--out", type=FOLDER, default="gpu-check", show_default=True, metavar="DIR", help="Where it all goes.")
@click.option("--no-torch", is_flag=True, help="Leave out the comparison with PyTorch on the GPU.")
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Take what earlier runs found and what still holds."
)
@json_option
def gpu_check(
    model: tuple[str, ...],
    precision: tuple[str, ...],
    form: tuple[str, ...],
    backend: tuple[str, ...],
    device: int,
    batch: tuple[int, ...],
    runs: int,
    out: Path,
    no_torch: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """On a machine with a GPU: build, check and time every precision and form, and write one page about it.

    Bundles and plans of the demo model and of d16 with random weights are built, held against the PyTorch reference,
    timed alone and in turns with PyTorch on the GPU. A step that fails is recorded and the others go on. Interrupt
    it at any time: the same command continues.

    The exit code is 1 where a build, a check or a timing failed, 2 where there is no GPU to check.
    """
    from var_export.gpu_check.cases import Settings
    from var_export.gpu_check.steps import PAGE, Check

    settings = Settings(
        models=model,
        precisions=precision,
        forms=form,
        backends=backend,
        device=device,
        batches=batch,
        runs=runs,
        torch=not no_torch,
    )
    with Progress() as progress:
        document = Check(settings, out.absolute(), resume=resume, progress=progress).run()
    verdict, page = document["verdict"], out / PAGE
    if as_json:
        json_out(document)
    else:
        counts = f"{verdict['within_thresholds']} of {verdict['checked']} engines within every threshold"
        show(f"{page}: {counts}, {len(document['not_run'])} not run", to_stdout=True)
    if not verdict["passed"]:
        raise CheckFailedError(f"the GPU check failed, see {page}: {'; '.join(verdict['failures'])}")
