"""Pictures of many pictures: grids, labelled or not, and strips.

Images are uint8 arrays of shape (h, w, 3), RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from engines.errors import UsageError
from engines.pictures.images import Picture

PADDING = 2
MAX_GRID_PIXELS = 80_000_000  # Pillow warns about files beyond 89 million when they are opened again
_LETTER = 11  # pixels of the smallest letters
_INK = (40, 40, 40)


@dataclass(frozen=True)
class Layout:
    """How the images of a grid lie: in rows, from the top left."""

    columns: int | None = None
    """None: as many as make the grid nearly square."""
    above: tuple[str, ...] = ()
    """What is written above the columns."""
    beside: tuple[str, ...] = ()
    """What is written to the left of the rows."""

    def shape(self, count: int) -> tuple[int, int]:
        """Rows and columns of a grid of `count` images."""
        columns = self.columns or math.ceil(math.sqrt(count))
        return math.ceil(count / columns), columns

    def size(self, count: int, side: int) -> tuple[int, int]:
        """Width and height, in pixels, of a grid of `count` images of `side` pixels, without labels."""
        rows, columns = self.shape(count)
        return columns * (side + PADDING) + PADDING, rows * (side + PADDING) + PADDING

    def fits(self, count: int, side: int) -> bool:
        """Whether a grid of `count` images of `side` pixels is small enough to be opened again."""
        width, height = self.size(count, side)
        return width * height <= MAX_GRID_PIXELS

    def check(self, count: int, side: int) -> None:
        """Raise `UsageError` unless `fits`."""
        if not self.fits(count, side):
            width, height = self.size(count, side)
            most = ((math.isqrt(MAX_GRID_PIXELS) - PADDING) // (side + PADDING)) ** 2
            raise UsageError(
                f"a grid of {count} images would have {width} x {height} pixels: --grid takes up to {most} images"
            )


SQUARE = Layout()


def grid(images: Iterable[Picture], count: int, layout: Layout = SQUARE) -> Picture:
    """`count` images (h, w, 3) in rows, `PADDING` white pixels around each, labels around them; (H, W, 3) uint8."""
    rows, columns = layout.shape(count)
    return _labelled(_tile(images, rows, columns), layout, rows, columns)


def strip(images: Iterable[Picture], count: int) -> Picture:
    """`count` images (h, w, 3) side by side, `PADDING` white pixels around each; (H, W, 3) uint8."""
    return _tile(images, 1, count)


def _tile(images: Iterable[Picture], rows: int, columns: int) -> Picture:
    canvas: Picture | None = None
    for position, image in enumerate(images):
        height, width = image.shape[0] + PADDING, image.shape[1] + PADDING
        if canvas is None:
            canvas = np.full((rows * height + PADDING, columns * width + PADDING, 3), 255, np.uint8)
        top, left = position // columns * height + PADDING, position % columns * width + PADDING
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    if canvas is None:
        raise UsageError("a grid needs one image or more")
    return canvas


def _labelled(tiles: Picture, layout: Layout, rows: int, columns: int) -> Picture:
    """Tiles with labels above and beside them, as large as fits: an image of more pixels gets larger letters."""
    if not layout.above and not layout.beside:
        return tiles
    from PIL import Image, ImageDraw, ImageFont

    height, width = ((size - PADDING) / n for size, n in zip(tiles.shape[:2], (rows, columns), strict=True))
    letter = max(_LETTER, round(min(height, width) / 14))
    font = ImageFont.load_default(letter)
    left = round(max((font.getlength(text) for text in layout.beside), default=0)) + (letter if layout.beside else 0)
    above = [_wrapped(text, font.getlength, width) for text in layout.above]
    top = max((len(lines) for lines in above), default=0) * round(1.4 * letter) + (letter // 2 if above else 0)
    picture = Image.new("RGB", (tiles.shape[1] + left, tiles.shape[0] + top), "white")
    picture.paste(Image.fromarray(tiles), (left, top))
    draw = ImageDraw.Draw(picture)
    for column, lines in enumerate(above):
        where = left + PADDING / 2 + (column + 0.5) * width, top - letter // 4
        draw.multiline_text(where, "\n".join(lines), _INK, font, anchor="md", align="center")
    for row, text in enumerate(layout.beside):
        draw.text((left - letter // 2, top + PADDING / 2 + (row + 0.5) * height), text, _INK, font, anchor="rm")
    return np.asarray(picture)


def _wrapped(text: str, length: Callable[[str], float], width: float) -> list[str]:
    """The words of a text in lines that are no wider than `width`, where they can be."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
