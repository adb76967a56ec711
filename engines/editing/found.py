"""What a detector found in a picture, and which cells of the model's grid it covers together with boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.editing.canvas import Canvas
from engines.editing.mask import Box, Mask
from engines.errors import UsageError

Outline = NDArray[np.float64]
"""Corners x, y of a closed line, (n, 2), in pixels of the picture."""
_SHOWN = 8


@dataclass(frozen=True)
class Found:
    """An object in a picture."""

    box: Box
    """In pixels of the picture, and inside of it."""
    name: str
    """What the detector calls it."""
    number: str
    """The number of its class."""
    score: float = 1.0
    """How sure the detector is, up to 1."""
    paint: Callable[[Mask], None] | None = field(default=None, compare=False)
    """Sets the object's pixels in a mask of the picture's size, bool (height, width); None: only its box is known."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def number(self) -> str: ...
    @property
    def score(self) -> float: ...


Named = TypeVar("Named", bound=_Named)


class NothingFoundError(UsageError):
    """No object is left of what a detector found in one picture; in other pictures there may be."""


def chosen(
    found: Sequence[Named], source: str, picture: str, *, objects: Sequence[str] = (), score: float | None = None
) -> list[Named]:
    """Those of `found` that are wanted.

    Args:
        found: objects of one picture.
        source: how messages call where they are from.
        picture: how they call the picture.
        objects: names or numbers of classes, any case; all where empty.
        score: the least that is wanted; None: any.

    Raises:
        NothingFoundError: none is left.
    """
    wanted = {name.strip().casefold() for name in objects}
    left = [item for item in found if not wanted or wanted & {item.name.casefold(), item.number}]
    left = [item for item in left if score is None or item.score >= score]
    if not left:
        there = ", ".join(sorted({item.name for item in found})[:_SHOWN])
        best = max((item.score for item in found), default=0.0)
        raise NothingFoundError(
            f"no detection is left of {source}: it has {len(found)} of {picture}"
            + (f" ({there}; scores up to {best:g})" if found else "")
        )
    return left


def cells_of(
    canvas: Canvas,
    side: int,
    *,
    boxes: Sequence[Box] = (),
    found: Sequence[Found] = (),
    mask: Mask | None = None,
    grow: float = 0.0,
) -> Mask:
    """The cells of a grid, bool (side, side), that boxes, objects and a mask cover together.

    Args:
        canvas: how the picture became the model's square.
        side: cells of the model's grid along one side.
        boxes: in pixels of the picture; edges go to the nearest cell.
        found: objects with outlines count as a mask does, others as boxes do. Objects that the square does not show
            are left out if it shows others.
        mask: bool (h, w), of the picture's proportions; a cell counts where half of it is covered.
        grow: how much wider all of it becomes on each side: pixels of the picture, or below 1 a fraction of the
            picture's shorter side.

    Raises:
        UsageError: the square shows nothing of a box or of any object, or the mask has other proportions.
    """
    reach = grow if grow >= 1 else grow * min(canvas.width, canvas.height)
    seen = [item for item in found if canvas.shows(item.box)]
    if not seen:
        canvas.grid_of_boxes([item.box for item in found], side)  # raises what is to be said
    boxes = [*boxes, *(item.box for item in seen if item.paint is None)]
    grid = canvas.grid_of_boxes([(x0 - reach, y0 - reach, x1 + reach, y1 + reach) for x0, y0, x1, y1 in boxes], side)
    painted = [item.paint for item in seen if item.paint is not None]
    if mask is None and not painted:
        return grid
    pixels = np.zeros((canvas.height, canvas.width), np.bool_)
    if mask is not None:
        pixels |= canvas.mask_of_picture(mask)
    for paint in painted:
        paint(pixels)
    return grid | canvas.grid_of_mask(grown(pixels, round(reach)), side)


def grown(mask: Mask, reach: int) -> Mask:
    """A mask (h, w) and all pixels that are up to `reach` rows and columns away from it."""
    mask = mask.copy()
    for view in (mask, mask[::-1], mask.T, mask.T[::-1]):
        done = 0
        while done < reach:
            step = min(done + 1, reach - done)  # what was moved by 0 to `done` is moved once more, as a whole
            view[step:] |= view[:-step].copy()
            done += step
    return mask


def painter(outlines: Sequence[Outline]) -> Callable[[Mask], None]:
    """A `Found.paint` of what lies inside of any of these outlines."""

    def paint(mask: Mask) -> None:
        from PIL import Image, ImageDraw

        height, width = mask.shape
        inside = Image.new("L", (width, height))
        for outline in outlines:
            corners = (
                np.clip(outline, (-width, -height), (2 * width, 2 * height)) - 0.5
            )  # pixels have their centre at .5
            ImageDraw.Draw(inside).polygon([(x, y) for x, y in corners.tolist()], fill=1)
        mask |= np.asarray(inside).view(np.bool_)

    return paint
