"""The page of `var-export sensitivity`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calib.judge.effects import UNITS, Effect, Sensitivity
from engines.bundle.bundle import Bundle
from engines.machine import Machine
from engines.spec.contract import DECODER, ENCODER, PARTS, TRANSFORMER
from engines.words import counted
from var_export.report.charts import drawn
from var_export.report.facts import bundle_facts, environment_facts
from var_export.report.layers import effects_of, layers_of, panel, value_of
from var_export.report.page import write_page
from var_export.report.parts import Chart, Facts, Table, Tile
from var_export.report.words import decibels, number, percent

UNITS_PER_LAYER = 15
AROUND = 100  # units of height for axis and legend
WORST = 10
"""Rows that are shown at once; the others are folded."""
FIGURES = {TRANSFORMER: "KL, nats", DECODER: "image PSNR", ENCODER: "loss, dB"}
QUESTIONS = {
    TRANSFORMER: "How far the guided logits move: to the left is better.",
    DECODER: "How close the image stays: to the right is better.",
    ENCODER: "By how much a picture is reconstructed worse from its tokens: to the left is better.",
}


def write_sensitivity(
    file: Path,
    bundle: Bundle,
    table: Sensitivity,
    *,
    how: tuple[str, str],
    kept_in: Path,
    machine: Machine,
    command: Sequence[str],
) -> int:
    """Write the page of a table that is kept in a file; its size in bytes. Raises `UsageError` where it cannot be."""
    parts = [part for part in PARTS if effects_of(table, part)]
    settings = [("precision, as of", ", ".join(how)), ("table", str(kept_in))]
    return write_page(
        file,
        "sensitivity",
        name=bundle.name,
        layers=counted(len(layers_of(table.effects)), "layer"),
        float_kl=number(table.float_kl),
        tiles=[_tile(part, table.worst_first(part)[0]) for part in parts],
        parts_of_model=[_part(table, part) for part in parts],
        facts=[Facts("Settings", settings), bundle_facts(bundle), environment_facts(machine)],
        command=shlex.join(command),
    )


def _tile(part: str, effect: Effect) -> Tile:
    layer = effect.layer.partition("/")[2]
    return Tile(f"Worst of the {part}", _value(effect), f"{FIGURES[part].partition(',')[0]}: {layer}, {effect.way}")


def _value(effect: Effect) -> str:
    value = value_of(effect)
    if effect.part == DECODER:
        return decibels(value)
    return number(value) if effect.part == TRANSFORMER else f"{value:+.2f}\N{NO-BREAK SPACE}dB"


def _part(table: Sensitivity, part: str) -> dict[str, Any]:
    """What the page shows of one part of the model: its chart, its worst layers, and all of them if there are more."""
    effects, worst = effects_of(table, part), table.worst_first(part)
    layers = layers_of(effects)

    def plot(figure: Any, axes: Any) -> None:
        panel(axes, part, effects, font=9)
        figure.legend(loc="outside upper left", ncols=2, fontsize=9.5, columnspacing=1.2, handlelength=1)

    said = "; ".join(f"{effect.layer} {effect.way} {_value(effect)}" for effect in worst[:3])
    svg = drawn(
        f"layers-{part}",
        f"{FIGURES[part]} of {counted(len(layers), 'layer')} of the {part}, each alone in integers. The worst: {said}.",
        plot,
        height=AROUND + UNITS_PER_LAYER * max(len(layers), 4),
    )
    shown = _table(table, f"{part}: the {WORST} worst", worst[:WORST])
    every = _table(table, f"All {counted(len(worst), 'measurement')} of the {part}", worst)
    chart = Chart("In the order of computation", svg, None, QUESTIONS[part])
    return {"title": part.capitalize(), "chart": chart, "worst": shown, "all": every if len(worst) > WORST else None}


def _table(table: Sensitivity, caption: str, effects: Sequence[Effect]) -> Table:
    unit, scale = UNITS[table.unit]
    part = effects[0].part
    top1 = part == TRANSFORMER
    headers = ["layer", "way", FIGURES[part], *(["top-1"] if top1 else []), unit]
    rows = [
        [e.layer, e.way, _value(e), *([percent(e.top1)] if top1 else []), number(e.saved * scale, 2)] for e in effects
    ]
    return Table(caption, headers, rows, words=2)
