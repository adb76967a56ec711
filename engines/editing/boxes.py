"""Boxes as a user types them, or as a detector wrote them.

Read are COCO's formats (a list of results, or a whole data set with `images`, `categories` and `annotations`) and what
`to_json` of an Ultralytics result gives. Either way one picture's boxes are wanted, all or those of a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.draw.mask import Box
from engines.errors import UsageError
from engines.foreign import MALFORMED, read_json

_SHOWN = 8


def parse_box(text: str, width: int, height: int) -> Box:
    """A box written as `x0,y0,x1,y1`, in pixels of a picture of this size.

    Four numbers from 0 to 1 are fractions of the picture. What reaches beyond it is cut off. Raises `UsageError`.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"the box {text!r} is not four numbers x0,y0,x1,y1") from None
    return _inside((x0, y0, x1, y1), text, width, height, fractions=max(x0, y0, x1, y1) <= 1)


def read_boxes(
    path: Path,
    picture: Path,
    width: int,
    height: int,
    *,
    classes: Sequence[str] = (),
    score: float | None = None,
) -> list[Box]:
    """Read the boxes of one picture, in its pixels, from a file of detections.

    Args:
        path: a JSON file of COCO or Ultralytics.
        picture: the picture whose boxes are wanted; its name tells them apart from those of others in the file.
        width: of the picture in pixels, as it is seen.
        height: of the picture in pixels, as it is seen.
        classes: names or numbers of the classes wanted, any case; all where empty.
        score: the least confidence wanted; what has none counts as certain.

    Raises:
        UsageError: the file is in no such format, has no such picture, or no detection is left.

    """
    found = _of_picture(_detections(path), path, picture)
    sizes = {item.picture_size for item in found if item.picture_size is not None}
    for w, h in sizes - {(width, height)}:
        raise UsageError(f"{path} is about a picture of {w} x {h} pixels, and {picture} has {width} x {height}")
    wanted = {name.strip().casefold() for name in classes}
    left = [item for item in found if not wanted or wanted & item.names]
    left = [item for item in left if score is None or item.score >= score]
    if not left:
        there = ", ".join(sorted({item.called for item in found})[:_SHOWN])
        best = max((item.score for item in found), default=0.0)
        raise UsageError(
            f"no detection is left of {path}: it has {len(found)} of {picture.name}"
            + (f" ({there}; scores up to {best:g})" if found else "")
        )
    fractions = all(max(item.box) <= 1 for item in found)
    return [_inside(item.box, f"of {item.called} in {path}", width, height, fractions=fractions) for item in left]


@dataclass(frozen=True)
class _Detection:
    box: Box
    called: str
    names: frozenset[str]
    """Name and number of the class, case folded."""
    score: float
    picture: frozenset[str] = frozenset()
    """What the picture may be called: its name and its number. Empty where the file is about one picture."""
    picture_size: tuple[int, int] | None = None


def _inside(box: Box, text: str, width: int, height: int, *, fractions: bool) -> Box:
    """The box in pixels, cut to the picture. Raises `UsageError` where nothing is left of it."""
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)) or x0 >= x1 or y0 >= y1:
        raise UsageError(f"the box {text} has no area: x0 must be below x1, and y0 below y1")
    if fractions:
        x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise UsageError(f"the box {text} lies outside of the picture, which has {width} x {height} pixels")
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def _detections(path: Path) -> list[_Detection]:
    value = read_json(path)
    try:
        if isinstance(value, dict):
            return _coco_data_set(value)
        return [_ultralytics(item) if "box" in item else _coco(item) for item in value]
    except MALFORMED:
        raise UsageError(
            f"{path} holds no boxes in a known format: COCO (image_id, category_id, bbox, score) "
            "or Ultralytics (name, class, confidence, box)"
        ) from None


def _ultralytics(item: dict[str, Any]) -> _Detection:
    """Read an entry of Ultralytics' `Results.to_json`: corners x1, y1, x2, y2; a turned box goes on to x4, y4."""
    corners = item["box"]
    count = len(corners) // 2
    xs, ys = ([float(corners[f"{axis}{i + 1}"]) for i in range(count)] for axis in "xy")
    name = str(item["name"])
    box = min(xs), min(ys), max(xs), max(ys)
    return _Detection(box, name, _names(name, item["class"]), float(item.get("confidence", 1.0)))


def _coco_data_set(value: dict[str, Any]) -> list[_Detection]:
    names = {category["id"]: str(category["name"]) for category in value.get("categories", ())}
    pictures = {picture["id"]: picture for picture in value.get("images", ())}
    return [_coco(item, names, pictures) for item in value["annotations"]]


def _coco(
    item: dict[str, Any], names: dict[Any, str] | None = None, pictures: dict[Any, dict[str, Any]] | None = None
) -> _Detection:
    x, y, w, h = (float(number) for number in item["bbox"])
    category, number = item["category_id"], item["image_id"]
    name = (names or {}).get(category, f"class {category}")
    picture = (pictures or {}).get(number, {})
    file = picture.get("file_name")
    known = {str(number)} if file is None else {str(number), Path(file).name, Path(file).stem}
    size = (int(picture["width"]), int(picture["height"])) if {"width", "height"} <= picture.keys() else None
    score = float(item.get("score", 1.0))
    return _Detection((x, y, x + w, y + h), name, _names(name, category), score, frozenset(known), size)


def _names(name: str, number: Any) -> frozenset[str]:
    return frozenset({name.casefold(), str(number)})


def _of_picture(found: Iterable[_Detection], path: Path, picture: Path) -> list[_Detection]:
    """The detections in one picture, found by its name where the file has several pictures.

    COCO numbers its pictures: `000000000139.jpg` is number 139.
    """
    found = list(found)
    if len({item.picture for item in found}) <= 1:
        return found
    called = {picture.name, picture.stem, picture.stem.lstrip("0")}
    mine = [item for item in found if item.picture & called]
    if not mine:
        raise UsageError(f"{path} has boxes of several pictures, and none of {picture.name}")
    return mine
