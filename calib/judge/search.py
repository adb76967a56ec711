"""The search for as many INT8 layers as keep a bound on the loss, all of them quantised together. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calib.calibration import Calibration
from calib.choose.options import Int8Options
from calib.choose.selection import Option, after, most, order
from calib.graphs.layers import find_layers
from calib.judge.effects import measure
from calib.judge.variants import Figures, Variants
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.progress import Progress, silent
from engines.spec.contract import DECODER, TRANSFORMER
from engines.spec.policy import FLOAT, matches


def choose_ways(
    base: Bundle,
    ways: Mapping[str, str],
    calibration: Calibration,
    options: Int8Options,
    *,
    file: Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, str]:
    """As many layers in INT8 as keep `options.bounds` on the golden run, most time saved per loss first.

    Args:
        base: the float bundle.
        ways: by level and patterns; they stay for layers that a pattern names, and where no bound is about the part.
        calibration: of its model.
        options: target, ranges, bounds, patterns.
        file: of the sensitivity.
        threads: of ONNX Runtime.
        progress: called with a line and, where it is known, the share that is done.

    Raises `UsageError` where not even the float engines keep a bound.

    """
    bounds = options.bounds
    fixed = {name for name in ways if matches(name, (*options.include, *options.exclude))}
    parts = [part for part, bound in ((TRANSFORMER, bounds.transformer), (DECODER, bounds.decoder)) if bound]
    table = measure(base, calibration, options, file=file, parts=tuple(parts), threads=threads, progress=progress)
    chosen = dict(ways)
    with Variants(base, threads=threads) as variants:
        for part in parts:
            layers = [layer for graph, model in variants.models(part).items() for layer in find_layers(model, graph)]
            start = {layer.name: ways[layer.name] if layer.name in fixed else FLOAT for layer in layers}
            by_kl = bounds.kl is not None or part == DECODER
            steps = order(
                Option(effect.layer, effect.way, effect.saved, effect.loss if by_kl else 1 - effect.top1)
                for effect in table.effects
                if effect.layer in start and effect.layer not in fixed
            )
            search = _Search(variants, part, start, len(steps), calibration, options, progress)
            taken = most(steps, search.keeps)
            if not taken and not search.keeps(taken):
                named = ", with the layers of --quantize" if options.include else ""
                raise UsageError(
                    f"--max-loss cannot be kept: the {part} misses it as it is{named}; the line above has its figures"
                )
            chosen |= after(taken, start)
    return chosen


@dataclass(frozen=True)
class _Search:
    """The measurement behind one part's choice."""

    variants: Variants
    part: str
    start: Mapping[str, str]
    steps: int
    calibration: Calibration
    options: Int8Options
    progress: Progress

    def keeps(self, some: Sequence[tuple[str, str]]) -> bool:
        figures = self.variants.quantised(self.part, after(some, self.start), self.calibration, self.options)
        self.progress(f"{self.part}: {len(some)} of {self.steps} steps to INT8: {_text(figures)}", None)
        total = figures.total
        return self.options.bounds.holds(
            kl=None if total is None else total.kl, top1=None if total is None else total.top1, psnr=figures.psnr
        )


def _text(figures: Figures) -> str:
    if figures.total is not None:
        return f"KL {figures.total.kl:.2e}, top-1 {figures.total.top1:.2%}"
    return f"PSNR {figures.psnr:.2f} dB"
