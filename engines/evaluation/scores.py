"""The figures of evaluators on features of a classifier: FID, sFID, Inception Score, KID, precision and recall.

As the evaluator of guided-diffusion (ADM, `evaluations/evaluator.py`) defines them, KID as its authors do. Numpy alone:
where features come from is `var_export.inception`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.evaluation.distances import Features, Gaussian, frechet

SPLIT = 5000
"""Images of a split of the Inception Score, in ADM's evaluator."""
NEIGHBOURS = 3
"""Which nearest neighbour bounds the ball around an image, for precision and recall."""
SUBSETS, SUBSET = 100, 1000
"""How many random subsets KID is the mean of, and their images."""
_BLOCK = 2048


@dataclass(frozen=True)
class Activations:
    """What Inception says of images."""

    pool: NDArray[np.float32]
    """The features of the last pooling, (N, 2048)."""
    spatial: NDArray[np.float32]
    """The first 7 channels of a layer of 17 x 17 cells, (N, 2023): of sFID."""
    logits: NDArray[np.float32]
    """What the last layer says of each class, before the softmax and without its bias, (N, 1008)."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of a set of images; one that the reference does not allow is None."""

    images: int
    inception_score: float
    inception_score_deviation: float
    """Between the splits; 0 of a single one."""
    splits: int
    """How many runs of `SPLIT` images the Inception Score is the mean of."""
    fid: float | None = None
    sfid: float | None = None
    kid: float | None = None
    """The squared maximum mean discrepancy, unbiased, mean over random subsets."""
    kid_deviation: float | None = None
    """Between the subsets."""
    precision: float | None = None
    """The share of the images that lie where images of the reference do."""
    recall: float | None = None
    """The share of the reference's images that lie where the images do."""


def inception_score(logits: NDArray[np.floating], split: int = SPLIT) -> tuple[float, float, int]:
    """The Inception Score (Salimans et al., 2016) of logits (N, C): mean and deviation over splits, and their number.

    Images are taken in their order, and the last split may have fewer, as in ADM's evaluator.
    """
    scores = []
    for start in range(0, len(logits), split):
        part = logits[start : start + split].astype(np.float64)
        logs = part - part.max(1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(1, keepdims=True))
        shares = np.exp(logs)
        # A class that no image has weighs nothing, and its logarithm would not be finite.
        marginal = np.log(np.maximum(shares.mean(0), np.finfo(np.float64).tiny))
        scores.append(np.exp((shares * (logs - marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores)), len(scores)


def kid(
    one: Features, other: Features, *, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0
) -> tuple[float, float]:
    """The Kernel Inception Distance (Binkowski et al., 2018) of features (N, D) and (M, D): mean and deviation.

    The unbiased squared MMD with the kernel (x y / D + 1)^3 over random subsets of up to `size` images. It may be
    below 0.
    """
    rng, size = np.random.default_rng(seed), min(size, len(one), len(other))
    found = []
    for _ in range(subsets):
        x, y = (each[rng.choice(len(each), size, replace=False)].astype(np.float64) for each in (one, other))
        own = [_kernel(each, each) for each in (x, y)]
        within = sum(float(each.sum() - np.trace(each)) for each in own) / (size * (size - 1))
        found.append(within - 2 * float(_kernel(x, y).mean()))
    return float(np.mean(found)), float(np.std(found))


def precision_recall(images: Features, reference: Features, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019) of features (N, D) beside those of a reference (M, D).

    Precision is the share of the images in the ball of some image of the reference, whose radius is the distance to
    its k-th nearest neighbour among its own; recall is the same the other way round.
    """
    balls_of_images, balls_of_reference = _radii(images, neighbours), _radii(reference, neighbours)
    return _covered(images, reference, balls_of_reference), _covered(reference, images, balls_of_images)


def scores(
    own: Activations,
    *,
    pool: Gaussian | None = None,
    spatial: Gaussian | None = None,
    reference: Activations | None = None,
) -> Scores:
    """Every figure of a set of images that what is known of the reference allows.

    Args:
        own: of the images.
        pool: statistics of the reference's pooled features; by default those of `reference`.
        spatial: statistics of its spatial features; by default those of `reference`.
        reference: of its images.
    """
    mean, deviation, splits = inception_score(own.logits)
    found: dict[str, float] = {}
    if reference is not None:
        pool, spatial = pool or Gaussian.of(reference.pool), spatial or Gaussian.of(reference.spatial)
        found["kid"], found["kid_deviation"] = kid(own.pool, reference.pool)
        found["precision"], found["recall"] = precision_recall(own.pool, reference.pool)
    if pool is not None:
        found["fid"] = frechet(Gaussian.of(own.pool), pool)
    if spatial is not None:
        found["sfid"] = frechet(Gaussian.of(own.spatial), spatial)
    return Scores(
        images=len(own.pool), inception_score=mean, inception_score_deviation=deviation, splits=splits, **found
    )


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def _squared_distances(rows: Features, others: Features) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Block by block of the rows: the number of its first row, and the squared distances to all others, (b, M)."""
    wide = others.astype(np.float64)
    norms = (wide**2).sum(1)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK].astype(np.float64)
        yield start, np.maximum((part**2).sum(1)[:, None] + norms - 2 * part @ wide.T, 0)


def _radii(rows: Features, neighbours: int) -> NDArray[np.float64]:
    """The squared distance of each row to its k-th nearest neighbour among the others, (N,)."""
    radii = np.empty(len(rows))
    k = min(neighbours, len(rows) - 1)
    for start, distances in _squared_distances(rows, rows):
        places = np.arange(len(distances))
        distances[places, start + places] = 0  # itself comes first, whatever rounding says
        radii[start : start + len(distances)] = np.partition(distances, k, axis=1)[:, k]
    return radii


def _covered(rows: Features, centres: Features, radii: NDArray[np.float64]) -> float:
    """The share of the rows that lie in the ball of some centre."""
    inside = sum(int((distances <= radii).any(1).sum()) for _, distances in _squared_distances(rows, centres))
    return inside / len(rows)
