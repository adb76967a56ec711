"""Detectors that Ultralytics exported to ONNX, run by ONNX Runtime on the CPU.

    picture -> the largest copy that fits the model's input, on grey -> outputs -> objects in pixels of the picture

The file's own metadata say what the classes are called and what the model does. Read are both forms of the output:
end to end, (1, n, 6 + masks) rows of x0, y0, x1, y1, score and class, best first, as YOLO26 has it; and
(1, 4 + classes + masks, n) columns of x, y, w, h and a score of each class, as YOLO11 has it, where the best of those
that overlap counts, class by class. Models that segment have 32 `masks`, weights of the planes of a second output.

What follows from the picture is done as `LetterBox`, `non_max_suppression` and `process_mask` of Ultralytics 8.4 do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backends.onnxruntime.library import cpu_session, translated
from engines.editing.found import Found, chosen
from engines.editing.mask import Box, Mask
from engines.errors import UsageError
from engines.foreign import parse_python, reading
from engines.pictures.images import resized

SCORE = 0.25
"""The least score of what is found, where none was asked for; Ultralytics' own."""
_LEAST = 0.01  # of what messages tell of
_OVERLAP = 0.7  # of two boxes, intersection over union, from which on they are one object
_MOST = 300  # objects in a picture
_MOST_OVERLAPPING = 30_000
_GREY = 114
_MOST_PIXELS = 1 << 26
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_TASKS = ("detect", "segment")
_NAMED = 8
_EXPORT = "export it again with Ultralytics: yolo export format=onnx model=MODEL.pt"


class Detector:
    """A detector in a file."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Open it. Raises `UsageError` where the file is no such detector, `BackendError` as ONNX Runtime says."""
        if path.suffix.lower() in (".pt", ".pth"):
            raise UsageError(f"{path} is for PyTorch: export it with yolo export format=onnx model={path}")
        if not path.is_file():
            raise UsageError(f"cannot read {path}: there is no such file")
        self.path = path
        self._session = cpu_session(path, threads, f"loading {path}")
        facts: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        with reading(path, "detector of Ultralytics", remedy=_EXPORT):
            if facts.get("task", _TASKS[0]) not in _TASKS:
                raise ValueError(f"its task is {facts['task']}, not {' or '.join(_TASKS)}")
            self.names = _names_of(facts)
            self._stride = int(facts.get("stride", 32))
            (self._input,) = self._session.get_inputs()
            self._dtype = _TYPES[self._input.type]
            _, channels, *size = self._input.shape
            if channels not in (3, None) and not isinstance(channels, str):
                raise ValueError(f"its pictures have {channels} channels")
            self._fixed = all(isinstance(side, int) for side in size)
            height, width = size if self._fixed else _size_of(facts)
            if min(height, width, self._stride) < 1 or height * width > _MOST_PIXELS:
                raise ValueError(f"its pictures have {width} x {height} pixels")
            self._size = (int(width), int(height))

    def check_names(self, objects: Sequence[str]) -> None:
        """Raise `UsageError` unless all of these are names or numbers of classes, any case."""
        known = {name.casefold(): name for name in self.names.values()}
        for wanted in objects:
            key = wanted.strip().casefold()
            if key not in known and key not in map(str, self.names):
                near = difflib.get_close_matches(key, known, n=3) or list(known)[:_NAMED]
                listed = ", ".join(known[name] for name in near)
                raise UsageError(f"{self.path.name} finds nothing that is called {wanted!r}; it finds {listed}")

    def find(
        self, picture: NDArray[np.uint8], name: str, *, objects: Sequence[str] = (), score: float | None = None
    ) -> list[Found]:
        """What is in a picture, best first.

        Args:
            picture: (height, width, 3) uint8.
            name: how messages call it.
            objects: names or numbers of the classes wanted; all where empty.
            score: the least score wanted; `SCORE` where None.

        Raises:
            NothingFoundError: nothing of it was found.
            UsageError: the model's output has neither form.
            BackendError: as ONNX Runtime says.
        """
        height, width = picture.shape[:2]
        fit = _Fit.of(width, height, self._size, None if self._fixed else self._stride)
        pixels = fit.letterboxed(picture).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        try:
            outputs = self._session.run(None, {self._input.name: pixels.astype(self._dtype)})
        except Exception as error:
            raise translated(error, f"running {self.path}") from error
        with reading(self.path, "detector of Ultralytics", remedy=_EXPORT):
            planes = np.asarray(outputs[1][0], np.float32) if len(outputs) > 1 and outputs[1].ndim == 4 else None
            masks = 0 if planes is None else len(planes)
            least = SCORE if score is None else score
            rows = _rows(np.asarray(outputs[0], np.float32), len(self.names), masks, min(least, _LEAST))
        items = [(self._found(fit.in_picture(row[:4]), row), row) for row in rows]
        items = [(item, row) for item, row in items if item.box[0] < item.box[2] and item.box[1] < item.box[3]]
        left = chosen([item for item, _ in items], str(self.path), name, objects=objects, score=least)
        if planes is None:
            return left
        painted = [fit.painted(item, np.tensordot(row[6:], planes, 1)) for item, row in items if item in left]
        return chosen([item for item in painted if item is not None], str(self.path), name)

    def _found(self, box: Box, row: NDArray[np.float32]) -> Found:
        number = int(row[5])
        return Found(box, self.names.get(number, f"class {number}"), str(number), float(row[4]))


@dataclass(frozen=True)
class _Fit:
    """Where a picture lies in the model's input."""

    width: int
    """Width of the picture in pixels, as all that follows."""
    height: int
    """Height of the picture."""
    copy: tuple[int, int]
    """Width and height of its copy in the input."""
    size: tuple[int, int]
    """Width and height of the input."""
    corner: tuple[int, int]
    """Left and top of the copy."""

    @classmethod
    def of(cls, width: int, height: int, size: tuple[int, int], stride: int | None) -> _Fit:
        """Where it lies in an input of this size, or with a `stride` in one that has less grey around it."""
        scale = min(size[0] / width, size[1] / height)
        copy = (max(round(width * scale), 1), max(round(height * scale), 1))
        spare = (size[0] - copy[0], size[1] - copy[1])
        if stride is not None:
            spare = (spare[0] % stride, spare[1] % stride)
        corner = (round(spare[0] / 2 - 0.1), round(spare[1] / 2 - 0.1))
        return cls(width, height, copy, (copy[0] + spare[0], copy[1] + spare[1]), corner)

    def letterboxed(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The input, (h, w, 3) uint8. The copy is interpolated between four pixels each, as OpenCV does."""
        (left, top), (width, height) = self.corner, self.copy
        square = np.full((self.size[1], self.size[0], 3), _GREY, np.uint8)
        copy = picture
        if (width, height) != (self.width, self.height):
            y0, y1, down = _between(self.height, height)
            x0, x1, across = _between(self.width, width)
            upper, lower = picture[y0], picture[y1]
            above = upper[:, x0] * (1 - across[:, None]) + upper[:, x1] * across[:, None]
            below = lower[:, x0] * (1 - across[:, None]) + lower[:, x1] * across[:, None]
            copy = np.rint(above * (1 - down[:, None, None]) + below * down[:, None, None]).astype(np.uint8)
        square[top : top + height, left : left + width] = copy
        return square

    def in_picture(self, box: NDArray[np.float32]) -> Box:
        """A box of the input in pixels of the picture, cut to it."""
        x0, y0, x1, y1 = (float(value) for value in box)
        across, down = self.copy[0] / self.width, self.copy[1] / self.height
        x0, x1 = (min(max((x - self.corner[0]) / across, 0.0), float(self.width)) for x in (x0, x1))
        y0, y1 = (min(max((y - self.corner[1]) / down, 0.0), float(self.height)) for y in (y0, y1))
        return x0, y0, x1, y1

    def painted(self, item: Found, plane: NDArray[np.float32]) -> Found | None:
        """An object with the outline that it has where a plane, (h, w) over all of the input, is above zero.

        None where that is nowhere in its box.
        """
        (x0, y0), (x1, y1) = map(math.floor, item.box[:2]), map(math.ceil, item.box[2:])
        across, down = plane.shape[1] / self.size[0], plane.shape[0] / self.size[1]
        left, top, wide, high = *self.corner, self.copy[0] / self.width, self.copy[1] / self.height
        u0, u1 = (min((left + x * wide) * across, float(plane.shape[1])) for x in (x0, x1))
        v0, v1 = (min((top + y * high) * down, float(plane.shape[0])) for y in (y0, y1))
        if not (plane[math.floor(v0) : math.ceil(v1), math.floor(u0) : math.ceil(u1)] > 0).any():
            return None

        def paint(mask: Mask) -> None:
            mask[y0:y1, x0:x1] |= resized(plane, x1 - x0, y1 - y0, (u0, v0, u1, v1)) > 0

        return replace(item, paint=paint)


def _between(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of `wanted` pixels, the two of `length` that it lies between, and the weight of the second."""
    place = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (place - low).astype(np.float32)


def _rows(output: NDArray[np.float32], classes: int, masks: int, score: float) -> NDArray[np.float32]:
    """Rows x0, y0, x1, y1, score, class and weights of masks, (n, 6 + masks), of what has more than `score`.

    Raises `ValueError` where an output (1, ...) has neither form.
    """
    if output.ndim == 3 and output.shape[:2] == (1, 4 + classes + masks):
        return _suppressed(output[0].T, classes, score)
    if output.ndim == 3 and output.shape[0] == 1 and output.shape[2] == 6 + masks:
        rows: NDArray[np.float32] = output[0]
        return rows[(rows[:, 4] > score) & np.isfinite(rows).all(1)][:_MOST]
    raise ValueError(f"its output is {output.shape}, and for {classes} classes (1, n, 6) or (1, {4 + classes}, n)")


def _suppressed(columns: NDArray[np.float32], classes: int, score: float) -> NDArray[np.float32]:
    """The best of those that overlap, class by class (non-maximum suppression); (n, 4 + classes + masks) as `_rows`."""
    scores = columns[:, 4 : 4 + classes]
    columns = columns[(scores.max(1) > score) & np.isfinite(columns).all(1)]
    scores = columns[:, 4 : 4 + classes]
    best = scores.argmax(1)
    order = np.argsort(-scores.max(1), kind="stable")[:_MOST_OVERLAPPING]
    columns, best, scores = columns[order], best[order], scores[order].max(1)
    half = columns[:, 2:4] / 2
    low, high = columns[:, :2] - half, columns[:, :2] + half
    areas = (high - low).prod(1)
    kept: list[int] = []
    left = np.arange(len(columns))
    while len(left) and len(kept) < _MOST:
        first, others = left[0], left[1:]
        kept.append(int(first))
        overlap = np.clip(np.minimum(high[first], high[others]) - np.maximum(low[first], low[others]), 0, None).prod(1)
        same = (best[others] == best[first]) & (overlap > _OVERLAP * (areas[first] + areas[others] - overlap))
        left = others[~same]
    parts = (
        low[kept],
        high[kept],
        scores[kept, None],
        best[kept, None].astype(np.float32),
        columns[kept, 4 + classes :],
    )
    return np.concatenate(parts, axis=1)


def _names_of(facts: Mapping[str, str]) -> dict[int, str]:
    """The classes in the metadata: Python's text of a dict or a list. Raises `ValueError`."""
    if "names" not in facts:
        raise ValueError("its metadata have no names of classes")
    names = parse_python(facts["names"])
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    found = {int(number): str(name) for number, name in pairs}
    if not found:
        raise ValueError("its metadata have no names of classes")
    return found


def _size_of(facts: Mapping[str, str]) -> Any:
    """Height and width in the metadata, of a model that takes any size. Raises `ValueError`."""
    size = parse_python(facts.get("imgsz", "640"))
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
