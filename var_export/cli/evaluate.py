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
    needs_packages,
    option_group,
    print_table,
    refuse,
    show,
)
from engines.cli.progress import StageClock
from engines.machine import machine
from engines.words import counted
from var_export.cli.common import FILE, FOLDER, html_option, open_bundle, tell_page

if TYPE_CHECKING:
    from engines.evaluation.between import Between
    from engines.evaluation.samples import Samples
    from engines.evaluation.scores import Activations, Scores

_PATH = NamedPath(path_type=Path)
_TWO = (_PATH, _PATH)
FEW = 50_000
"""Images that a published FID is taken of."""
_BATCH = 16
"""Images that Inception sees at once."""


@click.command()
@click.argument("samples", required=False, type=_PATH)
@click.option("--reference", type=_PATH, metavar="FILE", help="Statistics in ADM's .npz format, or images.")
@click.option("--weights", type=FILE, metavar="FILE", help="Of Inception. [default: torch-fidelity downloads its own]")
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
    samples: Path | None,
    reference: Path | None,
    weights: Path | None,
    between: tuple[Path, Path] | None,
    tokens: tuple[Path, Path] | None,
    bundle: Path | None,
    runtime: Runtime,
    html: Path | None,
    as_json: bool,
) -> None:
    """Tell how good the images SAMPLES are, or how far two sets are apart.

    Sets are what `var-run --npz` or `--save-tokens` wrote, or folders of pictures. SAMPLES get an Inception Score and,
    beside a --reference, FID, sFID, KID, precision and recall; that needs PyTorch and torch-fidelity. --between needs
    neither, nor weights of another model.
    """
    if (samples is None) == (between is None):
        raise click.UsageError("evaluate what? name SAMPLES, or two sets: --between A B")
    if between is not None:
        refuse(context, ("reference", "weights"), "is for SAMPLES: --between needs none")
        _between(context, between, tokens, bundle, runtime, html, as_json)
    else:
        assert samples is not None
        refuse(context, ("tokens", "bundle", *vars(runtime)), "is for --between")
        _inception(context, samples, reference, weights, html, as_json)


def _inception(
    context: click.Context, path: Path, reference: Path | None, weights: Path | None, html: Path | None, as_json: bool
) -> None:
    """FID and its like. Without torch-fidelity it ends before anything is read."""
    from engines.evaluation.reference import ReferenceSet
    from engines.evaluation.samples import Samples
    from engines.evaluation.scores import scores

    own = Samples.find(path)
    known = None if reference is None else ReferenceSet.find(reference)
    here = machine()
    for each in (own, *(() if known is None or known.samples is None else (known.samples,))):
        each.check_images()
    with needs_packages("evaluate", "evaluate", ("torch", "safetensors", "torch_fidelity")):
        from var_export.inception import Inception

        network = Inception(weights)
    with StageClock() as progress:

        def seen(samples: Samples) -> Activations:
            return network.activations(samples.images(_BATCH), samples.count, progress)

        found = scores(
            seen(own),
            pool=None if known is None else known.pool,
            spatial=None if known is None else known.spatial,
            reference=seen(known.samples) if known is not None and known.samples is not None else None,
        )
    rows = named(found)
    if as_json:
        json_out({"samples": str(path), "reference": reference and str(reference), **asdict(found)})
    else:
        print_table([(name, Figure(value, ".4f"), note) for name, value, note in rows], ("figure", "value", ""))
        show(f"\n{path}: {counted(own.count, 'image')}")
    if html is not None:
        from var_export.report.evaluate import write_scores

        size = write_scores(html, own, known, rows, machine=here, command=command_line(context))
        tell_page(html, size)


def named(found: Scores) -> list[tuple[str, float, str]]:
    """Every figure that is known, with its name and what to say beside it."""
    splits = f"deviation {found.inception_score_deviation:.4f} over {counted(found.splits, 'split')} of up to 5,000"
    subsets = None if found.kid_deviation is None else f"deviation {found.kid_deviation:.4f} over random subsets"
    every = [
        ("Inception Score", found.inception_score, splits),
        (
            "FID",
            found.fid,
            "" if found.images >= 10_000 else "of few images: larger than of many, compare like with like",
        ),
        ("sFID", found.sfid, ""),
        ("KID", found.kid, subsets or ""),
        ("precision", found.precision, ""),
        ("recall", found.recall, ""),
    ]
    return [(name, value, note) for name, value, note in every if value is not None]


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
