"""Sensitivity of each layer to quantisation, and the choice of layers for a bound on the loss. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from calib.calibration import Calibration
from calib.choose.selection import Option, after, most, order
from calib.graphs.layers import Layer, find_layers
from calib.judge.table import MULTIPLY_ADDS, SECONDS, Effect, Sensitivity, candidates
from calib.judge.timing import Stopwatch, multiply_adds
from calib.judge.variants import Figures, Variants
from calib.keys import INT8_BUNDLE, code_digest
from calib.rewrite.graphs_of_bundle import Int8Options, rewritten
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.progress import Progress, silent
from engines.spec.contract import DECODER, PARTS, TRANSFORMER
from engines.spec.policy import FLOAT, STATIC, matches
from engines.storage import digest_of

ENOUGH_TOKENS = 600  # of the golden run, to judge one layer by: one image of 256 px


def sensitivity_file(calibration: Path, target: str) -> Path:
    """Beside the calibration that it depends on."""
    return calibration.with_name(f"{calibration.stem}.sensitivity-{target}.json")


def measure(
    base: Bundle,
    calibration: Calibration,
    options: Int8Options,
    *,
    file: Path | None = None,
    parts: tuple[str, ...] = PARTS,
    threads: int | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Quantise each layer alone, in every way that `options.target` has, and hold it against the golden run.

    Raises `UsageError` where the calibration lacks a layer.

    Args:
        base: the float bundle.
        calibration: of its model.
        options: target and ranges; level and patterns do not matter.
        file: what is measured already, and where each new effect is kept at once.
        parts: of the model.
        threads: of ONNX Runtime.
        progress: called with a line and the share that is done.

    """
    key = digest_of(
        {
            "model": base.golden_key,
            "precision": base.precision,
            "calibration": calibration.digest(),
            "target": options.target,
            "ranges": asdict(options.ranges),
            "sources": code_digest(INT8_BUNDLE),
        }
    )
    known = (None if file is None else Sensitivity.load(file, key)) or Sensitivity(key)
    images = min(len(base.golden["tokens"]), math.ceil(ENOUGH_TOKENS / base.config.num_tokens))
    on_cpu = options.target == "onnxruntime"
    known.unit = SECONDS if on_cpu else MULTIPLY_ADDS
    stopwatch = Stopwatch(base.config, threads)
    with Variants(base, images=images, threads=threads) as variants:
        jobs = [
            (part, layer, way)
            for part in parts
            for graph, model in variants.models(part).items()
            for layer in find_layers(model, graph)
            for way in candidates(layer, options.target)
            if known.find(layer.name, way) is None
        ]
        calibration.check_layers([layer for _, layer, way in jobs if way == STATIC], base.config.num_scales)
        if jobs and not known.effects:
            total = variants.figures(TRANSFORMER).total
            assert total is not None
            known.float_kl = total.kl
        for number, (part, layer, way) in enumerate(jobs):
            progress(f"sensitivity: {layer.name}, {way} ({number + 1} of {len(jobs)})", number / len(jobs))
            saved = (
                stopwatch.seconds(layer, FLOAT) - stopwatch.seconds(layer, way)
                if on_cpu
                else multiply_adds(layer, base.config)
            )
            figures = _with(variants, part, {layer.name: way}, calibration, options)
            known.effects.append(_effect(layer, way, saved, figures))
            if file is not None:
                known.save(file)
    return known


def _with(
    variants: Variants, part: str, ways: Mapping[str, str], calibration: Calibration, options: Int8Options
) -> Figures:
    return variants.figures(part, dict(rewritten(variants.models(part), ways, calibration, options)))


def _effect(layer: Layer, way: str, saved: float, figures: Figures) -> Effect:
    psnr = figures.psnr
    return Effect(
        layer.name,
        layer.role,
        way,
        saved,
        **({} if figures.total is None else {"kl": figures.total.kl, "top1": figures.total.top1}),
        psnr=None if psnr is None or math.isinf(psnr) else psnr,
        reconstruction_loss=figures.reconstruction_loss,
    )


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
        figures = _with(self.variants, self.part, after(some, self.start), self.calibration, self.options)
        self.progress(f"{self.part}: {len(some)} of {self.steps} steps to INT8: {_text(figures)}", None)
        total = figures.total
        return self.options.bounds.holds(
            kl=None if total is None else total.kl, top1=None if total is None else total.top1, psnr=figures.psnr
        )


def _text(figures: Figures) -> str:
    if figures.total is not None:
        return f"KL {figures.total.kl:.2e}, top-1 {figures.total.top1:.2%}"
    return f"PSNR {figures.psnr:.2f} dB"
