"""`var-export evaluate`: how good a set of images is, and how far two sets are apart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import (
    Figure,
    NamedPath,
    Runtime,
    command_line,
    json_option,
    json_out,
    option_group,
    print_table,
    show,
)
from engines.cli.progress import StageClock
from engines.machine import machine
from engines.words import counted
from var_export.cli.common import FOLDER, html_option, open_bundle, tell_page

if TYPE_CHECKING:
    from engines.evaluation.between import Between
    from engines.evaluation.samples import Samples

_PATH = NamedPath(path_type=Path)
_TWO = (_PATH, _PATH)


@click.command()
@click.option("--between", type=_TWO, metavar="A B", help="Two sets: how far apart they are by the model's VQ-VAE.")
@click.option("--tokens", type=_TWO, metavar="A B", help="The tokens of both, as var-run --save-tokens wrote them.")
@click.option("--bundle", type=FOLDER, help="Whose VQ-VAE looks at both. [default: as in var-run]")
@option_group("runtime", Runtime)
@html_option
@json_option
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    between: tuple[Path, Path] | None,
    tokens: tuple[Path, Path] | None,
    bundle: Path | None,
    runtime: Runtime,
    html: Path | None,
    as_json: bool,
) -> None:
    """Tell how far two sets of images are apart: FP32 and INT8, two devices, two samplers.

    Sets are what `var-run --npz` or `--save-tokens` wrote, or folders of pictures.
    """
    if between is None:
        raise click.UsageError("evaluate what? name two sets: --between A B")
    _between(context, between, tokens, bundle, runtime, html, as_json)


def _between(
    context: click.Context,
    paths: tuple[Path, Path],
    tokens: tuple[Path, Path] | None,
    bundle: Path | None,
    runtime: Runtime,
    html: Path | None,
    as_json: bool,
) -> None:
    from engines.draw.pipeline import Pipeline
    from engines.evaluation import between as held
    from engines.evaluation.samples import Samples

    sets = (Samples.find(paths[0]), Samples.find(paths[1]))
    held.check_kinds(*sets)
    here, opened = machine(), open_bundle(bundle)
    with StageClock() as progress:
        with Pipeline(opened, runtime.open(opened)) as pipeline:
            described = [
                held.describe(samples, pipeline, drawn, progress=progress)
                for samples, drawn in zip(sets, tokens or (None, None), strict=True)
            ]
            ran = pipeline.describe_runtime()
        found = held.between(described[0], described[1], opened.config, progress=progress)
    if as_json:
        json_out(_document(sets, opened.path.name, found))
    else:
        _print(sets, found)
    if html is not None:
        from var_export.report.evaluate import write_between

        command = command_line(context)
        tell_page(html, write_between(html, sets, found, bundle=opened, machine=here, runtime=ran, command=command))


def _document(sets: tuple[Samples, Samples], bundle: str, found: Between) -> dict[str, Any]:
    return {
        "sets": [{"path": str(each.path), "images": each.count, "kind": each.kind} for each in sets],
        "bundle": bundle,
        "figures": [
            {"name": name, **asdict(each), "excess": each.excess, "beyond_noise": each.beyond_noise}
            for name, each in found.rows()
        ],
    }


def _print(sets: tuple[Samples, Samples], found: Between) -> None:
    rows = [
        (
            name,
            *(Figure(value, ".4f") for value in (each.distance, each.noise, each.excess, each.low, each.high)),
            "apart" if each.beyond_noise else "within noise",
        )
        for name, each in found.rows()
    ]
    print_table(rows, ("between", "distance", "noise", "excess", "95% from", "to", ""))
    apart = [name for name, each in found.rows()[:2] if each.beyond_noise]
    said = f"they differ in {' and '.join(apart)}" if apart else "they differ by no more than chance"
    show(f"\n{sets[0].path} ({counted(sets[0].count, 'image')}), {sets[1].path} ({sets[1].count:,}): {said}")
