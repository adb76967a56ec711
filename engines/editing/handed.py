"""Pictures and masks as Python callers hand them over, of any size: files, pictures of Pillow, arrays, or lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.editing.canvas import Canvas
from engines.editing.mask import Mask
from engines.errors import UsageError
from engines.pictures.images import Picture, load_mask, load_picture, mask_of, picture_of
from engines.spec.arrays import as_array
from engines.storage import expanded

if TYPE_CHECKING:
    from PIL import Image

    Handed = str | Path | Image.Image | NDArray[Any]
    Images = Handed | Sequence[Handed]
    """One picture or several: uint8 (h, w, 3) or (B, h, w, 3), RGB; files; pictures of Pillow."""
    Masks = Handed | Sequence[Handed]
    """One mask or several: bool (h, w) or (B, h, w), true where to redraw; files and pictures that are white there."""


def pictures_of(handed: Images) -> list[Picture]:
    """Pictures, each (h, w, 3) uint8 RGB. Raises `UsageError` where something else was handed over, or nothing."""
    pictures = [_picture(each) for each in _listed(handed, dimensions=3)]
    if not pictures:
        raise UsageError("nothing to do: there is no image")
    return pictures


def masks_of(handed: Masks) -> list[Mask]:
    """Masks, each (h, w) bool. Raises `UsageError` where something else was handed over, or nothing."""
    masks = [_mask(each) for each in _listed(handed, dimensions=2)]
    if not masks:
        raise UsageError("the mask must be bool (h, w), or several, got none")
    return masks


def squares_of(handed: Images, size: int, fit: str) -> NDArray[np.uint8]:
    """Pictures as the model sees them, (B, size, size, 3) uint8; `fit`: see `Canvas`. Raises as `pictures_of`."""
    pictures = pictures_of(handed)
    return np.stack([canvas_of(picture, size, fit).to_square(picture) for picture in pictures])


def canvas_of(picture: Picture, size: int, fit: str) -> Canvas:
    """How a picture (h, w, 3) becomes a square of `size`. Raises `UsageError` for an unknown `fit`."""
    return Canvas(picture.shape[1], picture.shape[0], size, fit)


def _listed(handed: Any, *, dimensions: int) -> list[Any]:
    """One for each of what was handed over; `dimensions`: of an array that is one."""
    if isinstance(handed, np.ndarray):
        return list(handed) if handed.ndim == dimensions + 1 else [handed]
    return list(handed) if isinstance(handed, list | tuple) else [handed]


def _picture(one: Any) -> Picture:
    if isinstance(one, str | Path):
        return load_picture(expanded(one))
    if hasattr(one, "getbands"):  # of Pillow, which need not be imported to ask
        return picture_of(one)
    array = as_array(one, "images")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise UsageError(f"images must be uint8 (h, w, 3), or several, got {array.dtype} {array.shape}")
    return array


def _mask(one: Any) -> Mask:
    if isinstance(one, str | Path):
        return load_mask(expanded(one))
    if hasattr(one, "getbands"):
        return mask_of(one)
    array = as_array(one, "the mask")
    if array.dtype != np.bool_ or array.ndim != 2 or not array.size:
        raise UsageError(f"the mask must be bool (h, w), or several, got {array.dtype} {array.shape}")
    return array
