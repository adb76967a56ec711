"""How far apart two sets of images are: by features, and by how often each token occurs.

Numpy alone, in float64; nothing here knows where features come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
"""A row of features for each image, (N, D)."""


@dataclass(frozen=True)
class Gaussian:
    """The mean and the covariance of features, which is all of them that a Fréchet distance sees."""

    mean: NDArray[np.float64]
    """(D,)."""
    covariance: NDArray[np.float64]
    """(D, D), divided by N - 1 as ADM's evaluator does."""

    @classmethod
    def of(cls, features: Features) -> Gaussian:
        """The statistics of features (N, D), of two images at least."""
        rows = features.astype(np.float64)
        mean = rows.mean(0)
        centred = rows - mean
        return cls(mean, centred.T @ centred / (len(rows) - 1))


def frechet(one: Gaussian, other: Gaussian) -> float:
    """The squared Fréchet distance of two Gaussians, as in FID (Heusel et al., 2017), in squared units of the features.

    |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)). With S1 = R R^T, the eigenvalues of S1 S2 are those of the
    symmetric R^T S2 R, so that no root of a matrix that is not symmetric has to be taken, which is where evaluators
    that call `scipy.linalg.sqrtm` on few images get complex numbers.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps  # of N images, no more than N - 1
    root = vectors[:, kept] * np.sqrt(values[kept])
    eigenvalues = np.linalg.eigvalsh(root.T @ other.covariance @ root)
    apart = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    return float(apart @ apart + traces - 2 * np.sqrt(np.clip(eigenvalues, 0, None)).sum())


def scale_histograms(
    tokens: NDArray[np.int64], scale_lengths: Sequence[int], vocabulary: int
) -> list[NDArray[np.float64]]:
    """How often each codebook entry occurs at each scale: for each scale the shares (V,), which sum to 1.

    Args:
        tokens: (N, T), coarse to fine.
        scale_lengths: tokens of each scale, which sum to T.
        vocabulary: V, the entries of the codebook.
    """
    parts = np.split(tokens, np.cumsum(scale_lengths)[:-1], axis=1)
    return [np.bincount(part.ravel(), minlength=vocabulary) / part.size for part in parts]


def total_variation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The share of tokens that would have to change for two histograms of shares (V,) to be one: from 0 to 1."""
    return float(np.abs(one - other).sum() / 2)
