"""The page of `var-export verify`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.bundle.bundle import Bundle
from engines.fidelity.checks import Runs
from engines.judging.figures import AT_LEAST, AT_MOST, PSNR, SHARE, JudgedFigure
from engines.judging.reports import Report
from engines.machine import Machine
from engines.words import counted
from var_export.report.charts import bars, bars_height, curves, drawn, near_the_top
from var_export.report.facts import bundle_facts, environment_facts
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

SIGNS = {AT_MOST: "≤", AT_LEAST: "≥"}


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Everything that the page shows."""

    bundle: Bundle
    golden: Mapping[str, NDArray[Any]]
    against: str
    """What the engine was compared with, in words."""
    report: Report
    runs: Runs
    runtime: Mapping[str, Any]
    machine: Machine
    peak_memory: int
    """Bytes, of the whole check."""
    blamed: Sequence[Blame]
    command: Sequence[str]


def write_verify(file: Path, verified: Verified) -> int:
    """Write the page; its size in bytes. Raises `UsageError` where it cannot be written."""
    report, bundle = verified.report, verified.bundle
    figures = report.figures()
    judged = [figure for figure in figures if figure.judged]
    missed = [figure for figure in judged if not figure.kept]
    return write_page(
        file,
        "verify",
        name=bundle.name,
        precision=report.precision.upper(),
        passed=report.passed,
        verdict=_verdict(report.precision, judged, missed),
        failures=[_sentence(figure) for figure in missed],
        compared=_compared(verified),
        tiles=_tiles(verified),
        showcase=showcase(bundle, verified.golden, verified.runs),
        thresholds=_thresholds(figures),
        blamed=_blamed(verified.blamed),
        charts=_fidelity_charts(verified),
        speed=_speed_chart(verified),
        costs=_costs(verified),
        facts=[bundle_facts(bundle), environment_facts(verified.machine, verified.runtime)],
        command=shlex.join(verified.command),
    )


def _verdict(precision: str, judged: Sequence[JudgedFigure], missed: Sequence[JudgedFigure]) -> str:
    if not missed:
        return (
            f"{'both' if len(judged) == 2 else f'all {len(judged)}'} figures keep the thresholds of {precision.upper()}"
        )
    return f"{len(missed)} of {len(judged)} figures miss the thresholds of {precision.upper()}"


def _sentence(figure: JudgedFigure) -> str:
    must = "at most" if figure.kind.sign == AT_MOST else "at least"
    return f"{figure.what[0].upper()}{figure.what[1:]} is {_value(figure)}, must be {must} {_bound(figure)}"


def _value(figure: JudgedFigure) -> str:
    return {SHARE: percent, PSNR: decibels}.get(figure.kind.measure, number)(figure.value)


def _bound(figure: JudgedFigure) -> str:
    """As it was chosen, without digits that mean nothing."""
    if figure.kind.measure == SHARE:
        return percent_of(figure.bound)
    return f"{figure.bound:g}\N{NO-BREAK SPACE}dB" if figure.kind.measure == PSNR else rounded(figure.bound)


def _thresholds(figures: Sequence[JudgedFigure]) -> Table:
    rows = [
        (
            figure.kind.title,
            _value(figure),
            f"{SIGNS[figure.kind.sign]}\N{NO-BREAK SPACE}{_bound(figure)}" if figure.judged else "not judged",
            figure.margin or NOTHING,
        )
        for figure in figures
    ]
    misses = frozenset(row for row, figure in enumerate(figures) if not figure.kept)
    return Table("Every figure beside its threshold", ("figure", "measured", "must be", "margin"), rows, misses=misses)


def _compared(verified: Verified) -> str:
    images, tokens = verified.golden["tokens"].shape
    return (
        f"{counted(images, 'image')} and {counted(images * tokens, 'token')} by {verified.runtime['provider']}, "
        f"{verified.runtime['form']}, against {verified.against}"
    )


def _tiles(verified: Verified) -> list[Tile]:
    report, runs = verified.report, verified.runs
    notes = {"draws": "with the reference's tokens forced"}
    if report.scales:
        notes = {"kl": "nats, mean over tokens", "top1": "most likely token the same"}
    notes["image_psnr"] = f"SSIM {similarity(report.image_ssim)}"
    tiles = [
        Tile(
            figure.kind.title.removesuffix(", nats").replace(",", ""),
            _value(figure),
            notes[figure.kind.name],
            not figure.kept,
        )
        for figure in report.figures()
        if figure.kind.name in notes
    ]
    return [
        *tiles,
        Tile("Time per image", duration(runs.free.timings.total / report.images), "drawn freely, one at a time"),
    ]


def _blamed(blamed: Sequence[Blame]) -> Table | None:
    if not blamed:
        return None
    rows = [(entry.layers, entry.figure, number(entry.before), number(entry.after)) for entry in blamed]
    return Table("Layers to blame", ("layers", "figure", "is", "would be"), rows, words=2)


def _fidelity_charts(verified: Verified) -> list[Chart]:
    report, config, tokens = verified.report, verified.bundle.config, verified.golden["tokens"]
    sides = [str(side) for side in config.patch_nums]
    slices = [config.scale_slice(scale) for scale in range(config.num_scales)]
    drawn_alike, free = verified.runs.forced.drawn == tokens, verified.runs.free.tokens == tokens
    x = "side of the token map"
    charts = []
    shares = {}
    if report.scales:
        charts.append(_kl_chart(report, sides, x))
        shares["top-1"] = [scale.top1 for scale in report.scales]
    shares["draws alike"] = [float(drawn_alike[:, here].mean()) for here in slices]
    shares["tokens alike, drawn freely"] = [float(free[:, here].mean()) for here in slices]
    lowest = min((value for share in shares.values() for value in share if math.isfinite(value)), default=1.0)
    percents = {label: [100 * value for value in share] for label, share in shares.items()}
    plot = curves(sides, percents, x=x, y="tokens")

    def near(figure: Any, axes: Any) -> None:
        plot(figure, axes)
        near_the_top(axes, 100 * lowest)

    said = "; ".join(
        f"{label}: {percent(min(share))} at the worst scale, {percent(share[-1])} at the last"
        for label, share in shares.items()
    )
    rows = [
        (f"{side}×{side}", f"{here.stop - here.start:,}", *(percent(share[scale]) for share in shares.values()))
        for scale, (side, here) in enumerate(zip(sides, slices, strict=True))
    ]
    table = Table("Agreement per scale", ("scale", "tokens an image", *shares), rows)
    svg = drawn("agreement", f"Agreement with the reference per scale. {said}.", near)
    note = "Freely drawn, one flipped token changes all that follow; that curve is reported, not judged."
    return [*charts, Chart("Tokens that agree", svg, table, note)]


def _kl_chart(report: Report, sides: Sequence[str], x: str) -> Chart:
    limit = next(figure.bound for figure in report.figures() if figure.kind.name == "kl")
    values = [scale.kl for scale in report.scales]
    worst = max(range(len(values)), key=lambda scale: values[scale])
    line = (f"limit of all tokens: {rounded(limit)}", limit)
    shown = [value if value > 0 else float("nan") for value in values]  # a logarithmic scale has no 0
    svg = drawn(
        "kl",
        f"KL divergence per scale, on a logarithmic scale: {number(report.total.kl)} nats over all tokens, the worst "
        f"{number(values[worst])} at {sides[worst]} by {sides[worst]}; the limit of all tokens is {rounded(limit)}.",
        curves(sides, {"KL": shown}, x=x, y="KL in nats", log=True, limit=line),
    )
    rows = [
        (name, number(part.kl), number(part.max_abs), f"{part.cosine:.6f}")
        for name, part in zip(
            [*(f"{side}×{side}" for side in sides), "all"], [*report.scales, report.total], strict=True
        )
    ]
    headers = ("scale", "KL, nats", "largest logit error", "cosine")
    return Chart("KL divergence", svg, Table("Logits per scale", headers, rows, emphasised=len(rows) - 1))


def _speed_chart(verified: Verified) -> Chart:
    images, sides = len(verified.golden["tokens"]), verified.bundle.config.patch_nums
    free, forced = verified.runs.free.timings, verified.runs.forced.timings
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


def _costs(verified: Verified) -> Facts:
    images, runs = len(verified.golden["tokens"]), verified.runs
    free = duration(runs.free.timings.total / images)
    cold = duration((runs.forced.timings.total - runs.forced.timings.outside) / images)
    pairs = [
        ("drawn freely", f"{free} an image, the mean of {images}, one at a time"),
        ("first run", f"{cold} an image in the engines, with forced tokens"),
        ("peak memory", f"{size(verified.peak_memory)} of the whole check"),
        ("bundle", size(verified.bundle.total_bytes)),
    ]
    return Facts("Whole images, memory", pairs)
