"""Who drew what: the workers of a job, each with the images that came from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.files.jobs import Item
from engines.fleet.worker import WorkerFacts
from engines.words import counted

_SHOWN = 6  # workers in the summary


@dataclass
class DrawnBy:
    """One worker that could draw, and what it drew."""

    worker: int
    """The number of the worker; workers are counted from 1 in the order in which they were started."""
    node: str
    """The name that Ray gives the node that it runs on."""
    facts: WorkerFacts
    images: int = 0
    runs: list[list[int]] = field(default_factory=list)
    """First and last number of each run of images, by their places in the whole job."""
    lost: str | None = None
    """Why it went; None: it stayed to the end."""

    def add(self, items: Iterable[Item]) -> None:
        """Images that came from it."""
        for item in items:
            self.images += 1
            if self.runs and self.runs[-1][1] == item.number - 1:
                self.runs[-1][1] = item.number
            else:
                self.runs.append([item.number, item.number])

    def describe(self) -> dict[str, Any]:
        """Plain JSON types; `drawn` as `0-7,16-23`."""
        drawn = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.runs)
        own = {"host": self.facts.host, "process": self.facts.process, "cpu": self.facts.cpu}
        runtime: Mapping[str, Any] = self.facts.runtime
        more = {"version": self.facts.version, "runtime": dict(runtime), "images": self.images, "drawn": drawn}
        return {"worker": self.worker, "node": self.node, **own, **more, "lost": self.lost}


@dataclass
class FleetRecord:
    """What happened on the cluster."""

    workers: list[DrawnBy] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Why a node draws nothing, by its name."""
    retried: int = 0
    """Chunks that were given out once more."""

    def describe(self) -> dict[str, Any]:
        """Plain JSON types, for --json."""
        workers = [worker.describe() for worker in self.workers]
        return {"workers": workers, "refused": dict(self.refused), "chunks_retried": self.retried}

    def lines(self) -> list[str]:
        """The same for a terminal, short."""
        drew = [worker for worker in self.workers if worker.images]
        shown = [
            f"{worker.images} by worker {worker.worker} on {worker.facts.host} ({worker.facts.runtime.get('backend')}, "
            f"{worker.facts.cpu})"
            for worker in drew[:_SHOWN]
        ]
        more = [f"{counted(len(drew) - _SHOWN, 'more worker')}"] if len(drew) > _SHOWN else []
        lines = [f"drawn: {'; '.join([*shown, *more])}"] if shown else []
        lost = sum(worker.lost is not None for worker in self.workers)
        if lost or self.retried:
            lines.append(f"{counted(lost, 'worker')} lost, {counted(self.retried, 'chunk')} drawn once more")
        return lines
