"""What tests make once and keep for the next run, in `build/test-bundles` or where VAR_EXPORT_TEST_BUNDLES says.

What lies there is keyed by what it was made from, so a change of the code makes it anew. Tests that run side by side
make each thing once: one makes it, the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = Path(os.environ.get("VAR_EXPORT_TEST_BUNDLES", ROOT / "build" / "test-bundles")).absolute()
_GIVEN: dict[Path, dict[str, tuple[int, int]]] = {}


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """The path `name` of the kept folder, for one process at a time."""
    path = KEPT / name
    lock = path.with_name(f".{path.name}.making")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield path


def made_once(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the kept ones, as `make` filled it for `key`. Shared: copy it before changing a file."""
    with locked(name) as folder:
        stamp = folder.with_name(f".{name}.key")
        if not stamp.exists() or stamp.read_text() != key:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            stamp.write_text(key)
    return given(folder)


def given(folder: Path) -> Path:
    """`folder`, which from now on has to stay as it is."""
    _GIVEN.setdefault(folder, _listing(folder))
    return folder


def changed() -> list[str]:
    """The names of the kept folders that some test has changed since it was given them."""
    return [folder.name for folder, listing in _GIVEN.items() if _listing(folder) != listing]


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    states = {str(file.relative_to(folder)): file.stat() for file in folder.rglob("*") if file.is_file()}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}
