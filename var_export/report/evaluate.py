"""The pages of `var-export evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle
from engines.evaluation.between import Between
from engines.evaluation.halves import Apart
from engines.evaluation.reference import ReferenceSet
from engines.evaluation.samples import Samples
from engines.machine import Machine
from engines.words import counted
from var_export.report.charts import curves, drawn
from var_export.report.facts import bundle_facts, environment_facts
from var_export.report.page import write_page
from var_export.report.parts import Chart, Facts, Table, Tile
from var_export.report.words import number

DISTANCES = ("between", "distance", "noise", "excess", "95 % interval", "")
"""Headers of a table of distances between two sets."""


def write_between(
    file: Path,
    sets: tuple[Samples, Samples],
    found: Between,
    *,
    bundle: Bundle,
    machine: Machine,
    runtime: Mapping[str, Any],
    command: Sequence[str],
) -> int:
    """Write the page of two sets; its size in bytes. Raises `UsageError` where it cannot be written."""
    rows = [(name, *cells(each)) for name, each in found.rows()]
    tiles = [
        Tile(
            name[:1].upper() + name[1:], number(each.excess), f"beyond noise of {number(each.noise)}: {_verdict(each)}"
        )
        for name, each in found.rows()[:2]
    ]
    return write_page(
        file,
        "evaluate",
        kind="Two sets of images",
        name=f"{sets[0].path.name} | {sets[1].path.name}",
        tiles=tiles,
        charts=[_scales(found)],
        table=Table("Distances of halves", DISTANCES, rows),
        facts=[_facts(sets), bundle_facts(bundle), environment_facts(machine, runtime)],
        command=shlex.join(command),
    )


def write_scores(
    file: Path,
    samples: Samples,
    reference: ReferenceSet | None,
    rows: Sequence[tuple[str, float, str]],
    *,
    machine: Machine,
    command: Sequence[str],
) -> int:
    """Write the page of the figures of one set; its size in bytes. Raises `UsageError` where it cannot be written."""
    pairs = [("images", f"{samples.path}: {counted(samples.count, 'image')}, {samples.kind}")]
    if reference is not None:
        images = "" if reference.samples is None else counted(reference.samples.count, "image")
        statistics = "" if reference.pool is None else "statistics"
        pairs.append(("reference", " and ".join(filter(None, (statistics, images)))))
    return write_page(
        file,
        "evaluate",
        kind="A set of images",
        name=samples.path.name,
        tiles=[Tile(name, number(value), note) for name, value, note in rows],
        charts=[],
        table=Table("Figures", ("figure", "value", ""), [(name, number(value, 5), note) for name, value, note in rows]),
        facts=[Facts("Sets", pairs), environment_facts(machine)],
        command=shlex.join(command),
    )


def cells(each: Apart) -> tuple[str, ...]:
    """A distance beside its noise as cells of a table, under `DISTANCES` but for the first."""
    interval = f"{number(each.low)} to {number(each.high)}"
    return number(each.distance), number(each.noise), number(each.excess), interval, _verdict(each)


def _verdict(each: Apart) -> str:
    return "apart" if each.beyond_noise else "within noise"


def _scales(found: Between) -> Chart:
    names = [str(number) for number in range(len(found.scales))]
    lines = {
        "between the sets": [each.distance for each in found.scales],
        "within them (noise)": [each.noise for each in found.scales],
    }
    plot = curves(names, lines, x="scale", y="total variation of tokens", from_zero=True)
    said = "The distance between the tokens' histograms of both sets at each scale, and of the halves of one set."
    table = Table("Figures", ("scale", *lines), [
        (name, *(number(values[place]) for values in lines.values())) for place, name in enumerate(names)
    ])  # fmt: skip
    return Chart("Tokens, scale by scale", drawn("scales", said, plot), table, said)


def _facts(sets: tuple[Samples, Samples]) -> Facts:
    pairs = []
    for title, each in zip(("first", "second"), sets, strict=True):
        pairs.append((title, f"{each.path}: {counted(each.count, 'image')}, {each.kind}"))
    return Facts("Sets", pairs)
