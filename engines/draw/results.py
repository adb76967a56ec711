"""What `Pipeline.generate` and `Pipeline.stream` give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.draw.loop import Timings


@dataclass(frozen=True)
class Result:
    """Images of one call, in the order of its classes."""

    images: NDArray[np.uint8]
    """(B, h, w, 3) RGB."""
    tokens: NDArray[np.int64]
    """(B, T), token maps of all scales, coarse to fine."""
    drawn: NDArray[np.int64]
    """(B, T), what the sampler drew; differs from `tokens` only where tokens were forced."""
    classes: NDArray[np.int64]
    seeds: NDArray[np.uint64]
    timings: Timings
    """Seconds, summed over the batches."""


@dataclass(frozen=True)
class Preview:
    """Images as they stand after one scale: P of the B that are drawn."""

    scale: int
    images: NDArray[np.uint8]
    """(P, h, w, 3) RGB."""
    tokens: NDArray[np.int64]
    """(P, tokens so far)."""
    final: bool
    which: NDArray[np.int64]
    """(P,), the places of these images in the call; all of them unless each has preview scales of its own."""
    timings: Timings | None = None
    """Seconds of the whole call without the decodes of earlier previews; given with the final images."""
