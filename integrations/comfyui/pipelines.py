"""Bundles that a user can choose, and the pipelines that stay loaded from one run of a workflow to the next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines import BundleError, Pipeline
from engines.bundle.bundle import BUNDLES, DEMO_BUNDLE, place_of, standing_bundles
from engines.bundle.manifest import MANIFEST, Manifest
from engines.hub import is_hub_name, parse_hub_folder
from engines.storage import digest_of, expanded

from .host import model_folders

DEMO = "embedded demo"
"""What the bundle inside the package is called in the list."""
_KEPT = 2
"""Pipelines that stay loaded: two models side by side in a workflow, and no more memory than that."""


def offered_bundles() -> dict[str, Path]:
    """The folders of bundles by the names that the list shows: the newest first, the embedded demo last.

    Of two of one name, the one in ComfyUI's own folder of models is meant.
    """
    found: dict[str, Path] = {}
    for folder in [*model_folders(), BUNDLES]:
        for bundle in standing_bundles(folder):
            found.setdefault(bundle.name, bundle)
    return found | {DEMO: DEMO_BUNDLE}


def folder_of(bundle: str, path: str = "") -> str:
    """The path or `hf://` name to open: `path` where one is given, else the bundle that the list calls `bundle`.

    Raises `BundleError` where the list has none of that name.
    """
    if path.strip():
        return path.strip()
    offered = offered_bundles()
    if bundle not in offered:
        raise BundleError(f"there is no bundle called {bundle!r}: choose one of {', '.join(offered)}, or give its path")
    return str(offered[bundle])


def check_path(path: str) -> None:
    """Raises `UsageError` where a path is no bundle that this version reads. Of the Hub, only the name is looked at."""
    if is_hub_name(path):
        parse_hub_folder(path)
        return
    place = place_of(expanded(path))
    if not (place / MANIFEST).is_file():
        raise BundleError(f"{path} is no bundle: name the folder that var-export build wrote, which has a {MANIFEST}")
    Manifest.read(place)


def mark_of(path: str) -> str:
    """What changes when a bundle's folder does: a digest of its files' names, sizes and times, plans too.

    No file is read, since ComfyUI asks before each run. Of the Hub, a name is what it is.
    """
    if is_hub_name(path):
        return path
    place = place_of(expanded(path))
    states = []
    for file in sorted([*place.glob("*"), *place.glob("plans/*/*")]):
        try:
            state = file.stat()
        except OSError:  # gone since it was listed, or a link to nothing
            continue
        states.append([str(file), state.st_ino, state.st_size, state.st_mtime_ns])
    return digest_of(states)


@dataclass(frozen=True, kw_only=True)
class ChosenPipeline:
    """What a wire of type VAR_PIPELINE carries: which bundle, as it lay on disk, and what computes. It holds no memory.

    The nodes borrow the pipeline itself with `lent`, so that one which was dropped meanwhile is simply loaded again.
    """

    path: str
    mark: str
    backend: str | None
    """None: as `Pipeline.load` chooses."""
    provider: str
    threads: int | None
    """None: all cores."""
    max_batch: int

    @contextmanager
    def lent(self) -> Iterator[Pipeline]:
        """The pipeline, loaded now if it is not. Raises `VarExportError` as `Pipeline.load`."""
        with _SHELF.lent(self) as pipeline:
            yield pipeline


class PipelineShelf:
    """The pipelines that stay loaded. One node uses them at a time, so that none is closed while it draws."""

    def __init__(self, most: int = _KEPT) -> None:
        """`most`: how many stay loaded."""
        self._most, self._lock = most, threading.RLock()
        self._loaded: OrderedDict[ChosenPipeline, Pipeline] = OrderedDict()

    @contextmanager
    def lent(self, chosen: ChosenPipeline) -> Iterator[Pipeline]:
        """The pipeline of a choice. What was loaded of the same folder before it changed is closed first."""
        with self._lock:
            if chosen not in self._loaded:
                for other in [each for each in self._loaded if each.path == chosen.path and each.mark != chosen.mark]:
                    self._loaded.pop(other).close()
                while len(self._loaded) >= self._most:
                    self._loaded.popitem(last=False)[1].close()
                self._loaded[chosen] = Pipeline.load(
                    chosen.path,
                    backend=chosen.backend,
                    provider=chosen.provider,
                    threads=chosen.threads,
                    max_batch=chosen.max_batch,
                )
            self._loaded.move_to_end(chosen)
            yield self._loaded[chosen]

    def __len__(self) -> int:
        return len(self._loaded)

    def clear(self) -> None:
        """Close all of them."""
        with self._lock:
            while self._loaded:
                self._loaded.popitem()[1].close()


_SHELF = PipelineShelf()  # of the process: ComfyUI makes nodes anew at will, and a model takes seconds to load
