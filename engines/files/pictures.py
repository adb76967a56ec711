"""Sinks that store the images of a job as pictures, with their settings inside.

A file counts as stored when it is whole and holds the key of its item; any other file of that name belongs
to somebody else and is never replaced unless asked. No file is ever removed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import is_bundle
from engines.errors import UsageError
from engines.files.jobs import (
    FOREIGN,
    JOB_FILE,
    KEY,
    ImageJob,
    Item,
    Made,
    Sink,
    TakenError,
    hash_of,
    held,
    read_job_file,
)
from engines.pictures.grids import SQUARE, Layout, grid, strip
from engines.pictures.images import (
    is_cut_short,
    load_picture,
    picture_format,
    read_picture_text,
    save_animation,
    save_picture,
)
from engines.spec.choices import PREVIEWS
from engines.storage import Lock, atomic_write, parts, remove_dead_parts, write_json

STRIP = PREVIEWS[0]
_MOMENT = 0.1  # seconds


class Pictures(Sink):
    """A sink of picture files, each written atomically, with its settings as text inside.

    Args:
        job: the job that makes the images.
        paths: one file per item, in order.
        text: the text of an item's picture, beside its key.
        folder: the folder that belongs to this job alone and gets a job.json, from now on; None: no such folder.
        previews: one of `PREVIEWS`: also write the image after each scale, beside each picture; None: do not.
        overwrite: replace files and jobs that are not this job's.

    Raises:
        TakenError: the folder holds another job, or a file would be lost.
        UsageError: the folder cannot be written, or another process writes there.
    """

    def __init__(
        self,
        job: ImageJob,
        paths: Sequence[Path],
        text: Callable[[Item], Mapping[str, str]],
        *,
        folder: Path | None = None,
        previews: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self._job, self._paths, self._text = job, paths, text
        self._folder, self._previews, self._overwrite = folder, previews, overwrite
        self.replaced = 0
        self._lock: Lock | None = None
        ours = folder is not None and self._check_folder(folder)
        self._stored = {item.index for item in job.items if self._is_stored(item, damaged_is_ours=ours)}
        self._made = [] if folder is None else [each for each in (folder, *folder.parents) if not each.exists()]
        """Folders that this sink makes, the innermost first."""
        self._replaces: bytes | None = None
        """The job.json that this sink has put its own in place of; empty: there was none. None: it has written none."""
        self._written = False
        if folder is not None:
            self._claim(folder)

    @property
    def previews(self) -> list[Path]:
        """The previews beside the pictures, in order."""
        return [preview_path(path, self._previews) for path in self._paths] if self._previews else []

    def has(self, item: Item) -> bool:
        return item.index in self._stored

    def write(self, items: Sequence[Item], made: Made) -> None:
        if self._folder is None and not self._written:
            remove_dead_parts([*self._paths, *self.previews])
        self._written = True
        for row, item in enumerate(items):
            path = self._paths[item.index]
            text = {**self._text(item), "job": self._job.all.key, KEY: item.key}
            if self._previews:  # before the picture: whoever finds that one finds both
                shown = preview_path(path, self._previews)
                if not self._keeps(shown, item):
                    self._save_preview(shown, [scale[row] for scale in made.previews], text)
            if not self._keeps(path, item):
                self._count_replaced(path, text)
                save_picture(path, made.images[row], text)
            self._stored.add(item.index)

    def finish(self) -> None:
        self._written = True  # of a job of which every image was there already, too

    def close(self) -> None:
        if self._lock is None:
            return
        assert self._folder is not None
        if self._replaces is not None and not self._written:  # nothing came of it: as if it had never begun
            self._restore(self._folder / JOB_FILE, self._replaces)
            with contextlib.suppress(OSError):  # somebody put something there meanwhile
                for made in self._made:
                    made.rmdir()
        self._lock.release()
        self._lock = None

    @staticmethod
    def _restore(record: Path, content: bytes) -> None:
        if not content:
            record.unlink(missing_ok=True)
            return
        with atomic_write(record) as file:
            file.write(content)

    def _keeps(self, path: Path, item: Item) -> bool:
        """Whether a file is this picture already, made by another job, which lacked what stands beside it now."""
        return not self._overwrite and holds_item(path, item)

    def _save_preview(self, path: Path, scales: Sequence[NDArray[np.uint8]], text: Mapping[str, str]) -> None:
        self._count_replaced(path, text)
        if self._previews == STRIP:
            save_picture(path, strip(scales, len(scales)), text)
        else:
            save_animation(path, scales, text)

    def _count_replaced(self, path: Path, text: Mapping[str, str]) -> None:
        if self._overwrite and path.exists():
            self.replaced += (read_picture_text(path) or {}).get(KEY) != text[KEY]

    def _claim(self, folder: Path) -> None:
        try:
            self._lock = held(folder)
        except UsageError:
            time.sleep(_MOMENT)  # so that who took the place a moment ago has said for which job
            self._check_folder(folder)
            raise
        try:
            self._check_folder(folder)
            known = read_job_file(folder / JOB_FILE) or {}
            there = known.get("images") if known.get(KEY) == self._job.key else 0
            if not isinstance(there, int) or there < len(self._job.items):
                record = folder / JOB_FILE
                self._replaces = record.read_bytes() if record.exists() else b""
                write_json(record, self._job.describe())
            for name in {JOB_FILE, *(f"*{path.suffix}" for path in (*self._paths, *self.previews))}:
                for part in parts(folder, name):  # of a process that was killed: the lock says that none runs
                    part.unlink(missing_ok=True)
        except BaseException:
            self._lock.release()
            raise

    def _check_folder(self, folder: Path) -> bool:
        """Whether the folder is this job's already. Raises `TakenError` where it may not be taken from another job."""
        record = folder / JOB_FILE
        if is_bundle(folder):
            raise TakenError(f"{folder} is a bundle: choose another folder with --out", what=f"{folder} is a bundle")
        if not record.exists():
            return False
        previous = read_job_file(record)
        if previous and previous[KEY] == self._job.key:
            return True
        if not self._overwrite:
            what = "another job" if previous else f"a {JOB_FILE} that is none of ours"
            raise TakenError(
                f"{folder} holds {what}: choose another folder with --out, or replace it with --overwrite",
                what=f"{folder} holds {what}",
            )
        return False

    def _is_stored(self, item: Item, *, damaged_is_ours: bool) -> bool:
        path = self._paths[item.index]
        files = [preview_path(path, self._previews), path] if self._previews else [path]
        found = [
            check_file(file, item.key, self._overwrite or (damaged_is_ours and is_cut_short(file))) for file in files
        ]
        return all(found)


class Grid(Sink):
    """A sink of one picture with all images of a job, in their order.

    Args:
        job: the job that makes the images.
        path: where the picture goes.
        text: the text of the picture, beside its key.
        files: where the images lie by the time the job is done; empty: nowhere else, and they are kept in
            memory, so that an interrupted job starts again.
        side: pixels of an image along one side.
        layout: how the images lie.
        overwrite: replace a file that is not this job's.

    Raises:
        TakenError: a file would be lost.
        UsageError: the picture would be too large.
    """

    def __init__(
        self,
        job: ImageJob,
        path: Path,
        text: Mapping[str, str],
        *,
        files: Sequence[Path],
        side: int,
        layout: Layout = SQUARE,
        overwrite: bool = False,
    ) -> None:
        layout.check(len(job.items), side)
        picture_format(path, *layout.size(len(job.items), side))
        self._job, self._text, self._files, self._layout = job, text, files, layout
        self.path, self.replaced = path, 0
        self._key = hash_of(["grid", *(item.key for item in job.items)])
        self._foreign = path.exists() and not self._is_ours()
        self._complete = check_file(path, self._key, overwrite or not self._foreign)
        self._images: dict[int, NDArray[np.uint8]] = {}

    def has(self, item: Item) -> bool:
        return self._complete or bool(self._files)

    def write(self, items: Sequence[Item], made: Made) -> None:
        if not self._files:
            self._images.update({item.index: image for item, image in zip(items, made.images, strict=True)})

    def finish(self) -> None:
        if self._complete:
            return
        count = len(self._job.items)
        remove_dead_parts([self.path])
        images = map(load_picture, self._files) if self._files else (self._images[index] for index in range(count))
        self.replaced += self._foreign
        text = {**self._text, "images": str(count), "job": self._job.key, KEY: self._key}
        save_picture(self.path, grid(images, count, self._layout), text)

    def close(self) -> None:
        self._images.clear()

    def _is_ours(self) -> bool:
        """Whether what is there is a grid of this job, and shows nothing that would be lost."""
        text = read_picture_text(self.path) or {}
        images = text.get("images", "")  # only grids say it
        if text.get("job") != self._job.key or not images.isdecimal():
            return False
        return bool(self._files) or int(images) <= len(self._job.items)


def holds_job(folder: Path, job: ImageJob) -> bool:
    """Whether a folder belongs to a job already."""
    return (read_job_file(folder / JOB_FILE) or {}).get(KEY) == job.key


def holds_item(path: Path, item: Item) -> bool:
    """Whether a file is the whole picture of an item already."""
    return (read_picture_text(path) or {}).get(KEY) == item.key


def check_file(path: Path, key: str, overwrite: bool = False) -> bool:
    """Whether `path` is a whole picture with this key already.

    Raises `TakenError` where it is something else and `overwrite` was not given.
    """
    if path.is_dir():
        raise TakenError(f"{path} is a folder: choose another name with --out")
    if not path.exists():
        return False
    if (read_picture_text(path) or {}).get(KEY) == key:
        return True
    if not overwrite:
        raise TakenError(f"{path} {FOREIGN}", what=f"{path} is another picture")
    return False


def preview_path(path: Path, kind: str) -> Path:
    """Where the preview of the picture at `path` lies, of one of `PREVIEWS`."""
    return path.with_name(f"{path.stem}-preview{'.png' if kind == STRIP else f'.{kind}'}")
