"""What a set of images is held against: images, or the statistics of theirs that ADM's evaluator keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import UsageError
from engines.evaluation.distances import Gaussian
from engines.evaluation.samples import IMAGES, Samples
from engines.foreign import names_in, read_arrays

POOL, SPATIAL = 2048, 2023
"""Features of an image that FID and sFID are taken on."""


@dataclass(frozen=True)
class ReferenceSet:
    """What is known of the reference."""

    pool: Gaussian | None
    """Statistics of the pooled features, 2048 of an image: `mu` and `sigma`."""
    spatial: Gaussian | None
    """Statistics of the spatial features, 2023 of an image: `mu_s` and `sigma_s`."""
    samples: Samples | None
    """The reference's images, `arr_0`, which KID, precision and recall need."""

    @classmethod
    def find(cls, path: Path) -> ReferenceSet:
        """Read an .npz file of ADM's format (statistics, images, or both), or look at a folder of pictures.

        Raises `UsageError` where it is neither.
        """
        if path.is_dir() or not path.exists():
            return cls(None, None, Samples.find(path))
        names = names_in(path)
        samples = Samples.find(path) if IMAGES in names else None
        found = cls(_statistics(path, names, "", POOL), _statistics(path, names, "_s", SPATIAL), samples)
        if found.pool is None and samples is None:
            raise UsageError(
                f"{path} has neither mu and sigma nor arr_0: give a reference in ADM's format, as "
                "VIRTUAL_imagenet256_labeled.npz, or images"
            )
        return found


def _statistics(path: Path, names: list[str], suffix: str, features: int) -> Gaussian | None:
    mean, covariance = f"mu{suffix}", f"sigma{suffix}"
    if mean not in names or covariance not in names:
        return None

    def accept(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        wanted = (features,) if name == mean else (features, features)
        if dtype.kind != "f" or shape != wanted:
            raise ValueError(f"{name} is {dtype} {shape}, and Inception's is {wanted}")

    arrays = read_arrays(path, (mean, covariance), accept, what="reference of ADM's format")
    if not all(np.isfinite(each).all() for each in arrays.values()):
        raise UsageError(f"{mean} or {covariance} of {path} is not finite: download it again")
    return Gaussian(arrays[mean].astype(np.float64), arrays[covariance].astype(np.float64))
