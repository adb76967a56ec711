"""A distance between two sets beside the distance that chance alone makes: split halves, and the bootstrap.

A distance of finite sets is never 0, and is the larger the fewer images there are. So both sets are split in halves,
and two distances of the same size are taken:

    A = A1 + A2        distance: A1 to B2, and A2 to B1      (mean)
    B = B1 + B2        noise:    A1 to A2, and B1 to B2      (mean)

Their difference, the excess, is 0 but for chance where both sets come from one model, whatever the distance and the
number of images. Rows of A and of B are split alike. So where row i of both has one class, no half of one set is held
against a half with more equal classes than the halves of a set have; and where it has one seed too, what both share
cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.progress import Progress, Steps, silent

LEAST = 16
"""Fewer images of a set say nothing about it."""
SPLITS, REPLICATES, LEVEL = 20, 200, 0.95
"""How many random splits give a value; how many resampled ones its interval; the probability that this stands for."""

ROUNDING = 1e-6
"""The share of the noise by which a distance may differ from itself: a Fréchet distance does by 1e-8."""

Rows = NDArray[np.int64]
Summarise = Callable[[Rows], Any]
"""A function from the numbers of some images of a set, which may repeat, to what a distance needs to know of them."""


@dataclass(frozen=True)
class Apart:
    """A distance between two sets, with its noise; both of halves."""

    distance: float
    """Between a half of one set and a half of the other, mean over splits."""
    noise: float
    """Between the halves of one set, mean over splits and both sets."""
    low: float
    """Where the 95 % interval of the excess begins."""
    high: float
    """Where it ends."""

    @property
    def excess(self) -> float:
        """By how much the distance is more than noise."""
        return self.distance - self.noise

    @property
    def beyond_noise(self) -> bool:
        """Whether the sets differ by more than chance and rounding: the whole interval lies above 0."""
        return self.low > ROUNDING * self.noise


def hold_apart(
    one: Summarise,
    other: Summarise,
    counts: tuple[int, int],
    distance: Callable[[Any, Any], NDArray[np.float64]],
    *,
    splits: int = SPLITS,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Apart]:
    """Take distances between two sets, beside their noise, with bootstrap intervals.

    Args:
        one: what a distance needs to know of some images of the first set.
        other: the same of the second.
        counts: images of each.
        distance: from two summaries to as many distances (F,) as are wanted.
        splits: random splits that the values are means of.
        replicates: splits whose images are drawn with replacement, within their halves, for the intervals.
        seed: of both; the same seed gives the same figures.
        progress: told how far it is.

    Raises:
        UsageError: a set has fewer than `LEAST` images.
    """
    if min(counts) < LEAST:
        raise UsageError(f"a set has {min(counts)} images, and {LEAST} are needed at least: draw more")
    rng = np.random.default_rng(seed)
    taken: list[NDArray[np.float64]] = []  # (2, F) of each: distance and noise
    for number in range(splits + replicates):
        progress("comparing halves", Steps(number, splits + replicates))
        first = _halves(rng, counts[0], resampled=number >= splits)
        second = first if counts[0] == counts[1] else _halves(rng, counts[1], resampled=number >= splits)
        a, b = [one(rows) for rows in first], [other(rows) for rows in second]
        between = (distance(a[0], b[1]) + distance(a[1], b[0])) / 2
        within = (distance(*a) + distance(*b)) / 2
        taken.append(np.stack([between, within]))
    values = np.mean(taken[:splits], axis=0)
    excess = np.array([each[0] - each[1] for each in taken[splits:]])
    # Images that are drawn twice make noise that a distance which is no square does not add up: only the spread counts.
    low, high = np.quantile(excess, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) - excess.mean(0) + values[0] - values[1]
    return [Apart(*map(float, each)) for each in zip(values[0], values[1], low, high, strict=True)]


def _halves(rng: np.random.Generator, count: int, *, resampled: bool) -> tuple[Rows, Rows]:
    """The numbers of images in two halves, which share none; of an odd number of images, one is left out."""
    order = rng.permutation(count)
    size = count // 2
    halves = order[:size], order[size : 2 * size]
    if resampled:
        return rng.choice(halves[0], size), rng.choice(halves[1], size)
    return halves
