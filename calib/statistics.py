"""Streaming statistics of an activation, and the ranges for INT8 that are chosen from them.

A `Statistics` holds what calibration needs to know of one tensor, in memory that does not grow with the number
of images: no activation is kept. Its histogram has a grid that depends on the largest magnitude alone, so the same
values give the same counts in whatever batches and order they come. The ranges are for uniform 8-bit
quantisation, per tensor (Krishnamoorthi 2018, arXiv:1806.08342, sections 2 and 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

METHODS = ("minmax", "percentile", "entropy", "mse")

BINS = 2048
_ZERO_BIN = BINS // 2  # begins at 0
_MAGNITUDE_BITS = _ZERO_BIN.bit_length() - 1
# The finest width, whose inverse is a normal float32. Such a grid spans 2^-116: whatever is smaller than
# its bins is 0 to every kernel.
MIN_EXPONENT = -126
# 0.25 MB of float32 at a time, so that the buffers stay in the L2 cache: 260 M values/s; with a quarter or four times
# that 230 and 210 (one core of an EPYC, Zen 5).
_BLOCK = 1 << 16

_MIN_SCALE = float(np.finfo(np.float32).tiny)
_LEAST_BINS = 128  # below a threshold: with fewer, the histogram shows no rounding
_ENTROPY_CANDIDATES = 128  # thresholds tried for one side of an asymmetric range, in one turn
_MAX_TURNS = 16
# Factors: 6 to the octave, then 1 % apart for two ends and 0.1 % for one, which is cheap. For two, half as many cost up
# to 1 % more error and twice as many gain 0.2 % (normal, GELU and heavy-tailed samples).
_COARSE = np.geomspace(2.0**-10, 1.0, 61)
_FINE = np.geomspace(2 ** (-1 / 6), 2 ** (1 / 6), 25)
_FINEST = np.geomspace(2 ** (-1 / 6), 2 ** (1 / 6), 201)


@dataclass
class ScaleFigures:
    """Of the values that a tensor had at one scale of the model."""

    count: int
    minimum: float
    maximum: float
    square_sum: float

    @property
    def mean_square(self) -> float:
        """Mean of the squares."""
        return self.square_sum / self.count

    def merge(self, other: ScaleFigures) -> None:
        """Take in the values of another one."""
        self.count += other.count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.square_sum += other.square_sum


class Statistics:
    """Of one tensor, over all batches and scales.

    The histogram is signed. Bin k of `counts`, int64 (BINS,), counts the values in [k - BINS/2, k + 1 - BINS/2) times
    2^`exponent`, the exponent being the smallest (from `MIN_EXPONENT`) with which the largest magnitude lies below
    BINS/2 bins. Bins of a finer grid lie whole in bins of a coarser one, so growing it loses no exactness: counts,
    minima and maxima depend on the multiset of values alone, sums of squares up to rounding in float64.
    """

    def __init__(self) -> None:
        self.scales: dict[int, ScaleFigures] = {}
        """By scale; a scale without values is absent."""
        self.channel_abs_max: Float32s | None = None
        """float32 (channels,): largest magnitude; None where no channels were counted."""
        self.exponent = MIN_EXPONENT
        self.counts: Counts = np.zeros(BINS, np.int64)
        self._channel_square_sum: Floats | None = None

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(scale.count for scale in self.scales.values())

    @property
    def minimum(self) -> float:
        """Least value; raises `ValueError` where there is none."""
        self._need_values()
        return min(scale.minimum for scale in self.scales.values())

    @property
    def maximum(self) -> float:
        """Greatest value; raises `ValueError` where there is none."""
        self._need_values()
        return max(scale.maximum for scale in self.scales.values())

    @property
    def mean_square(self) -> float:
        """Mean of the squares; raises `ValueError` where there are no values."""
        self._need_values()
        return math.fsum(scale.square_sum for scale in self.scales.values()) / self.count

    @property
    def channel_mean_square(self) -> Floats | None:
        """float64 (channels,): mean of the squares; None where no channels were counted."""
        sums = self._channel_square_sum
        return None if sums is None else sums * (len(sums) / self.count)

    def add(self, values: Float32s, scale: int = 0, channel_axis: int | None = -1) -> None:
        """Count the values of a tensor; nothing is changed where it is refused.

        Up to 5 ns a value on one core of an EPYC (Zen 5). Channels that lie last in memory and are fewer than 16 take
        up to four times as long.

        Args:
            values: float32, of any shape and strides; no copy of the whole is made.
            scale: the scale of the model at which they were seen.
            channel_axis: the axis of the channels, the same number of them each time; None keeps no channel figures.

        Raises:
            ValueError: a NaN or infinity, another dtype, or other channels than before.

        """
        if values.dtype != np.float32:
            raise ValueError(f"float32 values are counted, not {values.dtype}")
        if values.size == 0:
            return
        table = np.atleast_1d(values) if channel_axis is None else np.moveaxis(values, channel_axis, -1)
        channels = None if channel_axis is None else table.shape[-1]
        self._check_channels(channels)
        across = None if channels is None else tuple(range(table.ndim - 1))
        with np.errstate(invalid="ignore"):
            lows, highs = np.min(table, axis=across), np.max(table, axis=across)
            low, high = float(np.min(lows)), float(np.max(highs))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = sum(block.size - int(np.isfinite(block).sum()) for block in _blocks(table, channels is not None))
            raise ValueError(f"{bad} of {values.size} values are NaN or infinite")
        self._grow(_exponent_of(max(-low, high)))
        square_sums = self._count(table, channels)
        self._merge_scale(scale, ScaleFigures(values.size, low, high, float(np.sum(square_sums))))
        if channels is not None:
            self._merge_channels(np.maximum(-lows, highs), square_sums)

    def merge(self, other: Statistics) -> None:
        """Take in the values of another one, as if they had been added here; `ValueError` if its channels differ."""
        if not other.scales:
            return
        self._check_channels(None if other.channel_abs_max is None else len(other.channel_abs_max))
        self._grow(other.exponent)
        self.counts += _regridded(other.counts, self.exponent - other.exponent)
        for scale, figures in other.scales.items():
            self._merge_scale(scale, figures)
        if other.channel_abs_max is not None and other._channel_square_sum is not None:
            self._merge_channels(other.channel_abs_max, other._channel_square_sum)

    def to_dict(self, *, exact: bool = False) -> dict[str, Any]:
        """Plain JSON types. Counts, minima and maxima are exact, mean squares have 9 digits, channel figures 6.

        `exact`: all digits of everything, so that what is added later gives what it would have given here.
        """
        wide, narrow = (17, 17) if exact else (9, 6)
        used = np.flatnonzero(self.counts)
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        channels = None
        if self.channel_abs_max is not None and self.channel_mean_square is not None:
            channels = [_rounded(self.channel_abs_max, narrow), _rounded(self.channel_mean_square, narrow)]
        return {
            "scales": {
                str(scale): [figures.count, *_rounded([figures.minimum, figures.maximum, figures.mean_square], wide)]
                for scale, figures in sorted(self.scales.items())
            },
            "histogram": [self.exponent, first, *self.counts[first:end].tolist()],
            "channels": channels,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Statistics:
        """What `to_dict` wrote; `ValueError` where it cannot have."""
        try:
            return cls._parse(record)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"this is no record of statistics: {error}") from error

    @classmethod
    def _parse(cls, record: dict[str, Any]) -> Statistics:
        made = cls()
        for scale, (count, low, high, mean_square) in record["scales"].items():
            low, high = (float(np.float32(value)) for value in (low, high))
            if not (count > 0 and -math.inf < low <= high < math.inf and 0 <= mean_square < math.inf):
                raise ValueError(f"figures of scale {scale}")
            made.scales[int(scale)] = ScaleFigures(int(count), low, high, mean_square * count)
        exponent, first, *counts = record["histogram"]
        made.exponent = int(exponent)
        top = max(-made.minimum, made.maximum) if made.scales else 0.0
        if made.exponent != _exponent_of(top) or first < 0 or first + len(counts) > BINS or min(counts, default=0) < 0:
            raise ValueError("histogram")
        made.counts[first : first + len(counts)] = counts
        if made.counts.sum() != made.count:
            raise ValueError("counts")
        if record["channels"] is not None:
            abs_max, mean_square = (np.array(figures, np.float64) for figures in record["channels"])
            if abs_max.ndim != 1 or abs_max.shape != mean_square.shape or not len(abs_max) or not made.scales:
                raise ValueError("channels")
            if not (np.isfinite([abs_max, mean_square]).all() and min(abs_max.min(), mean_square.min()) >= 0):
                raise ValueError("channels")
            made.channel_abs_max = abs_max.astype(np.float32)
            made._channel_square_sum = mean_square * (made.count / len(mean_square))
        return made

    def _count(self, table: Float32s, channels: int | None) -> Floats:
        """Put the values into their bins; returns the sum of squares, float64 () or (channels,)."""
        square_sums = np.zeros(() if channels is None else channels)
        shrink = np.float32(2.0**-self.exponent)
        for block in _blocks(table, channels is not None):
            rows = block.reshape(-1) if channels is None else block.reshape(-1, channels)
            squares = rows.astype(np.float64)
            square_sums += np.dot(squares, squares) if channels is None else np.einsum("nc,nc->c", squares, squares)
            places = rows.reshape(-1)
            if self.exponent > 0:  # or a tiny negative value would vanish in the product, and leave its bin
                places = np.floor(places)
            places = places * shrink  # exact: a power of two
            np.floor(places, out=places)
            places += np.float32(_ZERO_BIN)
            self.counts += np.bincount(places.astype(np.intp), minlength=BINS)
        return square_sums

    def _grow(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _regridded(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def _merge_scale(self, scale: int, figures: ScaleFigures) -> None:
        empty = ScaleFigures(0, math.inf, -math.inf, 0.0)
        self.scales.setdefault(scale, empty).merge(figures)

    def _merge_channels(self, abs_max: Float32s, square_sum: Floats) -> None:
        if self.channel_abs_max is None or self._channel_square_sum is None:
            self.channel_abs_max, self._channel_square_sum = np.zeros_like(abs_max), np.zeros_like(square_sum)
        self.channel_abs_max = np.maximum(self.channel_abs_max, abs_max)
        self._channel_square_sum = self._channel_square_sum + square_sum

    def _check_channels(self, channels: int | None) -> None:
        known = None if self.channel_abs_max is None else len(self.channel_abs_max)
        if self.scales and channels != known:
            raise ValueError(f"{channels or 'no'} channels after {known or 'none'}")

    def _need_values(self) -> None:
        if not self.scales:
            raise ValueError("never reached: the tensor had no values")


def choose_range(
    statistics: Statistics, method: str, *, symmetric: bool, percentile: float = 99.99
) -> tuple[float, float]:
    """The range that 8-bit quantisation is to cover, per tensor.

    - minmax: all values.
    - percentile: all but (100 - percentile) % of them, half at each end; symmetric: by magnitude.
    - entropy: the thresholds with which the histogram and its quantised form differ least in KL divergence (Migacz
      2017, "8-bit Inference with TensorRT"). As there, none lies below 128 bins, here an eighth to a quarter of the
      larger extreme: outliers beyond that are better left to mse.
    - mse: the range with the least expected squared error, of rounding inside and of clipping outside.

    Args:
        statistics: of the tensor.
        method: one of `METHODS`.
        symmetric: about zero, for int8; else for uint8 with a zero point.
        percentile: above 0, up to 100; of that method alone.

    Returns:
        low <= 0 <= high in the unit of the tensor, inside its extremes and 0; symmetric: low = -high. Both are 0 where
        all values are.

    Raises:
        ValueError: no values, an unknown method or a percentile outside.

    """
    if method not in METHODS:
        raise ValueError(f"the methods are {', '.join(METHODS)}, not {method}")
    if not 0 < percentile <= 100:
        raise ValueError(f"a percentile lies above 0 and up to 100, got {percentile}")
    low, high = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    if symmetric:
        high = max(-low, high)
        low = 0.0 - high
    if method == "percentile":
        clipped = _percentile_range(statistics, 1 - percentile / 100, symmetric)
    elif method == "entropy":
        clipped = _entropy_range(statistics, symmetric)
    elif method == "mse":
        clipped = _mse_range(statistics, symmetric, low, high)
    else:
        clipped = low, high
    return max(low, min(clipped[0], 0.0)), min(high, max(clipped[1], 0.0))


def scale_and_zero_point(low: float, high: float, *, symmetric: bool) -> tuple[np.float32, int]:
    """Parameters of q = round(x / scale) + zero_point, as ONNX QuantizeLinear has them.

    Args:
        low: 0 or less.
        high: 0 or more.
        symmetric: int8 -127 to 127 over the larger of the two magnitudes; else uint8 0 to 255 over [low, high], moved
            by up to half a step so that 0 is a level.

    Returns:
        float32 scale, positive (1 for an empty range) and never denormal, and the zero point.

    """
    if not (-math.inf < low <= 0 <= high < math.inf):
        raise ValueError(f"a range is finite and holds 0, got {low} to {high}")
    if low == high:
        return np.float32(1.0), 0
    if symmetric:
        return np.float32(max(max(-low, high) / 127, _MIN_SCALE)), 0
    step = np.float32(max((high - low) / 255, _MIN_SCALE))
    return step, min(round(-low / float(step)), 255)


def _percentile_range(statistics: Statistics, tail: float, symmetric: bool) -> tuple[float, float]:
    """Cut the share `tail` of the values off; even inside a bin."""
    low, high = statistics.minimum, statistics.maximum
    counts, width = statistics.counts, 2.0**statistics.exponent
    edges = np.arange(-_ZERO_BIN, _ZERO_BIN + 1) * width
    if symmetric:
        counts, edges = _folded(counts), edges[_ZERO_BIN:]
        high = max(-low, high)
        low = 0.0
    below = np.concatenate([[0], np.cumsum(counts)]) / statistics.count
    levels = [0.0, 1 - tail] if symmetric else [tail / 2, 1 - tail / 2]
    first, last = np.interp(levels, below, np.clip(edges, low, high))
    return (-float(last), float(last)) if symmetric else (float(first), float(last))


def _entropy_range(statistics: Statistics, symmetric: bool) -> tuple[float, float]:
    """Least KL divergence. Symmetric: one threshold of the magnitudes, 128 levels, every bin tried.

    Asymmetric: 256 levels over the signed histogram; the best high for this low and the best low for that high in
    turns, from the full range on. Zeros are exact with every scale, so their peak must not vote: the two bins beside 0
    count at most as much as the larger of their neighbours.
    """
    counts, width = statistics.counts.astype(np.float64), 2.0**statistics.exponent
    beside = slice(_ZERO_BIN - 1, _ZERO_BIN + 1)
    counts[beside] = np.minimum(counts[beside], max(counts[_ZERO_BIN - 2], counts[_ZERO_BIN + 1]))
    if symmetric:
        magnitudes = _folded(counts)
        last = int(np.max(np.flatnonzero(magnitudes), initial=0)) + 1
        end = _least({end: _divergence(magnitudes, 0, end, 128) for end in range(last, _LEAST_BINS - 1, -1)}, last)
        return -end * width, end * width
    used = np.append(np.flatnonzero(counts), _ZERO_BIN)
    low, high = int(used.min()), int(used.max()) + 1
    lows, highs = _thinned(low, _ZERO_BIN - _LEAST_BINS), _thinned(_ZERO_BIN + _LEAST_BINS, high)
    for _ in range(_MAX_TURNS):
        before = low, high
        high = _least({end: _divergence(counts, low, end, 256) for end in reversed(highs) if end - low >= 256}, high)
        low = _least({first: _divergence(counts, first, high, 256) for first in lows if high - first >= 256}, low)
        if (low, high) == before:
            break
    return (low - _ZERO_BIN) * width, (high - _ZERO_BIN) * width


def _divergence(counts: Floats, first: int, end: int, levels: int) -> float:
    """KL(P || Q) in nats over bins [first, end).

    P counts what is outside in the outermost bin that holds any (the paper: in the outermost bin, where Q has nothing
    if it is empty). Q spreads what a level holds evenly over those of its bins that hold any.
    """
    window = counts[first:end]
    nonzero = window > 0
    if not nonzero.any():
        return math.inf
    size = end - first
    starts = -(-np.arange(levels) * size // levels)
    means = np.add.reduceat(window, starts) / np.maximum(np.add.reduceat(nonzero.astype(np.float64), starts), 1)
    shown = np.repeat(means, np.diff(starts, append=size))[nonzero]
    held = window[nonzero]
    held[0] += counts[:first].sum()
    held[-1] += counts[end:].sum()
    total = held.sum()
    return float((held * np.log(held / shown)).sum() / total + math.log(shown.sum() / total))


def _mse_range(statistics: Statistics, symmetric: bool, low: float, high: float) -> tuple[float, float]:
    """Least expected squared error, values even inside their bins: a search over all ranges, then around the best."""
    used = np.flatnonzero(statistics.counts)
    edges = np.union1d(used, used + 1)  # bins, and gaps that hold nothing
    counts = statistics.counts[edges[:-1]].astype(np.float64)
    places = (edges - _ZERO_BIN).astype(np.float64)
    width = 2.0**statistics.exponent
    extremes = np.array([low, high]) / width
    if not extremes.any():
        return low, high
    one_end = symmetric or not extremes.all()
    least, best = math.inf, extremes
    for candidates in (_coarse_ranges, _fine_ranges):
        for _ in range(_MAX_TURNS):
            ranges = candidates(best, extremes, one_end)
            errors = _quantisation_errors(counts, places, ranges, symmetric)
            first = int(np.argmin(errors))
            if errors[first] >= least:
                break
            least, best = float(errors[first]), ranges[first]
    return float(best[0]) * width, float(best[1]) * width


def _coarse_ranges(best: Floats, extremes: Floats, one_end: bool) -> Floats:
    """Both ends by one factor; or either end, with the other as it is: the error is nearly convex in the two."""
    both = extremes * _COARSE[:, None]
    if one_end:
        return both
    low, high = both.copy(), both.copy()
    low[:, 1], high[:, 0] = best[1], best[0]
    return np.concatenate([both, low, high])


def _fine_ranges(best: Floats, extremes: Floats, one_end: bool) -> Floats:
    """Other widths; and other zero points, since a few levels below 0 (GELU) leave a local minimum at each of them."""
    if one_end:
        return np.clip(best * _FINEST[:, None], extremes[0], extremes[1])
    span = best[1] - best[0]
    zero_points = np.rint(-255 * best[0] / span) + np.arange(-4, 5)
    spans, zero_points = (grid.ravel() for grid in np.meshgrid(span * _FINE, np.clip(zero_points, 0, 255)))
    lows = np.maximum(-zero_points / 255 * spans, extremes[0])
    return np.stack([lows, np.clip(lows + spans, 0, extremes[1])], axis=1)


def _quantisation_errors(counts: Floats, edges: Floats, ranges: Floats, symmetric: bool) -> Floats:
    """Expected squared error of each range, in squares of the bins' width.

    With q the nearest level of x, the integral of (x - q * step)^2 from 0 is step^3 * (q / 12 + (x / step - q)^3 / 3):
    every whole step adds step^3 / 12, what is over a cube. It holds beyond the last level too, where q stays.

    Args:
        counts: float64 (bins,)
        edges: float64 (bins + 1,), one apart, further where there is nothing between
        ranges: float64 (candidates, 2), low and high
        symmetric: which of the two kinds of levels

    Returns:
        float64 (candidates,)

    """
    lows, highs = ranges[:, :1], ranges[:, 1:]
    if symmetric:
        steps, first, last = highs / 127, np.full_like(highs, -127), np.full_like(highs, 127)
    else:
        steps = (highs - lows) / 255
        first = np.maximum(np.rint(lows / steps), -255)
        last = first + 255
    places = edges / steps
    nearest = np.clip(np.rint(places), first, last)
    integrals = steps**3 * (nearest / 12 + (places - nearest) ** 3 / 3)
    errors: Floats = np.diff(integrals, axis=1) @ counts / counts.sum()
    return errors


def _least(costs: Mapping[int, float], otherwise: int) -> int:
    """The candidate of least cost, the first of equal ones; `otherwise` where there is none."""
    return min(costs, key=costs.__getitem__, default=otherwise)


def _thinned(first: int, last: int) -> Sequence[int]:
    """At most `_ENTROPY_CANDIDATES` and both ends of them, evenly."""
    step = max(1, -(-(last - first) // (_ENTROPY_CANDIDATES - 1)))
    return [*range(first, last, step), last] if first <= last else []


def _folded(counts: NDArray[Any]) -> NDArray[Any]:
    """Histogram of the magnitudes (BINS/2,) of a signed one (BINS,)."""
    folded: NDArray[Any] = counts[_ZERO_BIN:] + counts[_ZERO_BIN - 1 :: -1]
    return folded


def _exponent_of(magnitude: float) -> int:
    return max(math.frexp(magnitude)[1] - _MAGNITUDE_BITS, MIN_EXPONENT) if magnitude else MIN_EXPONENT


def _regridded(counts: Counts, doublings: int) -> Counts:
    """The same counts in bins 2^doublings as wide."""
    if not doublings:
        return counts
    places = np.arange(-_ZERO_BIN, _ZERO_BIN) >> min(doublings, _MAGNITUDE_BITS)
    coarse = np.zeros_like(counts)
    np.add.at(coarse, places + _ZERO_BIN, counts)
    return coarse


def _blocks(table: Float32s, keep_last: bool) -> Iterator[Float32s]:
    """Parts of at most `_BLOCK` values; the last axis stays whole where asked. Cut where strides are largest."""
    axes = [axis for axis in range(table.ndim - keep_last) if table.shape[axis] > 1]
    if table.size <= _BLOCK or not axes:
        yield table
        return
    axis = max(axes, key=lambda axis: abs(table.strides[axis]))
    for part in np.array_split(table, 2, axis):
        yield from _blocks(part, keep_last)


def _rounded(values: Any, digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]
