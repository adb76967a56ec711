"""Measuring a loaded bundle: latency per scale, throughput over batch sizes, and fair races with rivals.

Every run draws classes that the runs before it did not, so that the AdaLN vectors of a class are computed
and not found in the cache; only the unconditional ones are, as in a server that runs for a while. (A model
of few classes runs out of new ones: its `cond` shrinks to the cached figure.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.draw.pipeline import Pipeline
from engines.draw.request import make_request
from engines.draw.results import Timings
from engines.errors import UsageError
from engines.judging.similarity import psnr
from engines.machine import Machine
from engines.progress import Progress, Steps, silent
from engines.words import counted, guidance

Draw = Callable[[Sequence[int], Sequence[int]], NDArray[np.int64]]
"""Classes and seeds, one of each per image -> tokens (B, T), with images drawn all the way to pixels on the host."""
Seen = Callable[[NDArray[np.int64], NDArray[np.int64]], None]
"""Takes the tokens (B, T) that two rivals drew."""
RANDOM = "random"  # weights of the same shapes as a bundle's, where no checkpoint is at hand

CASE_SECONDS = 15.0  # enough of one case, once it ran MIN_RUNS times: d16 at batch 8 takes a minute a run
MIN_RUNS = 2
P99_RUNS = 100
BUSY = 0.5  # of the cores, by the load before: what else runs takes them
WIDE = 0.25  # of the median, from the smallest to the 90th percentile: pairs on an idle machine stay within a tenth
REST = 0.05  # seconds between rivals: idle worker threads of both runtimes spin for some milliseconds


@dataclass(frozen=True)
class Spread:
    """Seconds, over several runs."""

    min: float
    p50: float
    p90: float
    p99: float | None
    """None of fewer than `P99_RUNS` runs, where it would be the slowest."""
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Percentiles with linear interpolation."""
        p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
        known = p99 if len(seconds) >= P99_RUNS else None
        return cls(float(min(seconds)), p50, p90, known, float(max(seconds)))

    def columns(self) -> dict[str, float]:
        """What is known, by the names of a table's columns."""
        tail = {} if self.p99 is None else {"p99": self.p99}
        return {"p50": self.p50, "p90": self.p90, **tail, "min": self.min, "max": self.max}

    @property
    def width(self) -> float:
        """From the smallest to the 90th percentile, in medians: more runs do not make it wider by themselves."""
        return (self.p90 - self.min) / self.p50


@dataclass(frozen=True)
class Case:
    """The seconds of one batch size with one guidance, over several runs."""

    batch: int
    cfg: float
    runs: int
    cond: Spread
    scales: tuple[Spread, ...]
    """One spread per scale; the fused form has one for all."""
    decode: Spread
    outside: Spread
    """What the engines did not take: uniforms, copies, the host's loop."""
    total: Spread

    def stages(self, sides: Sequence[int], scale_name: str = "scale {} ({}x{})") -> list[tuple[str, Spread]]:
        """Each stage by its name, in order, the total last; `scale_name` is given the scale and twice its side."""
        names = ["cond", *(scale_name.format(scale, side, side) for scale, side in enumerate(sides)), "decode"]
        spreads = [self.cond, *self.scales, self.decode]
        if len(self.scales) == 1:
            names, spreads = ["fused graph"], list(self.scales)
        return [*zip(names, spreads, strict=True), ("outside the engines", self.outside), ("total", self.total)]

    @property
    def images_per_second(self) -> float:
        """Throughput of the median run."""
        return self.batch / self.total.p50

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, seconds."""
        return asdict(self) | {"images_per_second": self.images_per_second}


@dataclass(frozen=True)
class Race:
    """A rival and the engine in turns, A B A B, with the same work."""

    rival: Spread
    engine: Spread
    ratios: tuple[float, ...]
    """Seconds of the engine for one of the rival, pair by pair."""
    tokens_alike: float
    """Share of tokens that both drew alike: whether they did the same work. FP16 leaves draws near an edge open."""

    @property
    def ratio(self) -> Spread:
        """Spread of `ratios`."""
        return Spread.of(self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, seconds."""
        return asdict(self) | {"ratio": asdict(self.ratio)}


@dataclass(frozen=True)
class Ended:
    """What it changes that guidance ends early, beside images that are guided in all scales."""

    cfg_scales: int
    """How many first scales are guided."""
    psnr: float | None
    """Of the images, in dB; None where they are the same."""
    tokens_alike: float
    """Share of the tokens of the scales without guidance that are the same."""

    def __str__(self) -> str:
        how = "the same images" if self.psnr is None else f"PSNR {self.psnr:.1f} dB"
        return f"{how}, {self.tokens_alike:.2%} of the tokens of later scales alike"


@dataclass(frozen=True)
class Comparison:
    """What came of one race."""

    name: str
    """What the rival is called in a table, as `PyTorch`."""
    title: str
    """The rival with all that decides its time: version, precision, weights."""
    same_weights: bool
    """Whether both drew with the same weights: only then does it say something how many tokens are alike."""
    race: Race
    ended: Ended | None = None
    """Where the engine drew with guidance that ends early, and the rival is the same with guidance in all scales."""

    @property
    def engine(self) -> str:
        """What the other side is called in a table."""
        return "engine" if self.ended is None else f"guidance in {self.ended.cfg_scales}"

    @property
    def the_engine(self) -> str:
        """The other side in a sentence."""
        return "the engine" if self.ended is None else self.engine

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, seconds."""
        own = {"name": self.name, "title": self.title, "same_weights": self.same_weights}
        return own | self.race.to_dict() | {"ended": None if self.ended is None else asdict(self.ended)}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that was measured of one bundle on one machine."""

    machine: Machine
    threads: int
    runtime: dict[str, Any]
    """What ran the engines, as `Pipeline.describe_runtime` tells."""
    load_seconds: float
    cases: list[Case]
    peak_memory: int
    """Bytes that the process held at most, before a rival was loaded."""
    comparisons: tuple[Comparison, ...] = ()

    def doubts(self) -> list[str]:
        """Why the figures may say little: what else ran on the machine, and how far runs of the same work differ."""
        here, what = self.machine, "pairs" if self.comparisons else "runs"
        spreads = [each.race.ratio for each in self.comparisons] or [self.cases[0].total]
        width = max(spread.width for spread in spreads)
        found = [f"the load was {here.load:.1f} on {counted(here.cores, 'core')} before"] * (
            here.load > BUSY * here.cores
        )
        return found + [f"{what} differ by {width:.0%}"] * (width > WIDE)


def runtime_title(runtime: Mapping[str, Any]) -> str:
    """What computes, with its version, as `onnxruntime 1.31.1, CPUExecutionProvider`."""
    hint = f", {runtime['hint']}" if "hint" in runtime else ""
    return f"{runtime['backend']} {runtime[runtime['backend']]}, {runtime['provider']}{hint}"


class Bench:
    """Times a pipeline whose `max_batch` holds every batch size that is asked for.

    `warmup`: runs before each measurement, not counted; the first of a batch size allocates its buffers.
    """

    def __init__(self, pipeline: Pipeline, *, warmup: int = 1, progress: Progress = silent) -> None:
        self._pipeline, self._warmup, self._progress = pipeline, warmup, progress
        self._drawn = 0

    def measure(self, *, batches: Sequence[int], cfgs: Sequence[float], runs: int) -> list[Case]:
        """Time every batch size with every guidance, of which 0 runs half the work.

        `runs`: of each case; those of further batch sizes end early once they took `CASE_SECONDS`.
        """
        cases = []
        for batch in batches:
            for cfg in cfgs:
                line = f"batch {batch}, {guidance(cfg)}"
                self._progress(line)
                for _ in range(self._warmup):
                    self._run(batch, cfg)
                limit = None if batch == batches[0] else CASE_SECONDS
                run, told = partial(self._run, batch, cfg), partial(self._progress, line)
                cases.append(_case(batch, cfg, _samples(run, runs, limit, told)))
        return cases

    def race(self, rival: Draw, *, cfg: float, pairs: int, cfg_scales: int = 0, seen: Seen | None = None) -> Race:
        """Race the engine against `rival`, image by image: the same class, seed and guidance in every pair.

        `cfg_scales`: of the engine's images, as of `engines.spec.sampling`; `seen`: see `race`.
        """

        def engine(classes: Sequence[int], seeds: Sequence[int]) -> NDArray[np.int64]:
            return self._pipeline.generate(classes, seeds=seeds, cfg=cfg, cfg_scales=cfg_scales).tokens

        def requests(count: int, name: str) -> Iterator[tuple[list[int], list[int]]]:
            for turn in range(count):
                self._progress(f"rival and engine, {name.format(turn + 1)}")
                yield self._fresh(1)

        for _ in range(self._warmup):
            race(rival, engine, requests(1, "warm-up"), rest=REST)
        return race(rival, engine, requests(pairs, f"pair {{}} of {pairs}"), rest=REST, seen=seen)

    def check_ends(self, cfg_scales: Sequence[int], cfg: float) -> None:
        """Raises `UsageError` where `end_early` would have nothing to compare, or the form cannot draw it."""
        scales = self._pipeline.config.num_scales
        for count in cfg_scales:
            if cfg == 0 or count >= scales:
                raise UsageError(
                    f"--cfg-scales {count} changes nothing: give 1 to {scales - 1} of the {scales} scales, and guidance"
                )
            asked = make_request(self._pipeline.bundle, [0], seeds=0, cfg=cfg, cfg_scales=count)
            asked.check_form(self._pipeline.form, self._pipeline.config)

    def end_early(self, cfg_scales: int, *, cfg: float, pairs: int) -> Comparison:
        """Race images that are guided in so many first scales against the same ones guided in all."""

        def guided(classes: Sequence[int], seeds: Sequence[int]) -> NDArray[np.int64]:
            return self._pipeline.generate(classes, seeds=seeds, cfg=cfg).tokens

        drawn: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        raced = self.race(guided, cfg=cfg, pairs=pairs, cfg_scales=cfg_scales, seen=lambda *pair: drawn.append(pair))
        whole, ended = (np.concatenate(side) for side in zip(*drawn, strict=True))
        start, scales = self._pipeline.config.scale_offsets[cfg_scales], self._pipeline.config.num_scales
        apart = psnr(self._pipeline.decode(whole), self._pipeline.decode(ended))
        alike = float((whole[:, start:] == ended[:, start:]).mean())
        changed = Ended(cfg_scales, apart if math.isfinite(apart) else None, alike)
        return Comparison(f"guidance in all {scales}", f"guidance in all {scales} scales", True, raced, changed)

    def _run(self, batch: int, cfg: float) -> Timings:
        """One run; its total is the wall clock."""
        classes, seeds = self._fresh(batch)
        start = time.perf_counter()
        timings = self._pipeline.generate(classes, seeds=seeds, cfg=cfg).timings
        return replace(timings, total=time.perf_counter() - start)

    def _fresh(self, count: int) -> tuple[list[int], list[int]]:
        """Classes and seeds that were not drawn before, as long as there are others."""
        seeds = list(range(self._drawn, self._drawn + count))
        self._drawn += count
        return [seed % self._pipeline.config.transformer.num_classes for seed in seeds], seeds


def race(
    rival: Draw,
    engine: Draw,
    requests: Iterable[tuple[Sequence[int], Sequence[int]]],
    *,
    rest: float = 0.0,
    seen: Seen | None = None,
) -> Race:
    """Time both on the same classes and seeds, in turns: of every pair the rival first.

    `requests`: classes and seeds of each pair, one at least; `rest`: seconds of sleep before each run; `seen`: called
    with what both drew, after each pair.
    """
    slow, fast, alike = [], [], []
    for classes, seeds in requests:
        wanted, rival_seconds = _timed(rival, classes, seeds, rest)
        drawn, engine_seconds = _timed(engine, classes, seeds, rest)
        slow.append(rival_seconds)
        fast.append(engine_seconds)
        alike.append(float((wanted == drawn).mean()))
        if seen is not None:
            seen(wanted, drawn)
    ratios = tuple(b / a for a, b in zip(slow, fast, strict=True))
    return Race(Spread.of(slow), Spread.of(fast), ratios, float(np.mean(alike)))


def _timed(draw: Draw, classes: Sequence[int], seeds: Sequence[int], rest: float) -> tuple[NDArray[np.int64], float]:
    time.sleep(rest)
    start = time.perf_counter()
    tokens = draw(classes, seeds)
    return tokens, time.perf_counter() - start


def _samples(
    run: Callable[[], Timings], runs: int, limit: float | None, told: Callable[[float], None]
) -> list[Timings]:
    samples: list[Timings] = []
    while len(samples) < runs:
        told(Steps(len(samples), runs))
        samples.append(run())
        if limit is not None and len(samples) >= MIN_RUNS and sum(sample.total for sample in samples) >= limit:
            break
    return samples


def _case(batch: int, cfg: float, timings: Sequence[Timings]) -> Case:
    return Case(
        batch=batch,
        cfg=cfg,
        runs=len(timings),
        cond=Spread.of([t.cond for t in timings]),
        scales=tuple(Spread.of(seconds) for seconds in zip(*(t.scales for t in timings), strict=True)),
        decode=Spread.of([t.decode for t in timings]),
        outside=Spread.of([t.outside for t in timings]),
        total=Spread.of([t.total for t in timings]),
    )
