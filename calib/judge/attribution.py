"""Which layers of a quantised bundle are to blame where it misses the reference. Torch-free.

Group by group, then layer by layer in the worst group, the 8 bits of the activations are taken away and the figure
is measured again: what gets better by that was to blame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calib.judge.variants import Figures, Variants
from calib.rewrite.relief import find_quantized, relieve
from engines.bundle.bundle import Bundle
from engines.progress import Progress, Steps, silent
from engines.spec.contract import DECODER, ENCODER, TRANSFORMER

FIGURES = {TRANSFORMER: "KL", DECODER: "PSNR", ENCODER: "reconstruction loss"}


@dataclass(frozen=True)
class Blame:
    """What the figure of a part becomes when some layers' activations are in float."""

    part: str
    """`transformer`, `decoder` or `encoder`."""
    layers: str
    """A layer's name, or a group's: `fc1`, `decode/up.0`."""
    figure: str
    """KL in nats, PSNR in dB, or the reconstruction's loss in dB."""
    before: float
    after: float
    single: bool
    """Whether it is one layer, not a group."""

    @property
    def gain(self) -> float:
        """By how much the figure gets better."""
        return self.after - self.before if self.figure == FIGURES[DECODER] else self.before - self.after


def blame(
    bundle: Bundle,
    parts: Sequence[str],
    *,
    golden: Mapping[str, NDArray[Any]] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> list[Blame]:
    """Groups and layers of these parts, worst first within each part: groups, then the layers of the worst one.

    `bundle` is quantised, stepwise; `parts` are of `transformer`, `decoder`, `encoder`; `golden` is the run to judge
    by, the bundle's own by default.
    """
    found: list[Blame] = []
    with Variants(bundle, golden=golden, threads=threads) as variants:
        for part in parts:
            names = [name for graph, model in variants.models(part).items() for name in find_quantized(model, graph)]
            before = _figure(part, variants.figures(part))
            groups: dict[str, list[str]] = {}
            for name in names:
                groups.setdefault(_group(part, name), []).append(name)

            for single in (False, True):
                judged = []
                for number, (label, layers) in enumerate(groups.items()):
                    progress(f"who is to blame: {label}", Steps(number, len(groups)))
                    after = _figure(part, variants.figures(part, _relieved(variants.models(part), layers)))
                    judged.append(Blame(part, label, FIGURES[part], before, after, single))
                judged.sort(key=lambda entry: -entry.gain)
                found += judged
                groups = {name: [name] for name in groups[judged[0].layers]} if judged else {}
    return found


def describe(found: Sequence[Blame]) -> str:
    """One line for people."""
    lines = []
    for part in dict.fromkeys(entry.part for entry in found):
        worst = [entry for entry in found if entry.part == part and entry.gain > 0]
        group = next((entry for entry in worst if entry.single is False), None)
        layer = next((entry for entry in worst if entry.single), None)
        if group is None or layer is None:
            lines.append(f"the {part}'s activations are not to blame, so its quantised weights are")
            continue
        lines.append(
            f"most to blame in the {part}: {group.layers} ({group.figure} {group.before:.3g}, with its activations in "
            f"float {group.after:.3g}), above all {layer.layers} ({layer.after:.3g}); --keep leaves layers in float"
        )
    return "; ".join(lines)


def _relieved(models: dict[str, ir.Model], layers: Sequence[str]) -> dict[str, ir.Model]:
    """Those of the graphs that change."""
    changed = {}
    for graph, model in models.items():
        for name, node in find_quantized(model, graph).items():
            if name in layers:
                relieve(node)
                changed[graph] = model
    return changed


def _group(part: str, name: str) -> str:
    """Layers of the transformer by what they do, others by where they are."""
    if name.startswith("cond/"):
        return "AdaLN"
    if part == TRANSFORMER:
        return name.rpartition("/")[2].rpartition(".")[2]
    return ".".join(name.split(".")[:2])


def _figure(part: str, figures: Figures) -> float:
    if figures.total is not None:
        return figures.total.kl
    value = figures.psnr if part == DECODER else figures.reconstruction_loss
    assert value is not None
    return value
