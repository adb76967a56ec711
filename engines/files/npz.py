"""An .npz file that grows row by row, survives interruption, and appears whole or not at all.

While a job runs, its rows lie in `FILE.npz.partial/`: one plain .npy per array and a byte per row that
says whether it is there. The last step streams them into one uncompressed .npz, which is renamed to its
place; memory stays at a few rows however many there are. The key of the job stands in the comment of the
zip file, where numpy and the evaluators of guided-diffusion (ADM), which read `arr_0`, never look.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.files.jobs import FOREIGN, JOB_FILE, KEY, ImageJob, Item, Made, Sink, hash_of, held, read_job_file
from engines.foreign import parse_json, read_comment
from engines.storage import Lock, parts, write_json, writing

_DONE = "done"
_WHOLE = "whole.npz"
_COPY_BYTES = 1 << 20
_MAX_COMMENT = 65535
_MAX_HEADER = 4096  # of a .npy file; numpy's own has 128 bytes
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same rows give the same bytes


class NpzRows(Sink):
    """A sink: one .npz file with a row of each array for each item of a job.

    Args:
        job: the job that makes the rows.
        path: where the finished file goes.
        arrays: shape of a row and dtype, by the name of the array.
        rows: the rows of a batch, by the name of the array; each (B, *shape).
        overwrite: replace a file, or the beginnings of one, that is not this job's.
        restart: make every row again.

    Raises:
        UsageError: the file exists and holds something else, or cannot be written.
    """

    def __init__(
        self,
        job: ImageJob,
        path: Path,
        arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        rows: Callable[[Sequence[Item], Made], Mapping[str, NDArray[Any]]],
        *,
        overwrite: bool = False,
        restart: bool = False,
    ) -> None:
        if path.suffix != ".npz":
            raise UsageError(f"{path} must be called .npz")
        self._path, self._job, self._arrays, self._rows, self._restart = path, job, arrays, rows, restart
        self._key = hash_of([job.key, {name: [list(shape), dtype.str] for name, (shape, dtype) in arrays.items()}])
        self._partial = path.with_name(f"{path.name}.partial")
        self._files: dict[str, IO[bytes]] = {}
        self._offsets: dict[str, int] = {}
        self._lock: Lock | None = None
        self._complete = self._check_file(overwrite) and not restart
        self._stored = self._read_done() if self._check_partial(overwrite) and not restart else b""

    def has(self, item: Item) -> bool:
        return self._complete or self._stored[item.index : item.index + 1] == b"\1"

    def write(self, items: Sequence[Item], made: Made) -> None:
        if self._complete:
            return
        with writing(self._path):
            self._open()
            for name, values in self._rows(items, made).items():
                file = self._files[name]
                for item, value in zip(items, values, strict=True):
                    data = value.astype(self._arrays[name][1], copy=False).tobytes()
                    file.seek(self._offsets[name] + item.index * len(data))
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            done = self._files[_DONE]  # after the rows have reached the disk
            for item in items:
                done.seek(item.index)
                done.write(b"\1")
            done.flush()

    def finish(self) -> None:
        with writing(self._path):
            if not self._complete:
                self._open()
                if self._read_done() != b"\1" * len(self._job.items):
                    raise UsageError(f"{self._partial} was changed by another process: run the same command again")
                try:
                    self._write_whole().replace(self._path)
                except BaseException:
                    (self._partial / _WHOLE).unlink(missing_ok=True)  # room for whoever goes on
                    raise
                self._complete = True
            if self._holds_key(self._partial):
                shutil.rmtree(self._partial)

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # what a full disk did not take was told when it was written
                file.close()
        self._files.clear()
        if self._lock:
            self._lock.release()

    def _open(self) -> None:
        """Open the partial files. They are made on first use, so that a refused job leaves no trace."""
        if self._files:
            return
        self._lock = held(self._partial)
        if not self._holds_key(self._partial) or self._restart:
            self._create()
        for name, (shape, dtype) in self._arrays.items():
            rows = self._partial / f"{name}.npy"
            self._offsets[name] = rows.stat().st_size - len(self._job.items) * math.prod(shape) * dtype.itemsize
            if not 0 < self._offsets[name] <= _MAX_HEADER:
                raise UsageError(f"{rows} was changed by another program: remove {self._partial}, and begin anew")
            self._files[name] = rows.open("r+b")
        self._files[_DONE] = (self._partial / _DONE).open("r+b")

    def _create(self) -> None:
        """Make files of the full size, with holes for the rows; job.json, which makes them count, comes last."""
        (self._partial / JOB_FILE).unlink(missing_ok=True)
        count = len(self._job.items)
        for name, (shape, dtype) in self._arrays.items():
            open_memmap(self._partial / f"{name}.npy", "w+", dtype, (count, *shape))
        (self._partial / _DONE).write_bytes(bytes(count))
        write_json(self._partial / JOB_FILE, {**self._job.describe(), KEY: self._key})

    def _write_whole(self) -> Path:
        whole = self._partial / _WHOLE
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
            for name in self._arrays:
                entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
                with (
                    (self._partial / entry.filename).open("rb") as rows,
                    archive.open(entry, "w", force_zip64=True) as out,
                ):
                    shutil.copyfileobj(rows, out, _COPY_BYTES)
            record = {**self._job.describe(), KEY: self._key}
            comment = json.dumps(record).encode()
            archive.comment = comment if len(comment) <= _MAX_COMMENT else json.dumps({KEY: self._key}).encode()
        return whole

    def _check_file(self, overwrite: bool) -> bool:
        """Whether the finished file of this job is there. Raises `UsageError` where another one would be lost."""
        if self._path.is_dir():
            raise UsageError(f"{self._path} is a folder: choose another name")
        if not self._path.exists():
            return False
        if _key_of(self._path) == self._key:
            return True
        if not overwrite:
            raise UsageError(f"{self._path} {FOREIGN}")
        return False

    def _check_partial(self, overwrite: bool) -> bool:
        """Whether rows of this job are there. Raises `UsageError` where rows of another job would be lost."""
        if not self._partial.exists():
            return False
        if self._holds_key(self._partial):
            return True
        known = {self._partial / name for name in (*(f"{name}.npy" for name in self._arrays), _DONE, _WHOLE)}
        with writing(self._partial):
            found = set(self._partial.iterdir()) - set(parts(self._partial))
        if found <= known or overwrite:  # without a job.json: killed before the first row
            return False
        raise UsageError(f"{self._partial} holds rows of another job: finish that one, or replace it with --overwrite")

    def _holds_key(self, folder: Path) -> bool:
        return (read_job_file(folder / JOB_FILE) or {}).get(KEY) == self._key

    def _read_done(self) -> bytes:
        with writing(self._partial):
            return (self._partial / _DONE).read_bytes()


def _key_of(path: Path) -> str | None:
    """The key of the job that made an .npz file; None for other files."""
    try:
        value = parse_json(read_comment(path))
    except (UsageError, ValueError):
        return None
    key = value.get(KEY) if isinstance(value, dict) else None
    return key if isinstance(key, str) else None
