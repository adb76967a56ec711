"""Pictures in and out: PNG files with their settings inside, grids, strips, and images to encode.

Images are uint8 arrays of shape (h, w, 3), RGB. Pillow is imported when the first picture is touched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.foreign import open_picture
from engines.storage import atomic_write

if TYPE_CHECKING:
    from PIL import Image

Picture = NDArray[np.uint8]

PADDING = 2
MAX_GRID_PIXELS = 80_000_000  # Pillow warns about files beyond 89 million when they are opened again

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_TAIL = 4096
_MAX_16_BIT = 65535
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def save_png(path: Path, image: Picture, text: Mapping[str, str]) -> None:
    """Write `image` (h, w, 3) uint8 to `path` atomically, with `text` as PNG text chunks.

    Raises `UsageError` where the file cannot be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    with atomic_write(path) as file:
        Image.fromarray(image).save(file, format="PNG", pnginfo=info)


def read_png_text(path: Path) -> dict[str, str] | None:
    """The text chunks of a PNG file; None where `path` is no PNG file or was cut short."""
    if is_cut_short(path):
        return None
    try:
        with open_picture(path, ("PNG",)) as image:
            return {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
    except UsageError:
        return None


def is_cut_short(path: Path) -> bool:
    """Whether `path` is an empty file, or a PNG file without its end."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_PNG_START))
            if start != _PNG_START:
                return not start
            file.seek(-min(_TAIL, path.stat().st_size), os.SEEK_END)
            return _PNG_END not in file.read()  # some tools append to it
    except OSError:
        return False


def grid_shape(count: int) -> tuple[int, int]:
    """Rows and columns of a near-square grid of `count` images."""
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def check_grid(count: int, side: int) -> None:
    """Raise `UsageError` where a grid of `count` images of `side` pixels would be too large to open again."""
    rows, columns = grid_shape(count)
    height, width = (n * (side + PADDING) + PADDING for n in (rows, columns))
    if height * width > MAX_GRID_PIXELS:
        most = ((math.isqrt(MAX_GRID_PIXELS) - PADDING) // (side + PADDING)) ** 2
        raise UsageError(
            f"a grid of {count} images would have {width} x {height} pixels: --grid takes up to {most} images"
        )


def grid(images: Iterable[Picture], count: int) -> Picture:
    """`count` images (h, w, 3) in rows from the top left, `PADDING` white pixels around each; (H, W, 3) uint8."""
    rows, columns = grid_shape(count)
    return _tile(images, rows, columns)


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


def load_picture(path: Path) -> Picture:
    """A picture from a file, as it is seen; (h, w, 3) uint8.

    Turned as its EXIF data says, transparency laid on white. Grey, 16 bit, palette and CMYK pictures become RGB.
    Of an animation, the first frame.

    Raises:
        UsageError: the file is missing or is no picture that Pillow reads.
    """
    return np.asarray(_read(path))


def load_mask(path: Path) -> NDArray[np.bool_]:
    """A mask from a file, (h, w) bool: true where it is white, or lighter than grey. Read as `load_picture` does.

    What is transparent is false.
    """
    return np.asarray(_read(path, background="black").convert("L")) >= 128


def load_square(path: Path, size: int) -> Picture:
    """A picture from a file, ready to be encoded: its largest centred square, (size, size, 3) uint8.

    Raises `UsageError` as `load_picture`.
    """
    picture = load_picture(path)
    left, top, side = centred_square(picture.shape[1], picture.shape[0])
    return resized(picture[top : top + side, left : left + side], size, size)


def centred_square(width: int, height: int) -> tuple[int, int, int]:
    """Left, top and side, in pixels, of the largest square in the middle of a picture."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def resized(picture: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """A picture (h, w, 3) uint8, or a plane (h, w) uint8 or float32, as (height, width, ...).

    Pictures are resized with LANCZOS, planes bilinearly.
    """
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    method = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((width, height), method))


def _read(path: Path, background: str = "white") -> Image.Image:
    from PIL import ImageOps

    with open_picture(path) as image:
        return _to_rgb(ImageOps.exif_transpose(image), background)


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = _to_grey(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits in 8 bits: integers run to 65535, floats to 1 or, where larger, to 255."""
    from PIL import Image

    values: NDArray[Any] = np.asarray(image)
    top = float(_MAX_16_BIT)
    if image.mode == "F":
        top = 1.0 if np.nanmax(values, initial=0.0) <= 1 else 255.0
    grey = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # a row at a time: float64 of the whole would take eight times the memory
        grey[row] = np.rint(np.clip(np.nan_to_num(line.astype(np.float64)) / top, 0, 1) * 255)
    return Image.fromarray(grey)
