"""`var-export verify`: a bundle's engines against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from engines.spec.choices import INT8
from var_export.cli.common import (
    CHECKPOINT,
    CheckpointParts,
    bundle_argument,
    checkpoint_options,
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
    from engines.fidelity.reports import Agreement, Report
    from engines.progress import Progress
    from engines.spec.config import ModelConfig

FRESH_SEED = 1000  # far from the golden run's seeds
_LIVE_ONLY = ("vae", "config", "overrides", "images", "seed")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What a bundle is compared with, and by what it runs."""

    checkpoint: str | None
    parts: CheckpointParts
    images: int
    seed: int
    runtime: Runtime


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a check found, and what it was found by."""

    report: Report
    runs: Runs
    runtime: dict[str, Any]


@click.command(short_help="Check a bundle against the PyTorch reference.")
@bundle_argument
@click.option(
    "--checkpoint",
    type=CHECKPOINT,
    metavar="FILE",
    help="Compare with a new run of PyTorch on this checkpoint (`demo`: the embedded one), not with the stored run.",
)
@checkpoint_options("The VQ-VAE of --checkpoint, as for build.", "The config.json of --checkpoint, as for build.")
@click.option("--images", type=POSITIVE, default=4, show_default=True, help="Images to draw with --checkpoint.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=FRESH_SEED, show_default=True, help="Chooses them, their classes too."
)
@runtime_options
@html_option
@json_option
@click.pass_context
def verify(context: click.Context, /, bundle: Path | None, html: Path | None, as_json: bool, **values: Any) -> None:
    """Check a bundle against the PyTorch reference; exit code 1 where it misses a threshold.

    Of an INT8 bundle that does, the layers to blame are sought and listed, which takes some minutes for a large one.

    The reference is the run that was stored in the bundle when it was built: no PyTorch is needed. BUNDLE is
    the newest in bundles/ by default, else the embedded demo.
    """
    options = VerifyOptions(**values)
    if options.checkpoint is None:
        refuse(context, _LIVE_ONLY, "needs --checkpoint")
    opened = open_bundle(bundle)
    here = machine()
    with StageClock() as progress:
        golden, note = (opened.golden, None) if options.checkpoint is None else _live(options, opened, progress)
        progress(f"checking {opened.path}")
        checked = _check(options, opened, golden)
        report, peak = checked.report, peak_memory()
        blamed = _blame(options, opened, golden, report, progress)
    if as_json:
        json_out(_document(options, opened, report, checked.runtime, blamed))
    else:
        _print(options, opened, report, blamed)
    if html is not None:
        from var_export.report.verify import Verified, write_verify

        verified = Verified(
            bundle=opened,
            golden=golden,
            against="the run of the PyTorch reference stored in the bundle"
            if options.checkpoint is None
            else f"a new run of the PyTorch reference on {options.checkpoint}, seed {options.seed}",
            report=report,
            runs=checked.runs,
            runtime=checked.runtime,
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
        because = f" ({note})" if note else ""
        raise CheckFailedError(f"{opened.path} misses the reference{because}: {'; '.join(report.failures)}")


def _blame(
    options: VerifyOptions,
    bundle: Bundle,
    golden: Mapping[str, NDArray[Any]],
    report: Report,
    progress: Progress,
) -> list[Blame] | None:
    """Of a failed INT8 bundle, the layers to blame; None where there is nothing to tell, or no means to."""
    if bundle.precision != INT8 or not report.failed_parts:
        return None
    try:
        with needs_export_packages("telling which layers are to blame", INT8):
            from calib.judge.attribution import blame
    except BackendError as error:
        tell(f"note: {error}")
        return None
    return blame(bundle, report.failed_parts, golden=golden, threads=options.runtime.threads, progress=progress)


def _live(options: VerifyOptions, bundle: Bundle, progress: Progress) -> tuple[Mapping[str, NDArray[Any]], str | None]:
    """A new reference run, and a note where the checkpoint is not the one of the bundle."""
    progress("loading PyTorch")
    with needs_export_packages("--checkpoint"):
        from var_export import live
    progress("reading the checkpoint")
    assert options.checkpoint is not None
    checkpoint = live.checkpoint_for(bundle, options.checkpoint, **vars(options.parts))
    note = None if live.same_weights(bundle, checkpoint) else "it was built from other weights than this checkpoint"
    reference = checkpoint.reference()
    del checkpoint
    with torch_threads(options.runtime.threads):
        golden = live.live_run(
            reference,
            bundle,
            images=options.images,
            seed=options.seed,
            report=lambda image: progress(f"image {image + 1} of {options.images} by the PyTorch reference"),
        )
    return golden, note


def _check(options: VerifyOptions, bundle: Bundle, golden: Mapping[str, NDArray[Any]]) -> Checked:
    from engines.draw.pipeline import Pipeline
    from engines.fidelity import checks

    with Pipeline(bundle, options.runtime.open(bundle), max_batch=1) as pipeline:
        runs: list[Runs] = []
        report = checks.verify(pipeline, golden, on_runs=runs.append)
        return Checked(report=report, runs=runs[0], runtime=pipeline.describe_runtime())


def _print(options: VerifyOptions, bundle: Bundle, report: Report, blamed: list[Blame] | None) -> None:
    show(f"{bundle.path}: {bundle.name}, {bundle.precision}, against {_against(options)}, {report.images} images")
    show()
    if report.scales:
        rows = [_row(str(s), _side(bundle.config, s), part) for s, part in enumerate(report.scales)]
        print_table([*rows, _row("all", "", report.total)], _HEADERS)
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
    if blamed:
        show("\nwith the activations of some INT8 layers in float:\n")
        rows = [(b.layers, b.figure, Figure(b.before, ".4g"), Figure(b.after, ".4g")) for b in blamed]
        print_table(rows, ("layers", "figure", "is", "would be"))


def _against(options: VerifyOptions) -> str:
    return "the run stored in it" if options.checkpoint is None else f"a new run of {options.checkpoint}"


_HEADERS = ("scale", "side", "tokens", "max abs", "cosine", "KL", "top-1 %", "draws %")


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


def _side(config: ModelConfig, scale: int) -> str:
    return f"{config.patch_nums[scale]}x{config.patch_nums[scale]}"


def _document(
    options: VerifyOptions,
    bundle: Bundle,
    report: Report,
    runtime: dict[str, Any],
    blamed: list[Blame] | None,
) -> dict[str, Any]:
    return {
        "bundle": {"path": str(bundle.path), "name": bundle.name, "build_key": bundle.build_key},
        "reference": "golden run" if options.checkpoint is None else options.checkpoint,
        "seed": None if options.checkpoint is None else options.seed,
        "runtime": runtime,
        **report.to_dict(),
        **({} if blamed is None else {"attribution": [asdict(entry) for entry in blamed]}),
    }
