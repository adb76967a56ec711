"""Files of detections: what detectors and data sets have about pictures.

    Ultralytics   `to_json` of a result; of several as a list of such lists, or of `{path, boxes}`; the server's answer
    COCO          a list of results, or a data set with `images`, `categories` and `annotations`
    YOLO          a .txt file per picture, `class x y w h` or `class x1 y1 x2 y2 ...`, in fractions of the picture

Each becomes pictures with their objects as the file has them, of which one picture's are taken and put in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from engines.editing.boxes import inside
from engines.editing.found import Found, NothingFoundError, Outline, chosen, painter
from engines.editing.mask import Box, Mask
from engines.errors import UsageError
from engines.foreign import MALFORMED, read_bytes, read_json, reading

_FORMATS = (
    "COCO (image_id, category_id, bbox, score), Ultralytics (name, class, confidence, box; or path, boxes) "
    "or YOLO's .txt (class x y w h)"
)
_NAMES = ("path", "image_path", "image", "file_name", "filename", "file")
_LISTS = ("boxes", "results", "detections", "predictions")
_CLASSES = "classes.txt"  # beside the labels of YOLO
_SLACK = 0.01  # by which a label of YOLO may miss the picture


@dataclass(frozen=True)
class _Object:
    """An object in the numbers of its file: pixels, or fractions of the picture."""

    box: Box
    name: str
    number: str
    score: float
    outlines: tuple[Outline, ...] = ()
    runs: tuple[Sequence[int], tuple[int, int]] | None = None
    """Pixels beside and in the object in turn, column by column, and height and width of the picture."""


@dataclass(frozen=True)
class _Picture:
    """What a file has about one picture."""

    objects: list[_Object] = field(default_factory=list)
    path: str | None = None
    number: str | None = None
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    fractions: bool = False
    """Whether the numbers are fractions for sure; where not, they are if none exceeds 1."""


class Detections:
    """A file of detections, read once; or a folder with a .txt or .json file of each picture's name."""

    def __init__(self, path: Path) -> None:
        """Raises `UsageError` where the file is in no known format."""
        self._path = path
        self._pictures = None if path.is_dir() else _pictures(path)

    def find(
        self,
        picture: Path | None,
        width: int,
        height: int,
        *,
        objects: Sequence[str] = (),
        score: float | None = None,
        place: tuple[int, int] = (0, 1),
    ) -> list[Found]:
        """What was found in one picture.

        Args:
            picture: the picture; its name tells its objects from those of others in the file. None where nobody knows
                what it is called: the file is about one picture then.
            width: of the picture in pixels, as it is seen.
            height: of the picture in pixels, as it is seen.
            objects: names or numbers of the classes wanted, any case; all where empty.
            score: the least confidence wanted; what has none counts as certain.
            place: which of how many pictures this is, for files that have as many and name none.

        Raises:
            NothingFoundError: no detection is left, or the file has nothing about the picture.
            UsageError: the file is about a picture of another size, or two of that name, or a box is not in it.
        """
        path, pictures = self._path, self._pictures
        if picture is None:
            if pictures is None or len(pictures) > 1:
                raise UsageError(f"{path.name} is about several pictures: give a file about this one alone")
            named = next((each.path for each in pictures if each.path), path.name)
            picture = Path(PureWindowsPath(named).name)
        if pictures is None:
            path = _file_of(path, picture)
            pictures = _pictures(path)
        mine = _of_picture(pictures, path, picture, place)
        if mine.size is not None and mine.size != (width, height):
            w, h = mine.size
            raise UsageError(f"{path} is about a picture of {w} x {h} pixels, and {picture} has {width} x {height}")
        fractions = mine.fractions or all(max(item.box) <= 1 for item in mine.objects)
        scale = (width, height) if fractions else (1, 1)
        found = []
        for item in chosen(mine.objects, f"{path}", picture.name, objects=objects, score=score):
            box = inside(item.box, f"of {item.name} in {path}", width, height, fractions=fractions)
            paint = painter([outline * scale for outline in item.outlines]) if item.outlines else None
            if item.runs is not None:
                with reading(path, "file of detections"):
                    paint = _painter_of_runs(item.runs[0], item.runs[1], (height, width))
            found.append(Found(box, item.name, item.number, item.score, paint))
        return found


def _file_of(folder: Path, picture: Path) -> Path:
    files = [folder / f"{picture.stem}{ending}" for ending in (".txt", ".json")]
    for file in files:
        if file.exists():
            return file
    raise NothingFoundError(f"{folder} has no {files[0].name} and no {files[1].name} for {picture.name}")


def _pictures(path: Path) -> list[_Picture]:
    if path.suffix.lower() == ".txt":
        return [_Picture(_yolo(path), fractions=True)]
    value = read_json(path)
    try:
        if isinstance(value, dict) and "annotations" in value:
            return _coco_data_set(value)
        if isinstance(value, list) and any("bbox" in item for item in value if isinstance(item, dict)):
            return _coco_results(value)
        return list(_ultralytics(value))
    except MALFORMED:
        raise UsageError(f"{path} holds no boxes in a known format: {_FORMATS}") from None


def _ultralytics(value: Any) -> Iterator[_Picture]:
    """The pictures of whatever Ultralytics or a script around it writes."""
    if isinstance(value, dict):
        value = value["images"] if value.get("images") else [value]
    if not all(isinstance(item, list) or _list_of(item) is not None for item in value) or _is_row(value[:1]):
        yield _Picture([_object(item) for item in value])  # of one picture, whichever it is
        return
    for item in value:
        if isinstance(item, list):
            yield _Picture([_object(each) for each in item])
            continue
        path = _path_of(item)
        found, names = _list_of(item), item.get("names", {})
        if isinstance(found, dict):  # columns
            found = list(zip(*(found[name] for name in ("xyxy", "conf", "cls") if name in found), strict=True))
            found = [[*box, *rest] for box, *rest in found]
        size = (int(item["shape"][1]), int(item["shape"][0])) if "shape" in item else None
        yield _Picture([_object(each, names) for each in found], path, size=size)


def _path_of(item: dict[str, Any]) -> str | None:
    """What an object about a picture calls it."""
    return next((item[name] for name in _NAMES if isinstance(item.get(name), str)), None)


def _list_of(item: dict[str, Any]) -> Any:
    """What an object about a picture has found in it; None for an object about one thing found."""
    return next((item[name] for name in _LISTS if isinstance(item.get(name), list | dict)), None)


def _is_row(value: Any) -> bool:
    return bool(value) and isinstance(value[0], list) and bool(value[0]) and isinstance(value[0][0], int | float)


def _object(item: Any, names: Any = ()) -> _Object:
    """One thing found.

    An entry of `Results.to_json` has corners x1, y1, x2, y2, and goes on to x4, y4 for a turned box; a row of
    `Results.boxes.data` is x1, y1, x2, y2, score, class, or has the number of a track before the score.
    """
    if isinstance(item, list):
        corners = [float(number) for number in item[:4]]
        score, number = (1.0, 0) if len(item) == 4 else (float(item[-2]), int(item[-1]))
        if len(corners) < 4 or len(item) not in (4, 6, 7):
            raise ValueError("a row has 4, 6 or 7 numbers")
        known = (
            names if isinstance(names, dict) else dict(zip(map(str, range(len(names or ()))), names or (), strict=True))
        )
        name = known.get(str(number), f"class {number}")
        return _Object((corners[0], corners[1], corners[2], corners[3]), str(name), str(number), score)
    box, number = item["box"], item.get("class", 0)
    pairs = len(box) // 2
    xs, ys = (
        [float(box[f"{axis}{i + 1}"] if isinstance(box, dict) else box[2 * i + k]) for i in range(pairs)]
        for k, axis in enumerate("xy")
    )
    outlines = [(xs, ys)] if pairs > 2 else []
    if "segments" in item:
        outlines = [(item["segments"]["x"], item["segments"]["y"])]
    return _Object(
        (min(xs), min(ys), max(xs), max(ys)),
        str(item["name"]),
        str(number),
        float(item.get("confidence", 1.0)),
        _outlines(np.transpose(outline) for outline in outlines),
    )


def _outlines(lists: Iterable[Any]) -> tuple[Outline, ...]:
    """Lists of x and y in turn, without those of fewer than three corners, which have no area. Raises `ValueError`."""
    outlines = [np.asarray(corners, np.float64).reshape(-1, 2) for corners in lists]
    if not all(np.isfinite(outline).all() for outline in outlines):
        raise ValueError("an outline has a number that is not finite")
    return tuple(outline for outline in outlines if len(outline) > 2)


def _coco_data_set(value: dict[str, Any]) -> list[_Picture]:
    names = {category["id"]: str(category["name"]) for category in value.get("categories", ())}
    pictures = {}
    for picture in value.get("images", ()):
        size = (int(picture["width"]), int(picture["height"])) if {"width", "height"} <= picture.keys() else None
        pictures[picture["id"]] = _Picture([], _path_of(picture), str(picture["id"]), size)
    for item in value["annotations"]:
        number = item["image_id"]
        pictures.setdefault(number, _Picture([], None, str(number))).objects.append(_coco(item, names))
    return list(pictures.values())


def _coco_results(value: list[dict[str, Any]]) -> list[_Picture]:
    return _coco_data_set({"annotations": value})


def _coco(item: dict[str, Any], names: dict[Any, str]) -> _Object:
    """An annotation or a result of COCO, with the outline that it has: polygons, or runs of pixels."""
    x, y, w, h = (float(number) for number in item["bbox"])
    category, outline = item["category_id"], item.get("segmentation") or []
    runs, polygons = None, _outlines(outline if isinstance(outline, list) else ())
    if isinstance(outline, dict):
        counts, (height, width) = outline["counts"], outline["size"]
        runs = (_counts(counts) if isinstance(counts, str) else list(map(int, counts)), (int(height), int(width)))
    name = names.get(category, f"class {category}")
    return _Object((x, y, x + w, y + h), name, str(category), float(item.get("score", 1.0)), polygons, runs)


def _counts(text: str) -> list[int]:
    """The runs in COCO's compressed text: five bits a character, lowest first; from the fourth on, the change."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        value |= (code - 48 & 0x1F) << shift
        if shift > 60:
            raise ValueError("a run is longer than any picture")
        shift += 5
        if not code - 48 & 0x20:
            value -= (code - 48 & 0x10) << shift - 4  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _painter_of_runs(counts: Sequence[int], size: tuple[int, int], wanted: tuple[int, int]) -> Callable[[Mask], None]:
    """A `Found.paint`. Raises `ValueError` where the runs are not those of a picture of `wanted` height and width."""
    if size != wanted or min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        raise ValueError(f"an outline of {size[1]} x {size[0]} pixels, and the picture has {wanted[1]} x {wanted[0]}")

    def paint(mask: Mask) -> None:
        mask |= np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T

    return paint


def _yolo(path: Path) -> list[_Object]:
    """The lines of a label file.

    `class x y w h`, then a score or the number of a track or both; or `class` and the corners of an outline, then a
    score. Raises `UsageError`.
    """
    with reading(path, "label file of YOLO"):
        lines = read_bytes(path).decode().splitlines()
        labels = path.with_name(_CLASSES)
        names = dict(enumerate(map(str.strip, read_bytes(labels).decode().splitlines()))) if labels.exists() else {}
        found = []
        for line in lines:
            words = line.split()
            if not words:
                continue
            number, values = int(words[0]), [float(word) for word in words[1:]]
            tracked = len(values) in (5, 6) and words[-1].isdecimal() and int(words[-1]) > 0
            if tracked:
                values.pop()
            score = values.pop() if len(values) % 2 else 1.0
            if len(values) < 4 or not all(-_SLACK <= each <= 1 + _SLACK for each in values):
                raise ValueError(f"{line[:60]!r} is not a class and numbers from 0 to 1")
            outlines: tuple[Outline, ...] = ()
            if len(values) == 4:
                x, y, w, h = values
                box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            else:
                outlines = _outlines([values])
                (x0, y0), (x1, y1) = outlines[0].min(0), outlines[0].max(0)
                box = (float(x0), float(y0), float(x1), float(y1))
            found.append(_Object(box, names.get(number, f"class {number}"), str(number), score, outlines))
    return found


def _of_picture(pictures: list[_Picture], path: Path, picture: Path, place: tuple[int, int]) -> _Picture:
    """The one of these pictures that is called as `picture`, or has its number, or its place.

    COCO numbers its pictures: `000000000139.jpg` is number 139.
    """
    named = [each for each in pictures if each.path is not None]
    for part in ("name", "stem"):
        mine = [each for each in named if getattr(PureWindowsPath(each.path or ""), part) == getattr(picture, part)]
        if len(mine) > 1:
            raise UsageError(f"{path} has {len(mine)} pictures called {picture.name}: give a file about one of them")
        if mine:
            return mine[0]
    called = {picture.name, picture.stem, picture.stem.lstrip("0")}
    for each in pictures:
        if each.number in called:
            return each
    index, count = place
    if not named and len(pictures) == count and (count == 1 or not any(each.number for each in pictures)):
        return pictures[index]
    if not pictures:
        return _Picture()
    other = "several pictures" if len(pictures) > 1 else "another picture"
    raise NothingFoundError(f"{path} has boxes of {other}, and none of {picture.name}")
