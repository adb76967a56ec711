"""Boxes as a user types them."""

from __future__ import annotations

import math

from engines.editing.mask import Box
from engines.errors import UsageError


def parse_box(text: str, width: int, height: int) -> Box:
    """A box written as `x0,y0,x1,y1`, in pixels of a picture of this size.

    Four numbers from 0 to 1 are fractions of the picture. What reaches beyond it is cut off. Raises `UsageError`.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"the box {text!r} is not four numbers x0,y0,x1,y1") from None
    return inside((x0, y0, x1, y1), text, width, height, fractions=max(x0, y0, x1, y1) <= 1)


def inside(box: Box, text: str, width: int, height: int, *, fractions: bool) -> Box:
    """The box in pixels, cut to the picture. Raises `UsageError` where nothing is left of it."""
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)) or x0 >= x1 or y0 >= y1:
        raise UsageError(f"the box {text} has no area: x0 must be below x1, and y0 below y1")
    if fractions:
        x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise UsageError(f"the box {text} lies outside of the picture, which has {width} x {height} pixels")
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
