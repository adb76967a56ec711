"""Files that are whole or not there at all, locks between processes, and digests: what all writers and caches stand on.

A file is written beside its place and renamed when it is complete. What a process that was killed left beside it is
called a part; whoever holds the lock of that place may remove it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from engines.errors import UsageError

log = logging.getLogger(__name__)
PART_SUFFIX = ".part"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Numbers of the errors that a disk, or who may write there, is to blame for."""
ROOT = Path(__file__).parents[1]
"""The folder that holds the packages of this project."""

_PIECE = 1 << 22


def cache_folder() -> Path | None:
    """Where caches of this user live; None for a user without a home, as in some containers: nothing is kept there."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "var-export"


def kernel_folder(name: str, content: Any) -> Path | None:
    """The folder in that cache for what a runtime compiles, by the content that it is made of; made if need be.

    None where there is no place for one: what is compiled is then not kept.

    Args:
        name: of the runtime, a path such as `onnxruntime/tensorrt`.
        content: plain JSON types; another content has another folder.

    """
    cache = cache_folder()
    if cache is None:
        return None
    folder = cache / "kernels" / name / digest_of(content)[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("what %s compiles is built anew each time: %s", name, error)
        return None
    return folder


def expanded(path: str | Path) -> Path:
    """A path whose leading `~` is the home folder; `~name` of nobody's is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def writing(place: Path, remedy: str = "") -> Iterator[None]:
    """Turns the errors of the file system (no space, no permission) into a `UsageError` that names `place`.

    `remedy`: what the user can do, for the end of the message.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {place}: {error.strerror or error}{_then(remedy)}") from error


@contextmanager
def atomic_write(path: Path, *, sync: bool = False, remedy: str = "") -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, whole, when the block ends; nothing appears if it raises.

    Missing folders are made, and a file that is there is replaced.

    Args:
        path: where the file is to be.
        sync: return only when the disk has it, so that it outlives a power failure.
        remedy: see `writing`.

    Raises `UsageError` where the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _new_part(part) as file:
                yield file
                file.flush()
                if sync:
                    sync_to_disk(part)
                if os.name == "posix":  # while it is locked
                    part.replace(path)
            if os.name != "posix":  # where no open file can be renamed
                part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if sync:
            sync_to_disk(path.parent)


def write_text(path: Path, text: str, *, sync: bool = False, remedy: str = "") -> None:
    """Write UTF-8 with `atomic_write`, and raise as it does."""
    with atomic_write(path, sync=sync, remedy=remedy) as file:
        file.write(text.encode())


def write_json(
    path: Path, document: Any, *, indent: int | None = 1, allow_nan: bool = True, sync: bool = False, remedy: str = ""
) -> None:
    """Write plain JSON types with `atomic_write`; without `indent` on one line, for documents that nobody reads.

    Raises `ValueError` where `allow_nan` is false and a number is not finite, `UsageError` as `atomic_write`.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(document, indent=indent, separators=separators, allow_nan=allow_nan)
    write_text(path, text + "\n", sync=sync, remedy=remedy)


def parts(folder: Path, name: str = "*") -> Iterator[Path]:
    """Parts of the files in `folder` that are called `name` (a pattern of `Path.glob`)."""
    return folder.glob(f".{name}.*{PART_SUFFIX}")


def remove_dead_parts(files: Iterable[Path]) -> None:
    """Remove what killed processes left of these files. A part whose writer lives is locked, and stays."""
    names: dict[Path, set[str]] = {}
    for file in files:
        names.setdefault(file.parent, set()).add(file.name)
    for folder, wanted in names.items():
        for part in parts(folder):
            if part.name[1:].rsplit(".", 2)[0] in wanted:
                with contextlib.suppress(OSError), part.open("r+b") as left:
                    if _flock(left.fileno()) is True:
                        part.unlink()


def _new_part(part: Path) -> IO[bytes]:
    """A new file that is locked for as long as it is open, where the file system has locks."""
    while True:
        file = part.open("wb")
        if _flock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # `remove_dead_parts` was there in between


def _flock(handle: int) -> bool | None:
    """Lock an open file: whether nobody else has, or None where there are no locks."""
    try:
        import fcntl  # not at the top: bundles can be read where there is none

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, ImportError):
        return None
    return True


def link_or_copy(file: Path, link: Path) -> None:
    """The same content under a second name: a hard link, since ONNX Runtime follows no symbolic ones to weights.

    Of a symbolic link, as all files in the cache of a hub are, what it leads to.
    """
    file = file.resolve()
    try:
        os.link(file, link)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, link)


def sync_to_disk(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Lock:
    """An exclusive lock between processes, on a folder or on a file that exists for the lock alone.

    The system frees it when its process dies: what lies at a place whose lock one holds was left by a dead process.
    """

    def __init__(self, place: Path, *, busy: str, remedy: str = "") -> None:
        """Args: place: a folder that is there, or else a file to be made; busy: the message to who does not get it;
        remedy: what a user can do where the place cannot be written.
        """
        self._place, self._busy, self._remedy = place, busy, remedy
        self._handle: int | None = None
        self._made = False

    def acquire(self) -> None:
        """Take it. Raises `UsageError` where another process has it, or the place cannot be written."""
        with writing(self._place.parent, self._remedy):
            self._made = not self._place.is_dir()
            if self._made:
                self._place.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._place, os.O_RDWR | os.O_CREAT if self._made else os.O_RDONLY, 0o644)
        if not self._locked(handle):
            os.close(handle)
            raise UsageError(self._busy)
        self._handle = handle

    def release(self, *, moved: bool = False) -> None:
        """Give it back, if it is held. `moved`: its file went elsewhere, so what has its name is another's."""
        if self._handle is not None:
            if self._made and not moved:
                self._place.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def _locked(self, handle: int) -> bool:
        if (locked := _flock(handle)) is not True:
            return locked is None
        try:
            # The process that had it may just have removed the file: a lock on the removed one guards nothing.
            return os.fstat(handle).st_ino == self._place.stat().st_ino
        except FileNotFoundError:
            return False


def sha256_of(file: Path) -> str:
    """SHA-256 of a file in hex, read in pieces. Raises `OSError`."""
    with file.open("rb") as stream:
        return sha256_of_pieces(iter(lambda: stream.read(_PIECE), b""))


def sha256_of_pieces(pieces: Iterable[bytes]) -> str:
    """SHA-256 in hex of bytes that come in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def digest_of(document: Any) -> str:
    """SHA-256 in hex of a document of plain JSON types; the order of its keys does not count."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def source_files(packages: Sequence[str], without: Sequence[str] = ()) -> list[Path]:
    """Python files of this project in `packages` that lie in none of `without`, sorted.

    Both are folders, or files without their `.py`, relative to `ROOT`: `calib`, `engines/editing/mask`.
    """
    return sorted(_modules(packages) - _modules(without))


def source_digest(packages: Sequence[str], without: Sequence[str] = ()) -> str:
    """SHA-256 in hex over names and content of `source_files`: a cache under it holds as long as this code does."""
    digest = hashlib.sha256()
    for file in source_files(packages, without):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _then(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""


def _modules(names: Sequence[str]) -> set[Path]:
    found: set[Path] = set()
    for place in map(ROOT.joinpath, names):
        found |= set(place.rglob("*.py")) if place.is_dir() else {place.with_suffix(".py")}
    return found
