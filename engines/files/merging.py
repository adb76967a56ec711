"""The whole of a job, made of its shards.

.npz files or folders of shards 1 to N --> merge --> what one machine would have made, byte by byte
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.files.jobs import JOB_FILE, KEY, read_job_file
from engines.files.npz import key_of_arrays, npy_header, record_of, write_archive
from engines.files.shard import Shard
from engines.foreign import names_in, open_array, pictures_in, read_exactly
from engines.pictures.images import read_picture_text
from engines.progress import Progress, Steps, silent
from engines.storage import atomic_write, write_json, writing

_BLOCK = 1 << 20
"""Bytes of each shard that are held at once."""


@dataclass(frozen=True)
class _Part:
    """What a shard says of itself."""

    path: Path
    record: Mapping[str, Any]

    @property
    def whole(self) -> tuple[str, int]:
        """The key of the whole job, and its images."""
        return self.record["whole"][KEY], self.record["whole"]["images"]

    @property
    def shard(self) -> Shard:
        return Shard.parse(self.record["shard"])


def merge(paths: Sequence[Path], out: Path, *, overwrite: bool = False, progress: Progress = silent) -> int:
    """Make one .npz file, or one folder, of the shards of a job; the number of its images.

    Args:
        paths: the shards, in any order: .npz files, or folders.
        out: where the whole goes.
        overwrite: replace what is there.
        progress: told how far it is.

    Raises:
        UsageError: a shard is missing, not finished, of another job or named twice, or `out` is there already.
    """
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no {path}")
    folders = {path.is_dir() for path in paths}
    if len(folders) > 1:
        raise UsageError("merge .npz files, or folders, not both at once")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already: choose another name, or --overwrite")
    if folders == {True}:
        return _merge_folders([_Part(path, _record_of_folder(path)) for path in paths], out, progress)
    return _merge_archives([_Part(path, record_of(path)) for path in paths], out, progress)


def _record_of_folder(path: Path) -> Mapping[str, Any]:
    return read_job_file(path / JOB_FILE) or {}


def _sorted(parts: Sequence[_Part]) -> list[_Part]:
    """All shards of one job, in order. Raises `UsageError`."""
    for part in parts:
        if not isinstance(part.record.get("shard"), str) or not isinstance(part.record.get("whole"), dict):
            raise UsageError(f"{part.path} is no finished shard: var-run --shard K/N makes them")
    first = parts[0]
    for part in parts:
        if part.whole != first.whole or part.shard.of != first.shard.of:
            raise UsageError(f"{part.path} is a shard of another job than {first.path}, or the job has grown since")
    by_number: dict[int, _Part] = {}
    for part in parts:
        if (other := by_number.setdefault(part.shard.number, part)) is not part:
            raise UsageError(f"{part.path} and {other.path} are the same shard, {part.shard}")
    of = first.shard.of
    missing = [str(number) for number in range(1, of + 1) if number not in by_number]
    if missing:
        listed = ", ".join(missing[:20]) + (" ..." if len(missing) > 20 else "")
        raise UsageError(f"shard {listed} of {of} is missing: draw it with --shard {missing[0]}/{of}")
    ordered = [by_number[number] for number in sorted(by_number)]
    for part in ordered:
        wanted = part.shard.count(first.whole[1])
        if part.record["images"] != wanted:
            raise UsageError(f"{part.path} has {part.record['images']} of {wanted} images: run its command again")
    return ordered


def _whole_record(part: _Part) -> dict[str, Any]:
    """What the one job would say of itself."""
    own = {name: value for name, value in part.record.items() if name not in ("shard", "whole")}
    key, images = part.whole
    return {**own, KEY: key, "images": images}


def _merge_archives(parts: Sequence[_Part], out: Path, progress: Progress) -> int:
    if out.suffix != ".npz":
        raise UsageError(f"{out} must be called .npz, as its shards are")
    ordered = _sorted(parts)
    key, images = ordered[0].whole
    names = names_in(ordered[0].path)
    with contextlib.ExitStack() as opened:
        rows = {name: [_Rows(opened, part, name) for part in ordered] for name in names}
        arrays = {name: (each[0].shape[1:], each[0].dtype) for name, each in rows.items()}
        for name, each in rows.items():
            if {(one.shape[1:], one.dtype) for one in each} != {arrays[name]}:
                raise UsageError(f"{name} of {ordered[0].path} and of another shard differ in kind")
        record = _whole_record(ordered[0]) | {KEY: key_of_arrays(key, arrays)}

        def content(name: str) -> Iterator[bytes]:
            shape, dtype = arrays[name]
            yield npy_header((images, *shape), dtype)
            for done, block in _turns(rows[name], images):
                progress(f"merging {name}", Steps(done, images))
                yield block.tobytes()

        with atomic_write(out) as file:
            write_archive(file, names, content, record)
    return images


class _Rows:
    """The rows of one array of a shard, read from the first to the last."""

    def __init__(self, opened: contextlib.ExitStack, part: _Part, name: str) -> None:
        self._file: IO[bytes]
        what = f".npz file with {name}"
        self._file, self.dtype, self.shape = opened.enter_context(open_array(part.path, name, what=what))
        if len(self.shape) < 1 or self.shape[0] != part.record["images"]:
            raise UsageError(f"{name} of {part.path} has not the {part.record['images']} rows that it says")
        self._path = part.path

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def read(self, count: int) -> NDArray[Any]:
        """The next rows. Raises `UsageError` where the file ends before."""
        data = read_exactly(self._file, count * self.row_bytes, self._path)
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def _turns(shards: Sequence[_Rows], images: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """The rows of all shards in turn, in blocks, each with how many rows came before it."""
    of = len(shards)
    block = max(1, _BLOCK // max(1, shards[0].row_bytes))
    for done in range(0, images, block * of):
        count = min(block * of, images - done)
        rows = np.empty((count, *shards[0].shape[1:]), shards[0].dtype)
        for place, shard in enumerate(shards):
            if own := len(range(place, count, of)):
                rows[place::of] = shard.read(own)
        yield done, rows


def _merge_folders(parts: Sequence[_Part], out: Path, progress: Progress) -> int:
    ordered = _sorted(parts)
    key, images = ordered[0].whole
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: name a folder")
    files: dict[str, Path] = {}
    seen: set[str] = set()
    for part in ordered:
        found = set()
        for file in pictures_in(part.path):
            text = read_picture_text(file) or {}
            if text.get("job") != key or not text.get(KEY):
                continue  # of its user, or of an older job
            if (other := files.setdefault(file.name, file)) is not file:
                raise UsageError(f"{file} and {other} have one name: draw them with {{index}} or {{seed}} in it")
            found.add(text[KEY])
        if len(found) != part.record["images"] or found & seen:
            raise UsageError(
                f"{part.path} holds {len(found)} of its {part.record['images']} pictures: run its command again"
            )
        seen |= found
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for done, (name, file) in enumerate(files.items()):
            progress("copying", Steps(done, len(files)))
            with file.open("rb") as source, atomic_write(out / name) as target:
                shutil.copyfileobj(source, target, _BLOCK)
        write_json(out / JOB_FILE, _whole_record(ordered[0]))
    return images
