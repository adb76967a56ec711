"""The search for as many quantised layers as keep a bound on the loss, all of them quantised together. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calib.calibration import Calibration
from calib.choose.options import QuantisationOptions
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
    options: QuantisationOptions,
    *,
    file: Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, str]:
    """As many layers quantised as keep `options.bounds` on the golden run, most saved per loss first: time, and of INT4
    what is stored.

    The `ways` by level and patterns stay for layers that a pattern names, and where no bound is about the part; `file`
    keeps the sensitivity of the layers of `base`, the float bundle.

    Raises `UsageError` where not even the float engines keep a bound.

    """
    bounds = options.bounds
    fixed = {name for name in ways if matches(name, (*options.include, *options.exclude))}
    parts = [part for part, bound in ((TRANSFORMER, bounds.transformer), (DECODER, bounds.decoder)) if bound]
    table = measure(base, calibration, options, file=file, parts=tuple(parts), threads=threads, progress=progress)
    with Variants(base, threads=threads) as variants:

        def chosen(part: str) -> dict[str, str]:
            layers = [layer for graph, model in variants.models(part).items() for layer in find_layers(model, graph)]
            start = {layer.name: ways[layer.name] if layer.name in fixed else FLOAT for layer in layers}
            by_kl = bounds.kl is not None or part == DECODER
            steps = order(
                Option(effect.layer, effect.way, effect.saved, effect.loss if by_kl else 1 - effect.top1)
                for effect in table.effects
                if effect.layer in start and effect.layer not in fixed
            )

            def keeps(some: Sequence[tuple[str, str]]) -> bool:
                figures = variants.quantised(part, after(some, start), calibration, options)
                progress(
                    f"{part}: {len(some)} of {len(steps)} steps to {options.precision.upper()}: {_text(figures)}", None
                )
                kl, top1 = (None, None) if figures.total is None else (figures.total.kl, figures.total.top1)
                return bounds.holds(kl=kl, top1=top1, psnr=figures.psnr)

            taken = most(steps, keeps)
            if not taken and not keeps(taken):
                named = ", with the layers of --quantize" if options.include else ""
                raise UsageError(
                    f"--max-loss cannot be kept: the {part} misses it as it is{named}; the line above has its figures"
                )
            return after(taken, start)

        return {**ways, **{layer: way for part in parts for layer, way in chosen(part).items()}}


def _text(figures: Figures) -> str:
    if figures.total is not None:
        return f"KL {figures.total.kl:.2e}, top-1 {figures.total.top1:.2%}"
    return f"PSNR {figures.psnr:.2f} dB"
