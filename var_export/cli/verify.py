"""`var-export verify`: a bundle's engines against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import (
    POSITIVE,
    Figure,
    Runtime,
    command_line,
    json_option,
    json_out,
    option_group,
    peak_memory,
    print_table,
    refuse,
    runtime_options,
    show,
    tell,
)
from engines.cli.progress import StageClock
from engines.errors import BackendError, CheckFailedError, UsageError
from engines.machine import machine
from engines.progress import Steps
from engines.spec.choices import INT8, QUANTISED
from var_export.cli.common import (
    CHECKPOINT,
    CheckpointParts,
    bundle_argument,
    html_option,
    needs_export_packages,
    open_bundle,
    tell_page,
    torch_threads,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calib.judge.attribution import Blame
    from engines.bundle.bundle import Bundle
    from engines.fidelity.checks import Runs
    from engines.judging.agreement import Agreement
    from engines.judging.reports import Report
    from engines.progress import Progress
    from var_export.model.reference import Reference

    Golden = Mapping[str, NDArray[Any]]

FRESH_SEED = 1000  # far from the golden run's seeds
_LIVE_ONLY = (*(each.name for each in fields(CheckpointParts)), "images", "seed")


@click.command()
@bundle_argument
@click.option(
    "--checkpoint",
    type=CHECKPOINT,
    metavar="FILE",
    help="Compare with a new run of PyTorch on this checkpoint (`demo`: the embedded one), not with the stored run.",
)
@option_group(
    "parts",
    CheckpointParts,
    vae="The VQ-VAE of --checkpoint, as for build.",
    config="The config.json of --checkpoint, as for build.",
)
@click.option("--images", type=POSITIVE, default=4, help="Images to draw with --checkpoint.")
@click.option("--seed", type=click.IntRange(min=0), default=FRESH_SEED, help="Chooses them, their classes too.")
@runtime_options
@html_option
@json_option
@click.pass_context
def verify(
    context: click.Context,
    /,
    bundle: Path | None,
    checkpoint: str | None,
    parts: CheckpointParts,
    images: int,
    seed: int,
    runtime: Runtime,
    html: Path | None,
    as_json: bool,
) -> None:
    """Check a bundle against the PyTorch reference; exit code 1 where it misses a threshold.

    Of a quantised bundle that does, the layers to blame are sought and listed, which takes minutes for a large one.

    The reference is the run that was stored in the bundle when it was built: no PyTorch is needed. BUNDLE is
    the newest in bundles/ by default, else the embedded demo.
    """
    from engines.draw.pipeline import Pipeline
    from engines.fidelity import checks

    if checkpoint is None:
        refuse(context, _LIVE_ONLY, "needs --checkpoint")
    opened = open_bundle(bundle)
    here, golden, note = machine(), opened.golden, ""
    runs: list[Runs] = []
    with StageClock() as progress:
        if checkpoint is not None:
            reference, note = _reference(opened, checkpoint, parts, progress)
            golden = _live(opened, reference, images, seed, runtime.threads, progress)
        line = f"checking {opened.path}"
        progress(line)
        with Pipeline(opened, runtime.open(opened), max_batch=1) as pipeline:
            report = checks.verify(pipeline, golden, on_runs=runs.append, on_share=partial(progress, line))
            ran_by = pipeline.describe_runtime()
        peak = peak_memory()
        blamed = _blame(opened, golden, report, runtime.threads, progress)
    if as_json:
        json_out(
            {
                "bundle": {"path": str(opened.path), "name": opened.name, "build_key": opened.build_key},
                "reference": checkpoint or "golden run",
                "seed": None if checkpoint is None else seed,
                "runtime": ran_by,
                **report.to_dict(),
                **({} if blamed is None else {"attribution": [asdict(entry) for entry in blamed]}),
            }
        )
    else:
        _print(opened, report, "the run stored in it" if checkpoint is None else f"a new run of {checkpoint}")
        _print_blame(blamed or [])
    if html is not None:
        from var_export.report.verify import Verified, write_verify

        verified = Verified(
            bundle=opened,
            golden=golden,
            against="the run of the PyTorch reference stored in the bundle"
            if checkpoint is None
            else f"a new run of the PyTorch reference on {checkpoint}, seed {seed}",
            report=report,
            runs=runs[0],
            runtime=ran_by,
            machine=here,
            peak_memory=peak,
            blamed=blamed or (),
            command=command_line(context),
        )
        try:
            tell_page(html, write_verify(html, verified))
        except UsageError as error:
            if report.passed:
                raise
            tell(f"note: {error}")  # the check's outcome is what the exit code tells
    if not report.passed:
        raise CheckFailedError(f"{opened.path} misses the reference{note}: {'; '.join(report.failures)}")


def _blame(
    bundle: Bundle, golden: Golden, report: Report, threads: int | None, progress: Progress
) -> list[Blame] | None:
    """Of a failed quantised bundle, the layers to blame; None where there is nothing to tell, or no means to."""
    if bundle.precision not in QUANTISED or not report.failed_parts:
        return None
    try:
        with needs_export_packages("telling which layers are to blame", INT8):
            from calib.judge.attribution import blame
    except BackendError as error:
        tell(f"note: {error}")
        return None
    return blame(bundle, report.failed_parts, golden=golden, threads=threads, progress=progress)


def _reference(bundle: Bundle, checkpoint: str, parts: CheckpointParts, progress: Progress) -> tuple[Reference, str]:
    """The PyTorch reference, and a note where the checkpoint is not the one of the bundle."""
    progress("loading PyTorch")
    with needs_export_packages("--checkpoint"):
        from var_export import live
    progress("reading the checkpoint")
    loaded = live.checkpoint_for(bundle, checkpoint, **vars(parts))
    same = live.same_weights(bundle, loaded)
    return loaded.reference(), "" if same else " (it was built from other weights than this checkpoint)"


def _live(
    bundle: Bundle, reference: Reference, images: int, seed: int, threads: int | None, progress: Progress
) -> Golden:
    """A new run of the reference, to compare with in place of the stored one."""
    from var_export import live

    line = "image {} of {} by the PyTorch reference"
    with torch_threads(threads):
        return live.live_run(
            reference,
            bundle,
            images=images,
            seed=seed,
            report=lambda image: progress(line.format(image + 1, images), Steps(image, images, slow=True)),
        )


def _print(bundle: Bundle, report: Report, against: str) -> None:
    show(f"{bundle.path}: {bundle.name}, {bundle.precision}, against {against}, {report.images} images")
    show()
    if report.scales:
        sides = [f"{side}x{side}" for side in bundle.config.patch_nums]
        rows = [_row(str(s), side, part) for s, (side, part) in enumerate(zip(sides, report.scales, strict=True))]
        headers = ("scale", "side", "tokens", "max abs", "cosine", "KL", "top-1 %", "draws %")
        print_table([*rows, _row("all", "", report.total)], headers)
        show()
    figures = [(figure.kind.title, figure.shown, figure.wanted, figure.margin) for figure in report.figures()]
    print_table(figures, ("figure", "measured", "must be", "margin"))
    free = f"{report.free_tokens:.2%} of the tokens alike, {report.free_identical} of {report.images} images identical"
    first = "" if report.first_difference is None else f", first difference at scale {report.first_difference}"
    decoder = "" if report.decoder_ssim is None else f"decoder alone {report.decoder_ssim:.6f}, "
    show(f"\ndrawn freely: {free}{first}")
    show(f"SSIM: {decoder}image {report.image_ssim:.6f}")
    show(f"\npassed: within every threshold of {report.precision}" if report.passed else "\nFAILED")
    for failure in report.failures:
        show(f"  {failure}")


def _print_blame(blamed: list[Blame]) -> None:
    if blamed:
        show("\nwith the activations of some quantised layers in float:\n")
        rows = [(b.layers, b.figure, Figure(b.before, ".4g"), Figure(b.after, ".4g")) for b in blamed]
        print_table(rows, ("layers", "figure", "is", "would be"))


def _row(scale: str, side: str, part: Agreement) -> tuple[object, ...]:
    return (
        scale,
        side,
        part.tokens,
        Figure(part.max_abs, ".2e"),
        Figure(part.cosine, ".7f"),
        Figure(part.kl, ".2e"),
        Figure(100 * part.top1, ".2f"),
        Figure(100 * part.draws, ".2f"),
    )
