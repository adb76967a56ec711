"""Writing a bundle so that it exists whole or not at all.

Files go to a hidden sibling of the target; the manifest, written last, makes it a bundle, and a rename
puts it in place. A lock keeps two builds of one target apart and tells a dead build's leftovers from a
live one's.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from engines.bundle import sha256_of
from engines.errors import UsageError
from engines.manifest import MANIFEST, FileEntry


class BundleWriter:
    """Context manager over the folder that becomes the bundle on `publish`; gone without that."""

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()  # of a link, what it leads to
        self._replaces = False
        parent, name = self.target.parent, self.target.name
        self.folder = parent / f".{name}.partial"
        self._previous = parent / f".{name}.previous"
        self._lock_file = parent / f".{name}.lock"
        self._lock: int | None = None

    def __enter__(self) -> BundleWriter:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write to {self.folder.parent}: {error.strerror}; choose another --out") from error
        if not self._locked(self._lock):
            os.close(self._lock)
            self._lock = None
            raise UsageError(f"another build is writing {self.target}; wait for it, or choose another --out")
        # The lock is ours, so whatever lies here was left by a build that died.
        if self._previous.exists():
            if self.target.exists():
                shutil.rmtree(self._previous)
            else:
                self._previous.rename(self.target)
        self._replaces = self.target.exists()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self

    def _locked(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A build that just ended removes the file: a lock on the removed one guards nothing.
            return os.fstat(handle).st_ino == self._lock_file.stat().st_ino
        except OSError:
            return False

    def seal(self, manifest: dict[str, Any]) -> None:
        """Hash the files and write the manifest: the hidden folder is now a bundle that can be opened and checked."""
        files = sorted(self.folder.iterdir())
        entries = {file.name: asdict(FileEntry(file.stat().st_size, sha256_of(file))) for file in files}
        for file in files:
            _sync(file)
        path = self.folder / MANIFEST
        path.write_text(json.dumps(manifest | {"files": entries}, indent=1) + "\n", encoding="utf-8")
        _sync(path)

    def publish(self) -> None:
        """Put the sealed bundle in place of whatever was there."""
        if self.target.exists():
            if not self._replaces:
                raise UsageError(f"{self.target} appeared while its bundle was built; move it, and build again")
            self.target.rename(self._previous)
        self.folder.rename(self.target)
        _sync(self.target.parent)
        shutil.rmtree(self._previous, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous.exists() and not self.target.exists():  # interrupted between the two renames
            self._previous.rename(self.target)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock_file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
