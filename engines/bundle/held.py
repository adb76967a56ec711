"""The files of a bundle as they were when it was opened, whatever takes their place later.

A bundle may be replaced while it is in use (`build --force` beside a server). What is opened late, a graph, a constant,
the golden run, then still comes from the files that were verified: each is held open from the start, and a file that
others have to open by its name is compared with the held one.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from engines.storage import sha256_of_pieces

_PIECE = 1 << 22
_LOCK = threading.Lock()


class HeldFiles:
    """Open files of one folder."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Open the files `names`; of a link, what it leads to. Raises `OSError`, and holds none then."""
        self._folder = folder
        self._handles: dict[str, int] = {}
        self._close = weakref.finalize(self, _close, self._handles)
        try:
            for name in names:
                self._handles[name] = os.open(folder / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError:
            self._close()
            raise

    def _pieces(self, name: str) -> Iterator[bytes]:
        offset = 0
        while piece := _read(self._handles[name], _PIECE, offset):
            offset += len(piece)
            yield piece

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return b"".join(self._pieces(name))

    def sha256(self, name: str) -> str:
        """SHA-256 of a file in hex."""
        return sha256_of_pieces(self._pieces(name))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return os.fstat(self._handles[name]).st_size

    def view(self, name: str) -> mmap.mmap:
        """The content of a file that is not empty, mapped: it takes no memory of its own."""
        return mmap.mmap(self._handles[name], 0, access=mmap.ACCESS_READ)

    def in_place(self, *names: str) -> bool:
        """True where these names in the folder still lead to the files that are held, and to none put there since."""
        try:
            return all(os.path.samestat(os.fstat(self._handles[name]), (self._folder / name).stat()) for name in names)
        except OSError:
            return False

    def linked(self, *names: str) -> bool:
        """True where one of these names is a link to a file elsewhere, as in the caches of model hubs."""
        return any((self._folder / name).is_symlink() for name in names)


def _read(handle: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    with _LOCK:  # Windows: the place is shared by all who read
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)


def _close(handles: dict[str, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])
