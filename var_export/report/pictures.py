"""Images as part of a page: data URIs within a number of bytes, and what differs between two images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.pictures.images import resized

if TYPE_CHECKING:
    from engines.pictures.images import Picture

BUDGET = 2_300_000
"""Bytes for all images of a page, as base64."""
FINE = 192  # pixels: a smaller image is shown pixel by pixel, larger than it is
AMPLIFICATIONS = (128, 64, 32, 16, 8, 4, 2, 1)
QUALITY = 90
SMALLEST = 128  # pixels along a side, that images are reduced to before some are left out


def difference(a: Picture, b: Picture) -> NDArray[np.uint8]:
    """How far apart two images (h, w, 3) are, channel by channel."""
    apart: NDArray[np.uint8] = np.abs(a.astype(np.int16) - b).astype(np.uint8)
    return apart


def amplification(differences: Sequence[NDArray[np.uint8]]) -> int:
    """The power of two that shows the 99th percentile of what differs as bright as can be; 1 where nothing does."""
    if not any(each.any() for each in differences):
        return 1
    typical = max(float(np.percentile(each, 99)) for each in differences)
    return next(factor for factor in AMPLIFICATIONS if factor * typical <= 255 or factor == 1)


def amplified(differences: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Differences made brighter by a factor, up to white."""
    return np.minimum(differences.astype(np.int32) * factor, 255).astype(np.uint8)


def encode(images: Sequence[Picture], budget: int = BUDGET) -> tuple[list[str], str] | None:
    """Images (h, w, 3) as data URIs of WebP, within `budget` bytes, and what was done to make them fit, in words.

    Without loss and words where that fits; else slightly compressed, then smaller. None where even that is too much.
    """
    side = max((image.shape[0] for image in images), default=0)
    sources = _sources(images, side, budget, lossless=True)
    if sources is not None:
        return sources, ""
    size = side
    while size >= min(SMALLEST, side):
        sources = _sources(images, size, budget, lossless=False)
        if sources is not None:
            smaller = "" if size == side else f" and reduced from {side} to {size} pixels"
            note = f"To keep this page small, the pictures in it are compressed{smaller}; "
            return sources, note + "every figure was taken from the originals."
        size //= 2
    return None


def _sources(images: Sequence[Picture], side: int, budget: int, *, lossless: bool) -> list[str] | None:
    found = []
    for image in images:
        height, width = (max(1, round(length * side / image.shape[0])) for length in image.shape[:2])
        data = _webp(resized(image, width, height), lossless)
        found.append("data:image/webp;base64," + base64.b64encode(data).decode("ascii"))
        budget -= len(found[-1])
        if budget < 0:
            return None
    return found


def _webp(image: NDArray[np.uint8], lossless: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="WEBP", lossless=lossless, quality=100 if lossless else QUALITY, method=4)
    return file.getvalue()
