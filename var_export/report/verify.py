"""The page of `var-export verify`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.bundle.bundle import Bundle
from engines.fidelity.checks import Runs
from engines.fidelity.reports import FusedReport, Report
from engines.fidelity.thresholds import AT_MOST, Check
from engines.machine import Machine
from engines.words import counted
from var_export.report.charts import Curve, Limit, bars, bars_height, curves, drawn, near_the_top
from var_export.report.facts import bundle_facts, command_line, environment_facts
from var_export.report.page import write_page
from var_export.report.parts import Chart, Facts, Table, Tile
from var_export.report.showcase import showcase
from var_export.report.words import (
    NOTHING,
    decibels,
    duration,
    milliseconds,
    number,
    percent,
    percent_of,
    rounded,
    similarity,
    size,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calib.judge.attribution import Blame

NAMES = {
    "max_logit_error": "Largest logit error",
    "kl": "KL divergence, nats",
    "top1": "Top-1 agreement",
    "draws": "Draws alike",
    "heaviest": "Smoothing's heaviest entries alike",
    "smooth_psnr": "Smoothed image, PSNR",
    "mixing_error": "Smoothing's mixing error",
    "decoder_psnr": "Decoder alone, PSNR",
    "image_psnr": "Image, PSNR",
    "encoder_tokens": "Encoder tokens alike",
    "reconstruction_loss": "Encoder's loss, dB",
}
SHARES = ("top1", "draws", "heaviest", "encoder_tokens")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the page shows."""

    bundle: Bundle
    golden: Mapping[str, NDArray[Any]]
    against: str
    """What the engine was compared with, in words."""
    report: Report | FusedReport
    runs: Runs
    runtime: Mapping[str, Any]
    machine: Machine
    peak_memory: int
    """Bytes, of the whole check."""
    blamed: Sequence[Blame]
    command: Sequence[str]


def write_verify(file: Path, evidence: Evidence) -> int:
    """Write the page; its size in bytes. Raises `UsageError` where it cannot be written."""
    report, bundle = evidence.report, evidence.bundle
    judged = [check for check in report.checks() if _judged(check)]
    missed = [check for check in judged if not check.kept]
    return write_page(
        file,
        "verify",
        name=bundle.name,
        precision=report.precision.upper(),
        passed=report.passed,
        verdict=_verdict(report.precision, judged, missed),
        failures=[_sentence(check) for check in missed],
        compared=_compared(evidence),
        tiles=_tiles(evidence),
        showcase=showcase(bundle, evidence.golden, evidence.runs),
        thresholds=_thresholds(report.checks()),
        blamed=_blamed(evidence.blamed),
        charts=_fidelity_charts(evidence),
        speed=_speed_chart(evidence),
        costs=_costs(evidence),
        facts=[bundle_facts(bundle), environment_facts(evidence.machine, evidence.runtime)],
        command=command_line(evidence.command),
    )


def _judged(check: Check) -> bool:
    """Some precisions have no threshold for some figures."""
    return check.sign == AT_MOST or check.bound > 0


def _verdict(precision: str, judged: Sequence[Check], missed: Sequence[Check]) -> str:
    if not missed:
        return (
            f"{'both' if len(judged) == 2 else f'all {len(judged)}'} figures keep the thresholds of {precision.upper()}"
        )
    return f"{len(missed)} of {len(judged)} figures miss the thresholds of {precision.upper()}"


def _sentence(check: Check) -> str:
    must = "at most" if check.sign == AT_MOST else "at least"
    where = check.what.partition(" (")[2]
    name, _, unit = NAMES[check.figure].partition(", ")
    value = _value(check, check.value) + (f" {unit}" if check.sign == AT_MOST and unit else "")
    subject = f"{unit} of the {name.lower()}" if unit == "PSNR" else name
    return f"{subject[0].upper()}{subject[1:]} is {value}, must be {must} {_bound(check)}" + (
        f" ({where}" if where else ""
    )


def _value(check: Check, value: float) -> str:
    if check.figure in SHARES:
        return percent(value)
    return decibels(value) if check.figure.endswith("psnr") else number(value)


def _bound(check: Check) -> str:
    """As it was chosen, without digits that mean nothing."""
    if check.figure in SHARES:
        return percent_of(check.bound)
    return f"{check.bound:g}\N{NO-BREAK SPACE}dB" if check.figure.endswith("psnr") else rounded(check.bound)


def _margin(check: Check) -> str:
    """How far a figure is from its threshold, in the measure that tells most."""
    room = check.value - check.bound
    if not math.isfinite(room):
        return NOTHING
    if check.figure in SHARES:
        return f"{100 * room:+.2f} points"
    if check.figure.endswith("psnr"):
        return f"{room:+.1f} dB"
    if check.figure == "reconstruction_loss":
        return f"{0 - room:+.2f} dB"
    if check.value <= 0:
        return "exact"
    if check.kept:
        return f"{number(check.bound / check.value, 2)} × smaller"
    return f"{number(check.value / check.bound, 2)} × too large" if check.bound > 0 else "too large"


def _thresholds(checks: Sequence[Check]) -> Table:
    rows = [
        (
            NAMES[check.figure],
            _value(check, check.value),
            f"{'≤' if check.sign == AT_MOST else '≥'}\N{NO-BREAK SPACE}{_bound(check)}"
            if _judged(check)
            else "not judged",
            _margin(check) if _judged(check) else NOTHING,
        )
        for check in checks
    ]
    misses = frozenset(row for row, check in enumerate(checks) if not check.kept)
    return Table("Every figure beside its threshold", ("figure", "measured", "must be", "margin"), rows, misses=misses)


def _compared(evidence: Evidence) -> str:
    images, tokens = evidence.golden["tokens"].shape
    return (
        f"{counted(images, 'image')} and {counted(images * tokens, 'token')} by {evidence.runtime['provider']}, "
        f"{evidence.runtime['form']}, against {evidence.against}"
    )


def _tiles(evidence: Evidence) -> list[Tile]:
    report, images = evidence.report, len(evidence.golden["tokens"])
    missed = {check.figure for check in report.checks() if not check.kept}
    tiles = []
    if isinstance(report, Report):
        tiles = [
            Tile("KL divergence", number(report.total.kl), "nats, mean over tokens", "kl" in missed),
            Tile("Top-1 agreement", percent(report.total.top1), "most likely token the same", "top1" in missed),
        ]
    else:
        tiles = [Tile("Draws alike", percent(report.draws), "with the reference's tokens forced", "draws" in missed)]
    psnr = decibels(report.image_psnr)
    tiles += [
        Tile("Image PSNR", psnr, f"SSIM {similarity(report.image_ssim)}", "image_psnr" in missed),
        Tile("Time per image", duration(evidence.runs.free.timings.total / images), "drawn freely, one at a time"),
    ]
    return tiles


def _blamed(blamed: Sequence[Blame]) -> Table | None:
    if not blamed:
        return None
    rows = [(entry.layers, entry.figure, number(entry.before), number(entry.after)) for entry in blamed]
    return Table("Layers to blame", ("layers", "figure", "is", "would be"), rows, words=2)


def _fidelity_charts(evidence: Evidence) -> list[Chart]:
    report, config, tokens = evidence.report, evidence.bundle.config, evidence.golden["tokens"]
    sides = [str(side) for side in config.patch_nums]
    slices = [config.scale_slice(scale) for scale in range(config.num_scales)]
    drawn_alike, free = evidence.runs.forced.drawn == tokens, evidence.runs.free.tokens == tokens
    draws = [float(drawn_alike[:, here].mean()) for here in slices]
    freely = [float(free[:, here].mean()) for here in slices]
    x = "side of the token map"
    charts = []
    shares = [Curve("draws alike", draws), Curve("tokens alike, drawn freely", freely)]
    if isinstance(report, Report):
        charts.append(_kl_chart(report, sides, x))
        shares.insert(0, Curve("top-1", [scale.top1 for scale in report.scales]))
    lowest = min((value for share in shares for value in share.values if math.isfinite(value)), default=1.0)
    plot = curves(sides, [Curve(share.label, [100 * v for v in share.values]) for share in shares], x=x, y="tokens")

    def near(figure: Any, axes: Any) -> None:
        plot(figure, axes)
        near_the_top(axes, 100 * lowest)

    said = "; ".join(
        f"{share.label}: {percent(min(share.values))} at the worst scale, {percent(share.values[-1])} at the last"
        for share in shares
    )
    rows = [
        (f"{side}×{side}", f"{here.stop - here.start:,}", *(percent(share.values[scale]) for share in shares))
        for scale, (side, here) in enumerate(zip(sides, slices, strict=True))
    ]
    table = Table("Agreement per scale", ("scale", "tokens an image", *(share.label for share in shares)), rows)
    svg = drawn("agreement", f"Agreement with the reference per scale. {said}.", near)
    note = "Freely drawn, one flipped token changes all that follow; that curve is reported, not judged."
    return [*charts, Chart("Tokens that agree", svg, table, note)]


def _kl_chart(report: Report, sides: Sequence[str], x: str) -> Chart:
    limit = next(check.bound for check in report.checks() if check.figure == "kl")
    values = [scale.kl for scale in report.scales]
    worst = max(range(len(values)), key=lambda scale: values[scale])
    line = Limit(f"limit of all tokens: {rounded(limit)}", limit)
    shown = [value if value > 0 else float("nan") for value in values]  # a logarithmic scale has no 0
    svg = drawn(
        "kl",
        f"KL divergence per scale, on a logarithmic scale: {number(report.total.kl)} nats over all tokens, the worst "
        f"{number(values[worst])} at {sides[worst]} by {sides[worst]}; the limit of all tokens is {rounded(limit)}.",
        curves(sides, [Curve("KL", shown)], x=x, y="KL in nats", log=True, limit=line),
    )
    rows = [
        (name, number(part.kl), number(part.max_abs), f"{part.cosine:.6f}")
        for name, part in zip(
            [*(f"{side}×{side}" for side in sides), "all"], [*report.scales, report.total], strict=True
        )
    ]
    headers = ("scale", "KL, nats", "largest logit error", "cosine")
    return Chart("KL divergence", svg, Table("Logits per scale", headers, rows, emphasised=len(rows) - 1))


def _speed_chart(evidence: Evidence) -> Chart:
    images, sides = len(evidence.golden["tokens"]), evidence.bundle.config.patch_nums
    free, forced = evidence.runs.free.timings, evidence.runs.forced.timings
    stepwise = len(free.scales) == len(sides)
    names = ["cond", *(f"{side}×{side}" for side in sides), "decode"] if stepwise else ["fused graph"]
    warm, cold = (
        [each / images for each in ([t.cond, *t.scales, t.decode] if stepwise else t.scales)] for t in (free, forced)
    )
    labels = [milliseconds(seconds) for seconds in warm]
    total = free.total / images
    svg = drawn(
        "latency",
        f"Milliseconds per image of each stage: {', '.join(f'{n} {v}' for n, v in zip(names, labels, strict=True))}; "
        f"{milliseconds(total)} in all.",
        bars(names, [1e3 * seconds for seconds in warm], labels, x="ms per image"),
        height=bars_height(len(names)),
    )
    rows = [(n, a, milliseconds(b)) for n, a, b in zip(names, labels, cold, strict=True)]
    rows += [
        ("outside the engines", milliseconds(free.outside / images), NOTHING),
        ("total", milliseconds(total), NOTHING),
    ]
    headers = ("stage", "drawn freely, ms", "first run, ms")
    table = Table("Latency per image", headers, rows, emphasised=len(rows) - 1)
    note = (
        f"Mean of {counted(images, 'image')} drawn freely, after a first run that warmed the engines up. "
        "A by-product of the check: var-export bench takes more care."
    )
    return Chart("Latency per scale", svg, table, note)


def _costs(evidence: Evidence) -> Facts:
    images, runs = len(evidence.golden["tokens"]), evidence.runs
    free = duration(runs.free.timings.total / images)
    cold = duration((runs.forced.timings.total - runs.forced.timings.outside) / images)
    total = sum(entry.size for entry in evidence.bundle.files.values())
    pairs = [
        ("drawn freely", f"{free} an image, the mean of {images}, one at a time"),
        ("first run", f"{cold} an image in the engines, with forced tokens"),
        ("peak memory", f"{size(evidence.peak_memory)} of the whole check"),
        ("bundle", size(total)),
    ]
    return Facts("Whole images, memory", pairs)
