"""From a part of a picture to the tokens that are kept: everything outside of it, at every scale.

A redrawn area is a bool array, true where the model draws anew. The feature map has S x S cells, so that is how fine
an edit can be: 16 pixels of a 256 px model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.spec.config import ModelConfig

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""
Mask = NDArray[np.bool_]

_ALWAYS_KEPT = 3  # tokens of a scale: the 1 x 1 map is never redrawn


def boxes_to_grid(boxes: Sequence[Box], side: int) -> Mask:
    """Cells (side, side) inside of any of these boxes, given in fractions of the square.

    Edges go to the nearest cell, as `get_edit_mask` of the reference has it, so a small box may hold none.
    """
    grid = np.zeros((side, side), np.bool_)
    for x0, y0, x1, y1 in boxes:
        grid[round(y0 * side) : round(y1 * side), round(x0 * side) : round(x1 * side)] = True
    return grid


def pixels_to_grid(mask: Mask, side: int) -> Mask:
    """Cells (..., side, side) of which half the pixels of `mask` (..., n * side, n * side) are true, or more."""
    n = mask.shape[-1] // side
    return np.asarray(mask.reshape(*mask.shape[:-2], side, n, side, n).mean(axis=(-3, -1)) >= 0.5)


def check_area(grid: Mask) -> None:
    """Raises `UsageError` where an area, cells (..., S, S), is nothing or everything: there would be no edit."""
    side = grid.shape[-1]
    if not grid.any(axis=(-2, -1)).all():
        raise UsageError(
            f"the area is empty, or too small for the model's {side} x {side} cells: make it larger "
            "(of a mask, white counts)"
        )
    if grid.all(axis=(-2, -1)).any():
        raise UsageError("the area is the whole picture: make it smaller")


def kept_tokens(config: ModelConfig, redrawn: Mask) -> Mask:
    """Which tokens are taken from the picture.

    Args:
        config: the model.
        redrawn: bool (B, S, S), cells of the latent grid.

    Returns:
        bool (B, T), token maps of all scales, coarse to fine: a cell of a scale is kept where the bilinear resize of
        what is kept exceeds one half; scales of up to 3 cells are kept whole. `replace_embedding` of the reference.

    """
    scales = []
    for side in config.patch_nums:
        kept = np.ones((len(redrawn), side, side), np.bool_)
        if side * side > _ALWAYS_KEPT:
            kept = resize_bilinear(~redrawn, side) > 0.5
        scales.append(kept.reshape(len(redrawn), -1))
    return np.concatenate(scales, axis=1)


def resize_bilinear(values: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Squares (B, S, S) resized to (B, side, side) as torch does: `bilinear`, corners not aligned, no antialiasing.

    In float32, operation by operation: where a cell is half covered, as happens from 16 to 13 cells, the last bit
    decides. Where a pixel comes from is rounded once, as a fused multiply-add does in torch's vectorised code.
    """
    one, size = np.float32(1), values.shape[-1]
    scale = np.float64(np.float32(size) / np.float32(side))
    source = np.maximum((scale * (np.arange(side) + 0.5) - 0.5).astype(np.float32), 0)
    low = np.minimum(source.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    upper = source - low.astype(np.float32)
    lower = one - upper
    values = values.astype(np.float32)
    rows = values[:, :, low] * lower + values[:, :, high] * upper
    resized: NDArray[np.float32] = rows[:, low] * lower[:, None] + rows[:, high] * upper[:, None]
    return resized
