"""A picture of any size as the square that the model sees, and the model's square laid over the picture again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.editing.mask import Box, Mask, boxes_to_grid, pixels_to_grid
from engines.errors import UsageError
from engines.pictures.images import centred_square, resized
from engines.spec.choices import FITS
from engines.words import quoted

_BAND = 64  # rows
_ASPECT = 0.01  # by which a mask's proportions may miss the picture's: a pixel or two of rounding


@dataclass(frozen=True)
class Canvas:
    """How pictures of one size become squares of the model's size.

    `crop`: the largest centred square. `stretch`: the whole picture, squeezed. `pad`: the whole picture, its edge
    pixels repeated to a square.
    """

    width: int
    height: int
    size: int
    """Side of the model's images, in pixels."""
    fit: str

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"fit must be {', '.join(FITS)}, got {quoted(self.fit)}")

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Left, top, width and height, in pixels of the picture, of what the square shows."""
        if self.fit == "stretch":
            return 0, 0, self.width, self.height
        if self.fit == "crop":
            left, top, side = centred_square(self.width, self.height)
        else:
            side = max(self.width, self.height)
            left, top = -((side - self.width) // 2), -((side - self.height) // 2)
        return left, top, side, side

    def describe(self, name: str) -> str:
        """A line for people: what is done to the picture called `name`."""
        size = f"{name} has {self.width} x {self.height} pixels"
        scaled = f"at {self.size} x {self.size}"
        if self.width == self.height:
            return f"{size}: edited {scaled}"
        if self.fit == "crop":
            side = min(self.width, self.height)
            return (
                f"{size}: the square of {side} x {side} in its middle is edited, {scaled} (--fit pad takes all of it)"
            )
        how = "squeezed to a square" if self.fit == "stretch" else "its edges repeated to a square"
        return f"{size}: all of it is edited, {how}, {scaled}"

    def to_square(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the model sees of a picture: (height, width, 3) uint8 -> (size, size, 3) uint8."""
        return self._fitted(picture, mode="edge")

    def shows(self, box: Box) -> bool:
        """Whether the square shows a part of a box in pixels of the picture."""
        left, top, width, height = self.window
        return box[0] < left + width and box[2] > left and box[1] < top + height and box[3] > top

    def grid_of_boxes(self, boxes: Sequence[Box], side: int) -> Mask:
        """The cells of a grid, bool (side, side), that lie inside of boxes in pixels of the picture.

        Raises `UsageError` for a box of which the square shows nothing.
        """
        left, top, width, height = self.window
        squares = []
        for box in boxes:
            x0, x1 = (min(max((x - left) / width, 0.0), 1.0) for x in (box[0], box[2]))
            y0, y1 = (min(max((y - top) / height, 0.0), 1.0) for y in (box[1], box[3]))
            if x0 >= x1 or y0 >= y1:
                raise UsageError(
                    f"the box {_text(box)} lies outside of the {width} x {height} pixels in the middle: "
                    "--fit pad or --fit stretch takes all of the picture"
                )
            squares.append((x0, y0, x1, y1))
        return boxes_to_grid(squares, side)

    def grid_of_mask(self, mask: Mask, side: int) -> Mask:
        """The cells of a grid, bool (side, side), half of which a mask covers, bool (h, w) of the picture's shape.

        Raises `UsageError` for other proportions.
        """
        levels = np.where(self.mask_of_picture(mask), np.uint8(255), np.uint8(0))
        return pixels_to_grid(self._fitted(levels, mode="constant") >= 128, side)

    def mask_of_picture(self, mask: Mask) -> Mask:
        """A mask, bool (h, w), as bool (height, width) of the picture. Raises `UsageError` for other proportions."""
        h, w = mask.shape
        if (h, w) == (self.height, self.width):
            return mask
        if abs(w * self.height - h * self.width) > _ASPECT * w * self.height:
            raise UsageError(
                f"the mask has {w} x {h} pixels and the picture {self.width} x {self.height}: "
                "give a mask of the picture's size, or of its proportions"
            )
        return resized(np.where(mask, np.uint8(255), np.uint8(0)), self.width, self.height) >= 128

    def lay_over(self, picture: NDArray[np.uint8], square: NDArray[np.uint8], redrawn: Mask) -> NDArray[np.uint8]:
        """Lay what was redrawn over the picture; gives (height, width, 3) uint8.

        Args:
            picture: (height, width, 3) uint8.
            square: what the model made, (size, size, 3) uint8.
            redrawn: cells of the latent grid, bool (S, S). Their pixels are the model's, but for half a cell at an edge
                where the picture goes on beyond the square; those within half a cell of them are blended; all others
                stay what they are, bit for bit.

        """
        left, top, width, height = self.window
        x0, x1 = max(left, 0), min(left + width, self.width)
        y0, y1 = max(top, 0), min(top + height, self.height)
        alpha = feathered(redrawn, self.size)
        ramp = np.minimum((np.arange(self.size, dtype=np.float32) + 0.5) / (self.size / len(redrawn) / 2), 1)
        fade = ramp * ramp[::-1]
        if width < self.width:
            alpha = alpha * fade
        if height < self.height:
            alpha = alpha * fade[:, None]
        result = picture.copy()
        across = self.size / width
        down = self.size / height
        for y in range(y0, y1, _BAND):  # the whole square at the picture's size would take many times the picture
            end = min(y + _BAND, y1)
            part = ((x0 - left) * across, (y - top) * down, (x1 - left) * across, (end - top) * down)
            weight = resized(alpha, x1 - x0, end - y, part)[..., None]
            drawn = resized(square, x1 - x0, end - y, part)
            blended = picture[y:end, x0:x1] * (1 - weight) + drawn * weight
            result[y:end, x0:x1] = np.rint(blended).astype(np.uint8)
        return result

    def _fitted(self, picture: NDArray[np.uint8], mode: Any) -> NDArray[np.uint8]:
        """Cut the window out of (height, width, ...), and resize it to (size, size, ...).

        Where it reaches beyond the picture, it is padded as `np.pad` does; the longer side is resized before that.
        """
        left, top, width, height = self.window
        x, y = max(left, 0), max(top, 0)
        part = picture[y : min(top + height, self.height), x : min(left + width, self.width)]
        if part.shape[:2] == (height, width):
            return resized(part, self.size, self.size)
        before = (y - top, x - left)
        after = (height - part.shape[0] - before[0], width - part.shape[1] - before[1])
        edges = list(zip(before, after, strict=True)) + [(0, 0)] * (picture.ndim - 2)
        tall = height == part.shape[0]
        part = resized(part, *((part.shape[1], self.size) if tall else (self.size, part.shape[0])))
        return resized(np.pad(part, edges, mode=mode), self.size, self.size)


def feathered(redrawn: Mask, size: int) -> NDArray[np.float32]:
    """Weight of the model's pixels, float32 (size, size): 1 in cells (S, S) that were redrawn, 0 half a cell away.

    The blend lies outside of the redrawn cells, where both pictures show the same thing.
    """
    from PIL import Image, ImageFilter

    cell = size // len(redrawn)
    reach = max(1, cell // 4)
    pixels = np.kron(redrawn, np.full((cell, cell), 255, np.uint8))
    grown = Image.fromarray(pixels).filter(ImageFilter.MaxFilter(2 * reach + 1))
    return np.asarray(grown.filter(ImageFilter.BoxBlur(reach)), np.float32) / np.float32(255)


def _text(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)
