"""An .npz file that grows row by row, survives interruption, and appears whole or not at all.

While a job runs, its rows lie in `FILE.npz.partial/`: one plain .npy per array and a byte per row that
says whether it is there. The last step streams them into one uncompressed .npz, which is renamed to its
place; memory stays at a few rows however many there are. The key of the job stands in the comment of the
zip file, where numpy and the evaluators of guided-diffusion (ADM), which read `arr_0`, never look.

A larger job of the same key takes over the rows that a smaller one has made.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import dtype_to_descr, open_memmap, write_array_header_1_0
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.files.jobs import (
    FOREIGN,
    JOB_FILE,
    KEY,
    ImageJob,
    Item,
    Made,
    Sink,
    hash_of,
    held,
    read_job_file,
)
from engines.foreign import open_array, parse_json, read_comment
from engines.storage import Lock, parts, write_json, writing
from engines.words import mebibytes

_DONE = "done"
_WHOLE = "whole.npz"
_GROWN = ".grown.npy"
_COPY_BYTES = 1 << 20
_MAX_COMMENT = 65535
_MAX_HEADER = 4096  # of a .npy file; numpy's own has 128 bytes
_LEAST = (KEY, "images", "shard", "whole")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same rows give the same bytes


class NpzRows(Sink):
    """A sink: one .npz file with a row of each array for each item of a job.

    Args:
        job: the job that makes the rows.
        path: where the finished file goes.
        arrays: shape of a row and dtype, by the name of the array.
        rows: the rows of a batch, by the name of the array; each (B, *shape).
        overwrite: replace a file, or the beginnings of one, that is not this job's.

    Raises:
        UsageError: the file exists and holds something else, or cannot be written.
    """

    def __init__(
        self,
        job: ImageJob,
        path: Path,
        arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        rows: Callable[[Sequence[Item], Made], Mapping[str, NDArray[Any]]],
        overwrite: bool = False,
    ) -> None:
        if path.suffix != ".npz":
            raise UsageError(f"{path} must be called .npz")
        self._path, self._job, self._arrays, self._rows = path, job, arrays, rows
        self.replaced = 0
        self._key = key_of_arrays(job.key, arrays)
        self._partial = path.with_name(f"{path.name}.partial")
        self._files: dict[str, IO[bytes]] = {}
        self._offsets: dict[str, int] = {}
        self._lock: Lock | None = None
        in_file = self._check_file(overwrite)
        self._complete = in_file == len(job.items)
        in_partial = self._check_partial(overwrite)
        self._stored = self._read_done() if in_partial else b""
        self._earlier = 0 if in_partial else in_file
        """Rows to take over from the finished file of a smaller job."""
        if not self._complete:
            self._check_space(begun=self._rows_in_partial() == len(job.items))

    def has(self, item: Item) -> bool:
        return self._complete or item.index < self._earlier or self._stored[item.index : item.index + 1] == b"\1"

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
                    whole = self._write_whole()
                    self.replaced += self._path.exists() and record_of(self._path).get(KEY) != self._key
                    whole.replace(self._path)
                except BaseException:
                    (self._partial / _WHOLE).unlink(missing_ok=True)  # room for whoever goes on
                    raise
                self._complete = True
            if self._rows_in_partial():
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
        if self._rows_in_partial() != len(self._job.items):
            self._create()
        for name in self._arrays:
            file, self._offsets[name] = self._rows_of(name, len(self._job.items))
            self._files[name] = file.open("r+b")
        self._files[_DONE] = (self._partial / _DONE).open("r+b")

    def _create(self) -> None:
        """Make files of the full size, with holes for the rows; job.json, which makes them count, comes last.

        Rows that a smaller job of this key has made, in a finished file or in one like these, are taken over.
        """
        count, begun = len(self._job.items), self._rows_in_partial()
        begun = 0 if begun > count else begun  # of a larger job, which --overwrite gives up
        done = self._read_done() if begun else b"\1" * self._earlier
        for name, (shape, dtype) in self._arrays.items():
            row = math.prod(shape) * dtype.itemsize
            grown = self._partial / f"{name}{_GROWN}"
            open_memmap(grown, "w+", dtype, (count, *shape)).flush()
            offset = grown.stat().st_size - count * row
            with grown.open("r+b") as out, self._earlier_rows(name, begun) as rows:
                out.seek(offset)
                _copy(rows, out, len(done) * row)
        (self._partial / JOB_FILE).unlink(missing_ok=True)  # from here on, nothing counts until it is written again
        for name in self._arrays:
            (self._partial / f"{name}{_GROWN}").replace(self._partial / f"{name}.npy")
        (self._partial / _DONE).write_bytes(done.ljust(count, b"\0"))
        write_json(self._partial / JOB_FILE, {**self._job.describe(), KEY: self._key})

    @contextlib.contextmanager
    def _earlier_rows(self, name: str, begun: int) -> Iterator[IO[bytes]]:
        """The rows of an array as a smaller job made them: `begun` of them in partial files, or those of the file."""
        if begun:
            file, offset = self._rows_of(name, begun)
            with file.open("rb") as rows:
                rows.seek(offset)
                yield rows
        elif self._earlier:
            with open_array(self._path, name, what=f".npz file with {name}") as (rows, _, _):
                yield rows
        else:
            yield io.BytesIO()

    def _rows_of(self, name: str, count: int) -> tuple[Path, int]:
        """A partial file, and where its `count` rows begin. Raises `UsageError` where it has another size."""
        file, (shape, dtype) = self._partial / f"{name}.npy", self._arrays[name]
        offset = file.stat().st_size - count * math.prod(shape) * dtype.itemsize
        if not 0 < offset <= _MAX_HEADER:
            raise UsageError(f"{file} was changed by another program: remove {self._partial}, and begin anew")
        return file, offset

    def _write_whole(self) -> Path:
        whole = self._partial / _WHOLE
        with whole.open("wb") as file:
            write_archive(file, self._arrays, self._content_of, {**self._job.describe(), KEY: self._key})
        return whole

    def _content_of(self, name: str) -> Iterator[bytes]:
        with (self._partial / f"{name}.npy").open("rb") as rows:
            while piece := rows.read(_COPY_BYTES):
                yield piece

    def _check_space(self, *, begun: bool) -> None:
        """Raise `UsageError` where the disk has no room for the finished file, and the rows unless they are `begun`."""
        row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._arrays.values())
        whole = row * len(self._job.items)
        needed = whole if begun else 2 * whole
        folder = next(each for each in (self._path.absolute().parent, *self._path.absolute().parents) if each.exists())
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            return  # a disk that does not tell
        if free < needed:
            raise UsageError(
                f"{self._path} will have {mebibytes(whole)}, needs {mebibytes(needed)} while it is written, and "
                f"{mebibytes(free)} are free there: choose another disk, or draw in shards with --shard"
            )

    def _check_file(self, overwrite: bool) -> int:
        """How many rows of this job are there, in a finished file. Raises `UsageError` where another would be lost."""
        if self._path.is_dir():
            raise UsageError(f"{self._path} is a folder: choose another name")
        if not self._path.exists():
            return 0
        record, wanted = record_of(self._path), len(self._job.items)
        there = record.get("images") if record.get(KEY) == self._key else None
        if isinstance(there, int) and 0 < there <= wanted:
            return there
        if not overwrite:
            more = (
                f"{self._path} has {there} images of this job, more than {wanted}: choose another name, or --overwrite"
            )
            raise UsageError(more if there else f"{self._path} {FOREIGN}")
        return 0

    def _check_partial(self, overwrite: bool) -> bool:
        """Whether rows of this job are there. Raises `UsageError` where rows of another job would be lost."""
        if not self._partial.exists():
            return False
        if 0 < self._rows_in_partial() <= len(self._job.items):
            return True
        known = {self._partial / name for name in (*(f"{name}.npy" for name in self._arrays), _DONE, _WHOLE)}
        known |= {self._partial / f"{name}{_GROWN}" for name in self._arrays}
        with writing(self._partial):
            found = set(self._partial.iterdir()) - set(parts(self._partial))
        if found <= known or overwrite:  # without a job.json: killed before the first row
            return False
        raise UsageError(f"{self._partial} holds rows of another job: finish that one, or replace it with --overwrite")

    def _rows_in_partial(self) -> int:
        """For how many rows of this job there is room in partial files."""
        record = read_job_file(self._partial / JOB_FILE) or {}
        images = record.get("images") if record.get(KEY) == self._key else None
        return images if isinstance(images, int) else 0

    def _read_done(self) -> bytes:
        with writing(self._partial):
            return (self._partial / _DONE).read_bytes()


def key_of_arrays(job: str, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    """The key of a file with these arrays of a job; of each, the shape of a row and the dtype."""
    return hash_of([job, {name: [list(shape), dtype.str] for name, (shape, dtype) in arrays.items()}])


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What a .npy file begins with, as numpy writes it."""
    stream = io.BytesIO()
    write_array_header_1_0(stream, {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return stream.getvalue()


def write_archive(
    file: IO[bytes], names: Iterable[str], content: Callable[[str], Iterator[bytes]], record: Mapping[str, Any]
) -> None:
    """Write an .npz file, in pieces: `content` gives each array as the bytes of a .npy file; `record`: the comment.

    A record that is too long for a comment is cut down to what tells jobs and their parts apart.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            with archive.open(entry, "w", force_zip64=True) as out:
                for piece in content(name):
                    out.write(piece)
        comment = json.dumps(record).encode()
        if len(comment) > _MAX_COMMENT:
            comment = json.dumps({name: record[name] for name in _LEAST if name in record}).encode()
        archive.comment = comment


def record_of(path: Path) -> dict[str, Any]:
    """What the comment of an .npz file says of the job that made it; empty for other files."""
    try:
        value = parse_json(read_comment(path))
    except (UsageError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _copy(rows: IO[bytes], out: IO[bytes], size: int) -> None:
    while size and (piece := rows.read(min(size, _COPY_BYTES))):
        out.write(piece)
        size -= len(piece)
