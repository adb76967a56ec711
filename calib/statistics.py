"""Streaming statistics of an activation.

A `Statistics` holds what calibration needs to know of one tensor, in memory that does not grow with the number
of images: no activation is kept. Its histogram has a grid that depends on the largest magnitude alone, so the same
values give the same counts in whatever batches and order they come. The ranges are for uniform 8-bit
quantisation, per tensor (Krishnamoorthi 2018, arXiv:1806.08342, sections 2 and 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.foreign import MALFORMED

Float32s = NDArray[np.float32]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BINS = 2048
ZERO_BIN = BINS // 2  # begins at 0
_MAGNITUDE_BITS = ZERO_BIN.bit_length() - 1
# The finest width, whose inverse is a normal float32. Such a grid spans 2^-116: whatever is smaller than
# its bins is 0 to every kernel.
MIN_EXPONENT = -126
# 0.25 MB of float32 at a time, so that the buffers stay in the L2 cache: 260 M values/s; with a quarter or four times
# that 230 and 210 (one core of an EPYC, Zen 5).
_BLOCK = 1 << 16


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
        known = None if self.channel_abs_max is None else len(self.channel_abs_max)
        if self.scales and channels != known:
            raise ValueError(f"{channels or 'no'} channels after {known or 'none'}")
        across = None if channels is None else tuple(range(table.ndim - 1))
        with np.errstate(invalid="ignore"):
            lows, highs = np.min(table, axis=across), np.max(table, axis=across)
            low, high = float(np.min(lows)), float(np.max(highs))
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = sum(block.size - int(np.isfinite(block).sum()) for block in _blocks(table, channels is not None))
            raise ValueError(f"{bad} of {values.size} values are NaN or infinite")
        exponent = _exponent_of(max(-low, high))
        if exponent > self.exponent:
            self.counts = _regridded(self.counts, exponent - self.exponent)
            self.exponent = exponent
        square_sums = self._count(table, channels)
        empty = ScaleFigures(0, math.inf, -math.inf, 0.0)
        self.scales.setdefault(scale, empty).merge(ScaleFigures(values.size, low, high, float(np.sum(square_sums))))
        if channels is not None:
            self._merge_channels(np.maximum(-lows, highs), square_sums)

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
        except MALFORMED as error:
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
            places += np.float32(ZERO_BIN)
            self.counts += np.bincount(places.astype(np.intp), minlength=BINS)
        return square_sums

    def _merge_channels(self, abs_max: Float32s, square_sum: Floats) -> None:
        if self.channel_abs_max is None or self._channel_square_sum is None:
            self.channel_abs_max, self._channel_square_sum = np.zeros_like(abs_max), np.zeros_like(square_sum)
        self.channel_abs_max = np.maximum(self.channel_abs_max, abs_max)
        self._channel_square_sum = self._channel_square_sum + square_sum

    def _need_values(self) -> None:
        if not self.scales:
            raise ValueError("never reached: the tensor had no values")


def _exponent_of(magnitude: float) -> int:
    return max(math.frexp(magnitude)[1] - _MAGNITUDE_BITS, MIN_EXPONENT) if magnitude else MIN_EXPONENT


def _regridded(counts: Counts, doublings: int) -> Counts:
    """The same counts in bins 2^doublings as wide."""
    places = np.arange(-ZERO_BIN, ZERO_BIN) >> min(doublings, _MAGNITUDE_BITS)
    coarse = np.zeros_like(counts)
    np.add.at(coarse, places + ZERO_BIN, counts)
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
