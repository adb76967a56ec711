"""`var-export compare`: the same requests in two bundles, two backends, or on two machines."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import (
    Figure,
    Runtime,
    command_line,
    json_option,
    json_out,
    option_group,
    print_table,
    show,
    tell,
)
from engines.cli.options import Chosen, sampling_options
from engines.cli.progress import StageClock
from engines.errors import UsageError
from engines.machine import machine
from engines.spec.choices import BACKENDS, OPENVINO
from var_export.cli.common import CHECKPOINT, FILE, choices_option, html_option, tell_page

if TYPE_CHECKING:
    from engines.evaluation.halves import Apart
    from engines.fidelity.side_by_side import Drawing, Pair

SAVED = ".npz"
_IMAGES = 8


@click.command()
@click.argument("one", type=CHECKPOINT)
@click.argument("other", type=CHECKPOINT, required=False)
@click.option("--class", "classes", multiple=True, metavar="CLASS", help="As in var-run. [default: 8, spread over all]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the first image; image k has SEED + k.")
@sampling_options
@choices_option(
    "--backend", "backends", BACKENDS, "What computes; of two, the second is for OTHER. [default: as in var-run]"
)
@option_group("runtime", Runtime, without=("backend",))
@click.option("--out", type=FILE, metavar="FILE", help="A sheet too: a row of images for each side, and what differs.")
@click.option("--save", type=FILE, metavar="FILE", help="What ONE drew, as an .npz file to compare with elsewhere.")
@html_option
@json_option
@click.pass_context
def compare(
    context: click.Context,
    /,
    one: str,
    other: str | None,
    classes: tuple[str, ...],
    seed: int,
    sampling: Chosen,
    backends: tuple[str, ...],
    runtime: Runtime,
    out: Path | None,
    save: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Draw the same classes and seeds with bundle ONE and bundle OTHER, and tell how far apart they are.

    Either may be an .npz file that --save wrote, on this machine or another. --backend takes one backend for each, with
    a comma: `compare BUNDLE BUNDLE --backend onnxruntime,openvino`. With --save, OTHER may be left out.
    """
    from engines.fidelity.side_by_side import compare as compared

    if other is None and save is None:
        raise click.UsageError("compare it with what? name another bundle, or --save what this one draws")
    if sampling.sweep:
        raise click.UsageError(f"{min(sampling.sweep)} takes one value here")
    if len(backends) > 2:
        raise click.UsageError("--backend takes one backend, or one for each side")
    names: tuple[str | None, ...] = backends or (None,)
    asked = [_with(runtime, name) for name in (names[0], names[-1])]
    here = machine()
    with StageClock() as progress:
        how: dict[str, Any] = {"classes": classes, "seed": seed, "sampling": sampling.one, "progress": progress}
        first = _side(one, asked[0], **how)
        if save is not None:
            first.save(save)
        second = None if other is None else _side(other, asked[1], like=first, **how)
    if save is not None:
        tell(f"saved: {save}")
    if second is None:
        return
    pairs, tokens = compared(first, second), _tokens(first, second)
    if as_json:
        # What is equal has no PSNR, as JSON has no infinity.
        images = [asdict(pair) | {"psnr": pair.psnr if math.isfinite(pair.psnr) else None} for pair in pairs]
        sides = [dict(side.facts) for side in (first, second)]
        json_out({"sides": sides, "images": images, "tokens": [*map(asdict, tokens)]})
    else:
        _print(first, second, pairs)
        if tokens:
            verdict = "beyond" if tokens[0].beyond_noise else "within"
            show(f"histograms of tokens: {tokens[0].distance:.4f} apart, {verdict} the noise of {tokens[0].noise:.4f}")
    if out is not None:
        _sheet(out, first, second, pairs)
        tell(f"sheet: {out}")
    if html is not None:
        from var_export.report.compare import write_compare

        command = command_line(context)
        size = write_compare(html, (first, second), pairs, tokens=tokens, machine=here, command=command)
        tell_page(html, size)


def _tokens(first: Drawing, second: Drawing) -> list[Apart]:
    """How far the tokens' histograms are apart, over all scales and at each; none where there are too few images."""
    from engines.evaluation.between import tokens_apart
    from engines.evaluation.halves import LEAST

    if len(first.tokens) < LEAST:
        return []
    return tokens_apart(first.tokens, second.tokens, [side * side for side in first.facts["scales"]])


def _with(runtime: Runtime, backend: str | None) -> Runtime:
    """What runs one side: a hint is OpenVINO's alone."""
    hint = runtime.precision_hint if backend in (None, OPENVINO) else None
    return replace(runtime, backend=backend, precision_hint=hint)


def _side(
    name: str, runtime: Runtime, *, classes: tuple[str, ...], seed: int, sampling: Any, progress: Any,
    like: Drawing | None = None,
) -> Drawing:  # fmt: skip
    """What a file holds, or a bundle draws: the classes and seeds of `like`, or those that were asked for."""
    from engines.bundle.bundle import Bundle
    from engines.bundle.labels import ClassNames
    from engines.draw.pipeline import Pipeline
    from engines.fidelity.side_by_side import Drawing, draw

    if name.lower().endswith(SAVED):
        return Drawing.load(Path(name))
    bundle = Bundle.open(name)
    known = bundle.config.transformer.num_classes
    if like is not None:
        indices, seeds = like.classes.tolist(), like.seeds.tolist()
        sampling = dict(like.facts["sampling"])
        if max(indices) > known:
            raise UsageError(f"{name} has {known} classes, and {like.title} drew others: compare models of one kind")
    else:
        every = range(0, known, max(1, known // _IMAGES))
        indices = list(ClassNames(known, bundle.labels).parse(classes) if classes else every[:_IMAGES])
        seeds = [seed + k for k in range(len(indices))]
        recommended = {n: value for n, value in bundle.sampling.to_dict().items() if value is not False}
        sampling = {**recommended, **sampling}
    with Pipeline(bundle, runtime.open(bundle), max_batch=1) as pipeline:
        return draw(pipeline, bundle.path.name, indices, seeds, progress=progress, **sampling)


def _print(first: Drawing, second: Drawing, pairs: list[Pair]) -> None:
    from engines.judging.similarity import psnr
    from engines.sizing.devices import MIB

    rows = [
        (
            side.title,
            side.facts["precision"],
            Figure(side.facts["bytes"] / MIB, ".1f"),
            Figure(side.seconds * 1e3, ".1f"),
        )
        for side in (first, second)
    ]
    print_table(rows, ("side", "precision", "MiB", "ms an image"))
    show()
    headers = ("class", "label", "seed", "tokens alike %", "first other scale", "PSNR dB")
    print_table(
        [
            (
                *(pair.index, pair.label, pair.seed),
                Figure(100 * pair.alike, ".1f"),
                "" if pair.first is None else pair.first,
                Figure(pair.psnr, ".1f"),
            )
            for pair in pairs
        ],
        headers,
    )
    alike = sum(pair.alike for pair in pairs) / len(pairs)
    same, apart = sum(pair.first is None for pair in pairs), psnr(first.images, second.images)
    pixels = "every pixel the same" if math.isinf(apart) else f"PSNR over all images {apart:.1f} dB"
    show(
        f"\n{100 * alike:.2f}% of the tokens alike, {same} of {len(pairs)} images with all; {pixels}; "
        f"the second takes {second.seconds / first.seconds:.2f} of the time"
    )


def _sheet(file: Path, first: Drawing, second: Drawing, pairs: list[Pair]) -> None:
    """A row for each side and one for what differs. Raises `UsageError` where it cannot be written."""
    import numpy as np

    from engines.pictures.grids import Layout, grid
    from engines.pictures.images import save_picture

    apart = np.abs(first.images.astype(np.int16) - second.images).astype(np.uint8)
    layout = Layout(
        columns=len(pairs),
        above=tuple(pair.label.replace("-", " ").replace("_", " ") for pair in pairs),
        beside=(first.title, second.title, "difference"),
    )
    layout.check(3 * len(pairs), first.images.shape[1])
    images = [*first.images, *second.images, *apart]
    save_picture(file, grid(images, len(images), layout), {})
