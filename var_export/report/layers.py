"""The table of sensitivities as a chart: a point per layer and way, in the order of computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from calib.judge.effects import Effect, Sensitivity
from engines.spec.contract import DECODER, ENCODER, PARTS, TRANSFORMER
from engines.spec.policy import PER_BLOCK, PER_TOKEN, STATIC, role_of
from var_export.report.charts import log_axis, save
from var_export.report.palette import SERIES

AXES = {TRANSFORMER: "KL, nats", DECODER: "image PSNR, dB", ENCODER: "loss of the reconstruction, dB"}
MARKERS = {STATIC: "o", PER_TOKEN: "^", PER_BLOCK: "s"}
INCHES_PER_LAYER = 0.17
FEWEST = 4  # rows that a panel has room for, for its legend's sake


def plot_layers(table: Sensitivity, file: Path, title: str) -> None:
    """Write the chart, a panel per part of the model. Raises `UsageError` where `file` cannot be written."""
    panels = {part: effects for part in PARTS if (effects := effects_of(table, part))}
    heights = [max(len(layers_of(effects)), FEWEST) for effects in panels.values()]

    def make() -> Figure:
        figure = Figure(figsize=(9, sum(heights) * INCHES_PER_LAYER + len(heights) + 0.6), layout="constrained")
        figure.suptitle(title, parse_math=False)
        grid = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
        for axes, (part, effects) in zip(grid[:, 0], panels.items(), strict=True):
            panel(axes, part, effects, font=6)
            axes.set_title(part, fontsize=9, fontweight="bold")
            axes.legend(fontsize=7, loc="best")
        return figure

    save(file, make)


def effects_of(table: Sensitivity, part: str) -> list[Effect]:
    """Effects on one part of the model, in the order of computation."""
    return [effect for effect in table.effects if effect.part == part]


def layers_of(effects: Sequence[Effect]) -> list[str]:
    """The layers of some effects, each once."""
    return list(dict.fromkeys(effect.layer for effect in effects))


def value_of(effect: Effect) -> float:
    """The figure of an effect that the axis of its part shows."""
    if effect.part == TRANSFORMER:
        return effect.kl
    return effect.image_psnr if effect.part == DECODER else effect.reconstruction_loss or 0.0


def panel(axes: Any, part: str, effects: Sequence[Effect], font: float) -> None:
    """One part of the model: layers from top to bottom, labelled in this size of font."""
    layers = layers_of(effects)
    places = {layer: place for place, layer in enumerate(layers)}
    groups: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        groups.setdefault((role_of(effect.layer), effect.way), []).append(effect)
    colours = {
        role: SERIES[number % len(SERIES)] for number, role in enumerate(dict.fromkeys(role for role, _ in groups))
    }
    for (role, way), members in groups.items():
        axes.plot(
            [value_of(effect) for effect in members],
            [places[effect.layer] for effect in members],
            MARKERS[way],
            color=colours[role],
            markersize=4.5,
            label=f"{role}, {way}",
        )
    axes.set_yticks(range(len(layers)), [layer.partition("/")[2] for layer in layers], fontsize=font)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel(AXES[part])
    if part == TRANSFORMER:
        log_axis(axes, axes.xaxis)
