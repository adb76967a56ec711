"""The page of `var-export bench`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from engines.bundle.bundle import Bundle
from engines.fidelity.speed import Case, Comparison, Measured
from engines.words import counted, guidance
from var_export.report.charts import bars, bars_height, curves, drawn
from var_export.report.facts import bundle_facts, environment_facts
from var_export.report.page import write_page
from var_export.report.parts import Chart, Facts, Table, Tile
from var_export.report.words import duration, milliseconds, number, size


def write_bench(file: Path, bundle: Bundle, measured: Measured, command: Sequence[str]) -> int:
    """Write the page; its size in bytes. Raises `UsageError` where it cannot be written."""
    first = measured.cases[0]
    charts = [
        _latency(bundle, first),
        _throughput(measured.cases),
        *(_race(*pair) for pair in enumerate(measured.comparisons)),
    ]
    strengths = dict.fromkeys(f"{case.cfg:g}" if case.cfg else "none" for case in measured.cases)
    sampling = bundle.sampling.fitted(bundle.max_top_k).describe()
    settings = [("sampling", sampling), ("guidance", " and ".join(strengths))]
    return write_page(
        file,
        "bench",
        name=bundle.name,
        precision=bundle.precision.upper(),
        lead=duration(first.total.p50),
        lead_note=f"for {counted(first.batch, 'image')} with {guidance(first.cfg)}, the median of "
        f"{counted(first.runs, 'run')}",
        place=f"{measured.machine}; load {measured.machine.load:.1f} before",
        tiles=_tiles(measured),
        charts=charts,
        facts=[
            Facts("Settings", settings),
            bundle_facts(bundle),
            environment_facts(measured.machine, measured.runtime),
        ],
        command=shlex.join(command),
    )


def _tiles(measured: Measured) -> list[Tile]:
    best = max(measured.cases, key=lambda case: case.images_per_second)
    doubts = "".join(f"; {doubt}" for doubt in measured.doubts())
    alone = "" if measured.comparisons else doubts
    how = f"batch {best.batch}, {guidance(best.cfg)}{alone}"
    tiles = [
        Tile("Throughput", f"{number(best.images_per_second)} images/s", how),
        Tile("Peak memory", size(measured.peak_memory), "of the process, engines alone"),
        Tile("Loading", duration(measured.load_seconds), "bundle and engines"),
    ]
    races = []
    for comparison in measured.comparisons:
        ratio = comparison.race.ratio
        note = f"pair by pair {ratio.min:.2f} to {ratio.max:.2f}{doubts}"
        races.append(Tile(f"Time against {comparison.name}", f"{ratio.p50:.2f} ×", note))
    return races + tiles


def _latency(bundle: Bundle, case: Case) -> Chart:
    stages = case.stages(bundle.config.patch_nums, "{1}×{2}")
    names = [name.removesuffix(" the engines") for name, _ in stages[:-1]]  # short, beside the bars
    spreads = [spread for _, spread in stages[:-1]]
    labels = [milliseconds(spread.p50) for spread in spreads]
    ends = [0.0] * len(spreads), [1e3 * (spread.p90 - spread.p50) for spread in spreads]
    svg = drawn(
        "latency",
        f"Median milliseconds of each stage at batch {case.batch}: "
        f"{', '.join(f'{name} {label}' for name, label in zip(names, labels, strict=True))}; "
        f"{milliseconds(case.total.p50)} in all.",
        bars(names, [1e3 * spread.p50 for spread in spreads], labels, x="ms", ends=ends),
        height=bars_height(len(names)),
    )
    rows = [(name, *map(milliseconds, each.columns().values())) for name, each in stages]
    table = Table("Latency in ms", ("stage", *case.total.columns()), rows, emphasised=len(stages) - 1)
    note = f"Batch {case.batch}, {guidance(case.cfg)}, median of {counted(case.runs, 'run')}; the whisker ends at p90."
    return Chart("Latency per scale", svg, table, note)


def _throughput(cases: Sequence[Case]) -> Chart:
    batches = list(dict.fromkeys(case.batch for case in cases))
    cfgs = list(dict.fromkeys(case.cfg for case in cases))
    found = {(case.batch, case.cfg): case.images_per_second for case in cases}
    lines = {guidance(cfg): [found[batch, cfg] for batch in batches] for cfg in cfgs}
    plot = curves([str(batch) for batch in batches], lines, x="images at once", y="images per second", from_zero=True)
    said = "; ".join(
        f"{label}: {', '.join(f'{number(v)} at batch {b}' for b, v in zip(batches, values, strict=True))}"
        for label, values in lines.items()
    )
    rows = [
        (str(c.batch), guidance(c.cfg), str(c.runs), milliseconds(c.total.p50), number(c.images_per_second))
        for c in cases
    ]
    table = Table("Throughput", ("batch", "guidance", "runs", "p50, ms", "images/s"), rows, words=2)
    return Chart("Throughput", drawn("throughput", f"Images per second. {said}.", plot), table)


def _race(number: int, comparison: Comparison) -> Chart:
    name, race = comparison.name, comparison.race
    sides = ((name, race.rival), (comparison.engine, race.engine))
    spreads = [spread for _, spread in sides]
    labels = [duration(spread.p50) for spread in spreads]
    ends = tuple([1e3 * abs(edge - spread.p50) for spread, edge in zip(spreads, edges, strict=True)]
                 for edges in ([s.min for s in spreads], [s.max for s in spreads]))  # fmt: skip
    ratio = race.ratio
    svg = drawn(
        f"race-{number}",
        f"One image by {name} {labels[0]}, by {comparison.the_engine} {labels[1]}: {ratio.p50:.2f} of {name}'s time, "
        f"pair by pair {ratio.min:.2f} to {ratio.max:.2f}.",
        bars(
            [name for name, _ in sides], [1e3 * spread.p50 for spread in spreads], labels, x="ms per image", ends=ends
        ),
        height=bars_height(2) + 12,
    )
    rows = [(f"pair {pair}", f"{value:.3f}") for pair, value in enumerate(race.ratios, 1)]
    rows += [("median", f"{ratio.p50:.3f}")]
    alike = f" {100 * race.tokens_alike:.2f} % of the tokens alike." if comparison.same_weights else ""
    alike = alike if comparison.ended is None else f" {comparison.ended}."
    note = (
        f"{comparison.title}; in turns with {comparison.the_engine}, one image at a time, "
        f"{counted(len(race.ratios), 'pair')}; whiskers from the fastest to the slowest.{alike}"
    )
    table = Table(
        f"Time of {comparison.the_engine} for one of {name}", ("pair", "ratio"), rows, emphasised=len(rows) - 1
    )
    return Chart(f"Against {name}", svg, table, note)
