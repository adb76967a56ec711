"""The ranges for INT8 that are chosen from an activation's statistics.

For uniform 8-bit quantisation, per tensor (Krishnamoorthi 2018, arXiv:1806.08342, sections 2 and 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.statistics import ZERO_BIN, Floats, Statistics
from engines.spec.choices import RANGES

_MIN_SCALE = float(np.finfo(np.float32).tiny)
_LEAST_BINS = 128  # below a threshold: with fewer, the histogram shows no rounding
_ENTROPY_CANDIDATES = 128  # thresholds tried for one side of an asymmetric range, in one turn
_MAX_TURNS = 16
# Factors: 6 to the octave, then 1 % apart for two ends and 0.1 % for one, which is cheap. For two, half as many cost up
# to 1 % more error and twice as many gain 0.2 % (normal, GELU and heavy-tailed samples).
_COARSE = np.geomspace(2.0**-10, 1.0, 61)
_FINE = np.geomspace(2 ** (-1 / 6), 2 ** (1 / 6), 25)
_FINEST = np.geomspace(2 ** (-1 / 6), 2 ** (1 / 6), 201)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """How the ranges of activations are chosen: the arguments of `choose_range`."""

    method: str = "mse"
    percentile: float = 99.99


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
        method: one of `engines.spec.choices.RANGES`.
        symmetric: about zero, for int8; else for uint8 with a zero point.
        percentile: above 0, up to 100; of that method alone.

    Returns:
        low <= 0 <= high in the unit of the tensor, inside its extremes and 0; symmetric: low = -high. Both are 0 where
        all values are.

    Raises:
        ValueError: no values, an unknown method or a percentile outside.

    """
    if method not in RANGES:
        raise ValueError(f"the methods are {', '.join(RANGES)}, not {method}")
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
    edges = np.arange(-ZERO_BIN, ZERO_BIN + 1) * width
    if symmetric:
        counts, edges = _folded(counts), edges[ZERO_BIN:]
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
    beside = slice(ZERO_BIN - 1, ZERO_BIN + 1)
    counts[beside] = np.minimum(counts[beside], max(counts[ZERO_BIN - 2], counts[ZERO_BIN + 1]))
    if symmetric:
        magnitudes = _folded(counts)
        last = int(np.max(np.flatnonzero(magnitudes), initial=0)) + 1
        end = _least({end: _divergence(magnitudes, 0, end, 128) for end in range(last, _LEAST_BINS - 1, -1)}, last)
        return -end * width, end * width
    used = np.append(np.flatnonzero(counts), ZERO_BIN)
    low, high = int(used.min()), int(used.max()) + 1
    lows, highs = _thinned(low, ZERO_BIN - _LEAST_BINS), _thinned(ZERO_BIN + _LEAST_BINS, high)
    for _ in range(_MAX_TURNS):
        before = low, high
        high = _least({end: _divergence(counts, low, end, 256) for end in reversed(highs) if end - low >= 256}, high)
        low = _least({first: _divergence(counts, first, high, 256) for first in lows if high - first >= 256}, low)
        if (low, high) == before:
            break
    return (low - ZERO_BIN) * width, (high - ZERO_BIN) * width


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
    places = (edges - ZERO_BIN).astype(np.float64)
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
    folded: NDArray[Any] = counts[ZERO_BIN:] + counts[ZERO_BIN - 1 :: -1]
    return folded
