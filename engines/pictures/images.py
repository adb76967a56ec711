"""Pictures in and out: PNG, JPEG and WebP files with their settings inside, animations, and images to encode.

Images are uint8 arrays of shape (h, w, 3), RGB. Pillow is imported when the first picture is touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.foreign import MALFORMED, open_picture, parse_json, reading
from engines.storage import atomic_write

if TYPE_CHECKING:
    from PIL import Image

Picture = NDArray[np.uint8]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats in which pictures are written, by the ending of the file's name."""

_MAX_SIDE = {"PNG": 2**31 - 1, "JPEG": 65_500, "WEBP": 16_383}
_MAX_JPEG_TEXT = 60 << 10  # a segment of JPEG has up to 64 KiB
_LOSSLESS = {"lossless": True, "quality": 20, "method": 1}  # 0.08 s for 512 x 512; 50 and 4: 0.2 s for 7 % less
_EXIF_IFD, _USER_COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
_ENDS = {b"\x89PNG\r\n\x1a\n": b"\x00\x00\x00\x00IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}
_TAIL = 4096
_MAX_16_BIT = 65535
_TIFF_SAMPLE_FORMAT = 339
_OVERSHOOT = 0.01  # of floats, as resizing leaves it
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def picture_format(path: Path, width: int = 0, height: int = 0) -> str:
    """The format of `FORMATS` in which a picture is written to `path`, by the name's ending.

    Raises `UsageError` where the ending is another, or a picture of this size in pixels does not fit the format.
    """
    name = FORMATS.get(path.suffix.lower())
    if name is None:
        raise UsageError(f"{path}: pictures are written by the name's ending, one of {', '.join(FORMATS)}")
    if max(width, height) > (most := _MAX_SIDE[name]):
        raise UsageError(f"{path}: {width} x {height} pixels, and {name} has up to {most} a side: write a .png file")
    return name


def save_picture(path: Path, image: Picture, text: Mapping[str, str]) -> None:
    """Write `image` (h, w, 3) uint8 to `path` atomically, in the format of its ending, with `text` inside.

    PNG and WebP keep every pixel; JPEG has quality 95 and colours in full resolution. PNG holds `text` as text chunks;
    JPEG and WebP as a JSON object in the EXIF field UserComment, where JPEG leaves out the longest values if all
    together exceed 60 KiB. `read_picture_text` reads it. Raises `UsageError` as `picture_format`, and where the file
    cannot be written.
    """
    name = picture_format(path, image.shape[1], image.shape[0])
    with atomic_write(path) as file:
        write_picture(file, image, text, name)


def write_picture(
    file: IO[bytes], image: Picture, text: Mapping[str, str], name: str, *, quality: int | None = None
) -> None:
    """Write `image` (h, w, 3) uint8 to a stream, as `save_picture` does to a file.

    `name` is PNG, JPEG or WEBP; `quality` is of 0 to 100, of JPEG and WebP, which keeps every pixel at 100.
    """
    from PIL import Image

    options: dict[str, Any] = {}
    if name == "PNG":
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = info = PngInfo()
        for key, value in text.items():
            info.add_text(key, value)
    else:
        options["exif"] = _exif(text if name == "WEBP" else _fitting(text))
        if name == "WEBP":
            options |= _LOSSLESS if quality in (None, 100) else {"quality": quality}
        else:
            options |= {"quality": 95 if quality is None else max(1, quality), "subsampling": 0}
    Image.fromarray(image).save(file, format=name, **options)


def save_animation(
    path: Path, frames: Sequence[Picture], text: Mapping[str, str], *, frame_ms: int = 250, last_ms: int = 1500
) -> None:
    """Write `frames`, (h, w, 3) uint8 of one shape, as an endless animation to `path`: a .webp or .gif file.

    WebP keeps every pixel and holds `text` as `save_picture` does. GIF has 256 colours a frame and holds `text` as a
    JSON object in its comment.

    Args:
        path: where the file appears, atomically.
        frames: one or more.
        text: what `read_picture_text` gives again.
        frame_ms: how long each frame but the last is shown, in milliseconds.
        last_ms: how long the last one is, before the first comes again.

    Raises:
        UsageError: the name has another ending, or the file cannot be written.
    """
    from PIL import Image

    options: dict[str, Any]
    if path.suffix.lower() == ".gif":
        name, options = "GIF", {"comment": _json(text)}
    elif path.suffix.lower() == ".webp":
        name, options = picture_format(path, *frames[0].shape[1::-1]), {"exif": _exif(text), **_LOSSLESS}
    else:
        raise UsageError(f"{path}: animations are .webp or .gif files")
    first, *others = map(Image.fromarray, frames)
    durations = [frame_ms] * len(others) + [last_ms]
    with atomic_write(path) as file:
        first.save(file, format=name, save_all=True, append_images=others, duration=durations, loop=0, **options)


def read_picture_text(path: Path) -> dict[str, str] | None:
    """The text inside of a picture or an animation, as it was saved; empty where there is none of that form.

    None where `path` is no PNG, JPEG, WebP or GIF file, or was cut short.
    """
    if is_cut_short(path):
        return None
    try:
        with open_picture(path, ("PNG", "JPEG", "WEBP", "GIF")) as image:
            text = _text_of(image)
    except UsageError:
        return None
    return {key: value for key, value in text.items() if isinstance(key, str) and isinstance(value, str)}


def is_cut_short(path: Path) -> bool:
    """Whether `path` is an empty file, or a PNG, JPEG, WebP or GIF file without its end."""
    try:
        with path.open("rb") as file:
            start = file.read(len(b"RIFF....WEBP"))
            size = path.stat().st_size
            file.seek(-min(_TAIL, size), os.SEEK_END)
            tail = file.read()
    except OSError:
        return False
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        return size < len(b"RIFF....") + int.from_bytes(start[4:8], "little")
    if start.startswith(b"GIF8"):
        return not tail.endswith(b"\0;")
    for beginning, end in _ENDS.items():
        if start.startswith(beginning):
            return end not in tail  # some tools append to it
    return not start


def _text_of(image: Image.Image) -> dict[Any, Any]:
    """What `save_picture` or `save_animation` put inside; empty where there is nothing of that form."""
    if image.format == "PNG":
        return image.info
    try:
        comment = image.info.get("comment", b"")
        if image.format != "GIF":
            marked = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
            comment = marked[len(_ASCII) :] if marked.startswith(_ASCII) else b""
        text = parse_json(comment)
    except (*MALFORMED, SyntaxError):  # SyntaxError: Pillow's word for broken EXIF data
        return {}
    return text if isinstance(text, dict) else {}


def _json(text: Mapping[str, str]) -> bytes:
    return json.dumps(dict(text)).encode()


def _exif(text: Mapping[str, str]) -> Image.Exif:
    """EXIF data with `text` in its UserComment."""
    from PIL import Image

    exif = Image.Exif()
    exif[_EXIF_IFD] = {_USER_COMMENT: _ASCII + _json(text)}  # `get_ifd(...)[...]` does nothing in Pillow 10
    return exif


def _fitting(text: Mapping[str, str]) -> Mapping[str, str]:
    """What of `text` a JPEG file has room for: the shortest values, in order."""
    left = dict(text)
    while len(_json(left)) > _MAX_JPEG_TEXT:
        del left[max(left, key=lambda name: len(left[name]))]
    return left


def load_picture(path: Path) -> Picture:
    """A picture from a file, as it is seen; (h, w, 3) uint8.

    Turned as its EXIF data says, transparency laid on white. Grey, 16 bit, palette and CMYK pictures become RGB, and
    so do TIFF files of 32 bit integers or floats whose values reach up to 1, 255, 65535 or the integers' largest.
    Of an animation, the first frame.

    Raises:
        UsageError: the file is missing, is no picture that Pillow reads, or says with no value what is white.
    """
    return _read(path)


def load_mask(path: Path) -> NDArray[np.bool_]:
    """A mask from a file, (h, w) bool: true where it is white, or lighter than grey. Read as `load_picture` does.

    What is transparent is false.
    """
    return _read(path, background="black", mode="L") >= 128


def picture_of(image: Image.Image) -> Picture:
    """A picture of Pillow as `load_picture` gives it, (h, w, 3) uint8. Raises `UsageError` as it does."""
    return _handed(image, "white", "RGB", "the picture")


def mask_of(image: Image.Image) -> NDArray[np.bool_]:
    """A picture of Pillow as `load_mask` gives it, (h, w) bool."""
    return _handed(image, "black", "L", "the mask") >= 128


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


def resized(
    picture: NDArray[Any], width: int, height: int, part: tuple[float, float, float, float] | None = None
) -> NDArray[Any]:
    """A picture (h, w, 3) uint8, or a plane (h, w) uint8 or float32, as (height, width, ...).

    Pictures are resized with LANCZOS, planes bilinearly. `part`: left, top, right and bottom, in pixels of the picture,
    of what is wanted of it; what lies beside still counts where the filter reaches it.
    """
    if part is None and picture.shape[:2] == (height, width):
        return picture  # without Pillow, which a server need not have
    from PIL import Image

    method = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((width, height), method, box=part))


def _read(path: Path, background: str = "white", mode: str = "RGB") -> NDArray[np.uint8]:
    with open_picture(path) as image:
        return _as_seen(image, background, mode, str(path))


def _handed(image: Image.Image, background: str, mode: str, name: str) -> NDArray[np.uint8]:
    """`_as_seen` of a picture that is the caller's, and stays as it is."""
    from PIL import ImageOps

    with reading(name, "picture that can be read"):
        turned = ImageOps.exif_transpose(image)  # a copy, which knows less than the picture itself
        for told in ("format", "tag_v2"):  # of what the numbers in a TIFF are
            setattr(turned, told, getattr(image, told, None))
        return _pixels(turned, background, mode, name)


def _as_seen(image: Image.Image, background: str, mode: str, name: str) -> NDArray[np.uint8]:
    """The pixels of a picture, turned as its EXIF data says; it is changed."""
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    return _pixels(image, background, mode, name)


def _pixels(image: Image.Image, background: str, mode: str, name: str) -> NDArray[np.uint8]:
    rgb = _to_rgb(image, background, name)
    return np.asarray(rgb if rgb.mode == mode else rgb.convert(mode))


def _to_rgb(image: Image.Image, background: str, name: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = _to_grey(image, name)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_grey(image: Image.Image, name: str) -> Image.Image:
    """A grey picture of 16 or 32 bits in 8 bits. Raises `UsageError` where its values do not tell what is white."""
    from PIL import Image

    values: NDArray[Any] = np.asarray(image)
    white: float = _MAX_16_BIT
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        if image.mode == "I" and (getattr(image, "tag_v2", None) or {}).get(_TIFF_SAMPLE_FORMAT, (1,))[0] == 1:
            values = values.view(np.uint32)
        white = _white_of(values, name)
    grey = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # a row at a time: float64 of the whole would take eight times the memory
        grey[row] = np.rint(np.clip(np.nan_to_num(line.astype(np.float64)) / white, 0, 1) * 255)
    return Image.fromarray(grey)


def _white_of(values: NDArray[Any], name: str) -> float:
    """What is white where the type of the pixels does not say: the least usual value that none exceeds."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    usual = [1.0, 255.0, float(_MAX_16_BIT)]
    if values.dtype.kind in "iu":
        usual.append(float(np.iinfo(values.dtype).max))
    for white in usual:
        if -_OVERSHOOT * white <= low <= high <= (1 + _OVERSHOOT) * white:
            if low == high == 0 or high >= white / 16:
                return white
            break  # it would be nearly black
    raise UsageError(
        f"cannot read {name}: its values run from {low:g} to {high:g}, and a picture of 32 bits has no fixed white; "
        "save it with 8 or 16 bits"
    )
