"""Charts of figures, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calib.sensitivity import Effect, Sensitivity
from engines.contract import DECODER, ENCODER, PARTS, TRANSFORMER
from engines.errors import UsageError
from engines.policy import PER_BLOCK, PER_TOKEN, STATIC, role_of

AXES = {TRANSFORMER: "KL, nats", DECODER: "image PSNR, dB", ENCODER: "loss of the reconstruction, dB"}
MARKERS = {STATIC: "o", PER_TOKEN: "^", PER_BLOCK: "s"}
INCHES_PER_LAYER = 0.17


def draw_sensitivity(table: Sensitivity, file: Path, title: str) -> None:
    """A point per layer and way, in the order of computation, a panel per part of the model.

    Raises `UsageError` where `file` cannot be written.
    """
    panels = {part: [effect for effect in table.effects if effect.part == part] for part in PARTS}
    panels = {part: effects for part, effects in panels.items() if effects}
    layers = {part: list(dict.fromkeys(effect.layer for effect in effects)) for part, effects in panels.items()}
    heights = [max(len(names), 4) for names in layers.values()]
    with matplotlib.rc_context({"font.size": 8, "svg.fonttype": "none", "axes.axisbelow": True}):
        figure = Figure(figsize=(9, sum(heights) * INCHES_PER_LAYER + len(heights) + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title)
        grid = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
        for axes, (part, effects) in zip(grid[:, 0], panels.items(), strict=True):
            _panel(axes, part, effects, layers[part])
        _save(figure, file)


def _panel(axes: Any, part: str, effects: list[Effect], layers: list[str]) -> None:
    places = {layer: place for place, layer in enumerate(layers)}
    groups: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        groups.setdefault((role_of(effect.layer), effect.way), []).append(effect)
    colours = {role: f"C{number}" for number, role in enumerate(dict.fromkeys(role for role, _ in groups))}
    for (role, way), members in groups.items():
        axes.plot(
            [_value(part, effect) for effect in members],
            [places[effect.layer] for effect in members],
            MARKERS[way],
            color=colours[role],
            markersize=4.5,
            label=f"{role}, {way}",
        )
    axes.set_yticks(range(len(layers)), [layer.partition("/")[2] for layer in layers], fontsize=6)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel(AXES[part])
    axes.set_title(part, loc="left", fontsize=9, fontweight="bold")
    axes.grid(axis="both", linewidth=0.3)
    axes.legend(fontsize=7, loc="best")
    if part == TRANSFORMER:
        axes.set_xscale("log")


def _value(part: str, effect: Effect) -> float:
    if part == TRANSFORMER:
        return effect.kl
    return effect.image_psnr if part == DECODER else effect.reconstruction_loss or 0.0


def _save(figure: Figure, file: Path) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.stem}.partial{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, dpi=130)
        partial.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
