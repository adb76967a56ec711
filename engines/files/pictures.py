"""Sinks that store the images of a job as PNG files, with their settings inside.

A file counts as stored when it is whole and holds the key of its item; any other file of that name belongs
to somebody else and is never replaced unless asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.files.images import check_grid, grid, is_cut_short, load_picture, read_picture_text, save_picture, strip
from engines.files.jobs import FOREIGN, JOB_FILE, KEY, ImageJob, Item, Made, Sink, hash_of, held, read_job_file
from engines.storage import Lock, parts, remove_dead_parts, write_json


class Pictures(Sink):
    """A sink of PNG files, each written atomically, with its settings as text inside.

    Args:
        job: the job that makes the images.
        paths: one file per item, in order.
        text: the text chunks of an item's picture, beside its key.
        folder: the folder that belongs to this job alone and gets a job.json; None: no such folder.
        previews: write the strip of the image after each scale beside each picture.
        overwrite: replace files and jobs that are not this job's.
        restart: make every image again.

    Raises:
        UsageError: the folder holds another job, or a file would be lost.
    """

    def __init__(
        self,
        job: ImageJob,
        paths: Sequence[Path],
        text: Callable[[Item], Mapping[str, str]],
        *,
        folder: Path | None = None,
        previews: bool = False,
        overwrite: bool = False,
        restart: bool = False,
    ) -> None:
        self._job, self._paths, self._text = job, paths, text
        self._folder, self._previews, self._restart = folder, previews, restart
        self._overwrite = overwrite
        self._lock: Lock | None = None
        self._started = False
        ours = folder is not None and self._check_folder(folder)
        self._stored = {item.index for item in job.items if self._is_stored(item, damaged_is_ours=ours)}

    @property
    def previews(self) -> list[Path]:
        """The strips beside the pictures, in order."""
        return [preview_path(path) for path in self._paths] if self._previews else []

    def has(self, item: Item) -> bool:
        return item.index in self._stored and not self._restart

    def write(self, items: Sequence[Item], made: Made) -> None:
        self._start()
        for row, item in enumerate(items):
            path = self._paths[item.index]
            text = {**self._text(item), "job": self._job.key, KEY: item.key}
            if self._previews:  # before the picture: whoever finds that one finds both
                scales = [scale[row] for scale in made.previews]
                save_picture(preview_path(path), strip(scales, len(scales)), text)
            save_picture(path, made.images[row], text)
            self._stored.add(item.index)

    def finish(self) -> None:
        self._start()  # a job of which every image was there already

    def close(self) -> None:
        if self._lock:
            self._lock.release()

    def _start(self) -> None:
        """Claim the folder; left until there is something to store, so that a refused job leaves no trace."""
        if self._started:
            return
        self._started = True
        if self._folder is None:
            remove_dead_parts([*self._paths, *self.previews])
            return
        self._lock = held(self._folder)
        if not self._check_folder(self._folder):
            previous = read_job_file(self._folder / JOB_FILE)
            if previous:
                _remove_pictures(self._folder, str(previous[KEY]), keep=[*self._paths, *self.previews])
            write_json(self._folder / JOB_FILE, self._job.describe())
        for name in ("*.png", JOB_FILE):
            for part in parts(self._folder, name):  # of a process that was killed: the lock says that none runs
                part.unlink(missing_ok=True)

    def _check_folder(self, folder: Path) -> bool:
        """Whether the folder is this job's already. Raises `UsageError` where it may not be taken from another job."""
        record = folder / JOB_FILE
        if not record.exists():
            return False
        previous = read_job_file(record)
        if previous and previous[KEY] == self._job.key:
            return True
        if not self._overwrite:
            what = "another job" if previous else f"a {JOB_FILE} that is none of ours"
            raise UsageError(f"{folder} holds {what}: choose another folder with --out, or replace it with --overwrite")
        return False

    def _is_stored(self, item: Item, *, damaged_is_ours: bool) -> bool:
        path = self._paths[item.index]
        files = [preview_path(path), path] if self._previews else [path]
        found = [
            check_file(file, item.key, self._overwrite or (damaged_is_ours and is_cut_short(file))) for file in files
        ]
        return all(found)


class Grid(Sink):
    """A sink of one picture with all images of a job, in their order.

    Args:
        job: the job that makes the images.
        path: where the picture goes.
        text: the text chunks of the picture, beside its key.
        files: where the images lie by the time the job is done; empty: nowhere else, and they are kept in
            memory, so that an interrupted job starts again.
        side: pixels of an image along one side.
        overwrite: replace a file that is not this job's.
        restart: make the images again.

    Raises:
        UsageError: the picture would be too large, or a file would be lost.
    """

    def __init__(
        self,
        job: ImageJob,
        path: Path,
        text: Mapping[str, str],
        *,
        files: Sequence[Path],
        side: int,
        overwrite: bool = False,
        restart: bool = False,
    ) -> None:
        check_grid(len(job.items), side)
        self._job, self._path, self._text, self._files = job, path, text, files
        self._key = hash_of(["grid", job.key])
        self._complete = check_file(path, self._key, overwrite) and not restart
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
        remove_dead_parts([self._path])
        images = map(load_picture, self._files) if self._files else (self._images[index] for index in range(count))
        save_picture(self._path, grid(images, count), {**self._text, "job": self._job.key, KEY: self._key})

    def close(self) -> None:
        self._images.clear()


def check_file(path: Path, key: str, overwrite: bool = False) -> bool:
    """Whether `path` is a whole picture with this key already.

    Raises `UsageError` where it is something else and `overwrite` was not given.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: choose another name with --out")
    if not path.exists():
        return False
    if (read_picture_text(path) or {}).get(KEY) == key:
        return True
    if not overwrite:
        raise UsageError(f"{path} {FOREIGN}")
    return False


def preview_path(path: Path) -> Path:
    """Where the strip of scale previews of the picture at `path` lies."""
    return path.with_name(f"{path.stem}-preview.png")


def _remove_pictures(folder: Path, job_key: str, keep: Iterable[Path]) -> None:
    """Remove the pictures that a replaced job left, and no file that it did not write."""
    kept = set(keep)
    for path in folder.glob("*.png"):
        if path not in kept and (read_picture_text(path) or {}).get("job") == job_key:
            path.unlink(missing_ok=True)
