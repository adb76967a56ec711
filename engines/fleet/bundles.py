"""How a bundle reaches the nodes: by a path that they see too, or in pieces through Ray's object store.

    driver: BundlePieces -> object store, once -> each node: received() -> cache/bundles/DIGEST -> Pipeline

On a node, the folder is called by the digest of the manifest, which holds the SHA-256 of every file. Nothing counts
before all of them were compared.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST, Manifest
from engines.errors import BackendError, BundleError, UsageError
from engines.storage import Lock, cache_folder, writing

PIECE = 1 << 26
"""Bytes of a bundle's file that travel as one object: what the driver and a worker hold in memory at once."""
_POLL_S = 0.2


def files_of(manifest: Manifest) -> list[str]:
    """All files of a bundle, with its plans, by their names in its folder."""
    plans = [plan.file for each in manifest.plans for plan in each.graphs.values()]
    return list(dict.fromkeys([MANIFEST, *manifest.files, *plans]))


class BundlePieces:
    """A bundle on the driver, put into the object store when the first node asks for it."""

    def __init__(self, folder: Path, put: Callable[[bytes], Any]) -> None:
        """Args: folder: a bundle's; put: what gives a reference for bytes, as `ray.put`."""
        self._folder, self._put = folder, put
        self._references: dict[str, list[Any]] | None = None

    @property
    def references(self) -> Mapping[str, Sequence[Any]]:
        """References of the pieces of each file, in order, by the file's name. Raises `BundleError`."""
        if self._references is None:
            manifest = Bundle.open(self._folder).manifest  # verified before it travels
            self._references = {
                name: [self._put(piece) for piece in _pieces(self._folder / name)] for name in files_of(manifest)
            }
        return self._references


def seen_at(place: str, digest: str) -> Path | None:
    """The folder on this machine that has the bundle of this digest: at `place`, or in the cache; None: neither.

    What is at `place` is verified when it is loaded, as any bundle is; what is in the cache here, since a damaged copy
    there is fetched again.
    """
    if _has(Path(place), digest, verify=False):
        return Path(place)
    cached = _cached(digest)
    return cached if _has(cached, digest, verify=True) else None


def received(references: Mapping[str, Sequence[Any]], digest: str, get: Callable[[Any], bytes]) -> Path:
    """The bundle's folder in this machine's cache, fetched unless another worker of this machine has done so.

    Args:
        references: see `BundlePieces`.
        digest: of the bundle.
        get: what gives the bytes of a reference, as `ray.get`.

    Raises `UsageError` where the cache cannot be written, `BundleError` where the bundle arrived damaged.

    """
    folder = _cached(digest)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _turn(folder.with_name(f".{digest}.lock")):
        if _has(folder, digest, verify=True):
            return folder
        part = folder.with_name(f".{digest}.part")  # of a worker that was killed: the lock says that none writes it
        with writing(folder):
            shutil.rmtree(part, ignore_errors=True)
            for name, pieces in references.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                with (part / name).open("wb") as file:
                    for piece in pieces:
                        file.write(get(piece))
            if Bundle.open(part).digest != digest:
                raise BundleError(f"{part} is not the bundle that was sent: {digest}")
            shutil.rmtree(folder, ignore_errors=True)  # a copy that was damaged
            part.rename(folder)
    return folder


def _has(folder: Path, digest: str, *, verify: bool) -> bool:
    try:
        return Bundle.open(folder, verify=verify).digest == digest
    except (BundleError, OSError):
        return False


def _cached(digest: str) -> Path:
    cache = cache_folder()
    if cache is None:
        raise BackendError("a worker has no home folder to keep the bundle in: set XDG_CACHE_HOME for it")
    return cache / "bundles" / digest


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            yield piece


@contextmanager
def _turn(place: Path) -> Iterator[None]:
    """Waits for a lock that other workers of this machine hold for as long as they fetch."""
    lock = Lock(place, busy="another worker of this machine is fetching the bundle")
    while True:
        try:
            lock.acquire()
            break
        except UsageError:
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.release()
