"""What runs on a node of the cluster: a pipeline that judges itself, then draws chunk after chunk.

Its methods raise nothing: what goes wrong is a value, `Failed`, so that no error has to survive being sent.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from engines.draw.results import ImageSource
from engines.errors import BackendError, BundleError, CheckFailedError, UsageError, VarExportError
from engines.files.drawing import draw_items
from engines.files.jobs import Chunk, Made
from engines.fleet.bundles import received, seen_at
from engines.fleet.shards import ShardPlan
from engines.machine import machine
from engines.packages import NAME

_KINDS: dict[str, type[VarExportError]] = {
    "BundleError": BundleError,
    "UsageError": UsageError,
    "CheckFailedError": CheckFailedError,
}


@dataclass(frozen=True)
class Failed:
    """What went wrong on a worker."""

    kind: str
    reason: str
    """One line."""
    trace: str = ""
    """Where, for an error that is a bug."""

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """An error as a value."""
        kinds = [name for name, kind in _KINDS.items() if isinstance(error, kind)]
        if isinstance(error, VarExportError):
            return cls(kinds[0] if kinds else "BackendError", str(error))
        return cls("bug", f"{type(error).__name__}: {error}", traceback.format_exc())

    def error(self, message: str) -> VarExportError:
        """An error of the same kind with this message."""
        return _KINDS.get(self.kind, BackendError)(message)


@dataclass(frozen=True)
class WorkOrder:
    """What every worker is told: plain values and a function of a module, so that it can be sent."""

    bundle: str
    """The folder where a node may find the bundle itself."""
    digest: str
    """The SHA-256 of the bundle's manifest, which holds those of all its files."""
    settings: Mapping[str, Any]
    """The settings of the job, among them each sampling option by its name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of `Pipeline.load`, but for `threads`."""
    preview: bool = False
    """Whether the pictures after each scale are wanted too."""
    shards: ShardPlan | None = None
    """Where workers store the images themselves; None: they give them back."""
    load: Callable[..., ImageSource] | None = None
    """What draws, called as `Pipeline.load` is, by default that."""


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker says of itself once it can draw."""

    host: str
    process: int
    cpu: str
    """The model of its processor."""
    version: str
    """The version of this project that the worker runs."""
    runtime: Mapping[str, Any]
    """See `Pipeline.describe_runtime`."""

    @property
    def computes(self) -> dict[str, Any]:
        """What has to be alike among the workers of a job: backend, its provider, device and precision, and the form.

        Versions of a runtime are not among it, nor is the processor: they may differ between machines, and are told.
        """
        names = ("form", "backend", "provider", "hint", "int8")
        return {"version": self.version, **{name: self.runtime[name] for name in names if name in self.runtime}}


class FleetWorker:
    """A worker: made on its node as an actor of Ray, asked for `missing`, then to `start`, then to `draw`."""

    def __init__(self, order: WorkOrder, threads: int | None) -> None:
        """Args: threads: of the CPU; None: all physical cores."""
        self._order, self._threads = order, threads
        self._source: ImageSource | None = None

    def missing(self) -> bool | Failed:
        """Whether this node does not have the bundle yet."""
        try:
            return self._order.load is None and seen_at(self._order.bundle, self._order.digest) is None
        except Exception as error:
            return Failed.of(error)

    def start(self, references: Mapping[str, Sequence[Any]] | None) -> WorkerFacts | Failed:
        """Load the bundle, and judge what computes it. `references`: of its files, where the node was missing it."""
        try:
            self._source = self._loaded(references)
            runtime = self._source.describe_runtime()
            return WorkerFacts(socket.gethostname(), os.getpid(), machine().cpu, metadata.version(NAME), runtime)
        except Exception as error:
            return Failed.of(error)

    def _loaded(self, references: Mapping[str, Sequence[Any]] | None) -> ImageSource:
        from engines.draw.pipeline import Pipeline

        load, folder = self._order.load, None
        if load is None:
            load = Pipeline.load
            if references is not None:
                import ray

                folder = received(references, self._order.digest, ray.get)
            else:
                folder = seen_at(self._order.bundle, self._order.digest)
            if folder is None:
                raise BundleError(f"{self._order.bundle} was changed while the job began: run the same command again")
        return load(folder, threads=self._threads, **self._order.options)

    def draw(self, items: Chunk) -> Made | Failed:
        """The images of these items; none where it stores them itself."""
        try:
            return self._drawn(items) if self._order.shards is None else self._order.shards.write(items, self._drawn)
        except Exception as error:
            return Failed.of(error)

    def _drawn(self, items: Chunk) -> Made:
        assert self._source is not None, "it has not started"
        return draw_items(self._source, items, self._order.settings, preview=self._order.preview)
