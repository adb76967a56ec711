"""Workers and chunks as the driver knows them, and how many workers a cluster holds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from engines.files.jobs import Chunk
from engines.fleet.cluster import Node
from engines.fleet.record import DrawnBy
from engines.fleet.worker import Failed
from engines.words import counted

PATIENCE_S = 120.0
"""Seconds without any worker after which a job ends: it can be continued when there are some."""


@dataclass(eq=False)
class Lot:
    """A chunk on its way to become images."""

    chunk: Chunk
    failures: list[Failed] = field(default_factory=list)
    avoided: set[int] = field(default_factory=set)
    """Numbers of the workers that failed on it: others try first."""


@dataclass(eq=False)
class Hand:
    """A worker as the driver knows it."""

    number: int
    node: Node
    actor: Any
    lots: deque[tuple[Any, Lot]] = field(default_factory=deque)
    """What it was given, with the references of the results, in order."""
    drawn: DrawnBy | None = None
    """Set once it can draw."""
    placed: bool = False
    """Whether the worker runs on its node already; until then it waits for room there."""
    failed: set[Lot] = field(default_factory=set)
    """Chunks that it failed on since it last drew one."""

    def take(self, reference: Any) -> Lot:
        """The chunk of a result that has come, which it then has no more."""
        place = next(place for place, (given, _) in enumerate(self.lots) if given == reference)
        lot = self.lots[place][1]
        del self.lots[place]
        return lot


@dataclass(frozen=True)
class Staffing:
    """How many workers there are, and what each has."""

    threads: int | None = None
    """CPU threads of each; None: one worker for each node, with all of its CPUs."""
    gpu: bool = False
    """Whether each worker needs a GPU of its own."""
    most: int | None = None
    """Workers at most; None: as many as the cluster holds."""
    mixed: bool = False
    """Whether workers may differ in what they compute with."""
    patience: float = PATIENCE_S

    def room(self, node: Node) -> int:
        """How many workers a node holds."""
        if self.gpu:
            return int(node.gpus)
        return int(node.cpus // self.threads) if self.threads else int(node.cpus >= 1)

    def cpus(self, node: Node) -> int:
        """The CPUs of each of its workers, which are its threads."""
        return self.threads or (1 if self.gpu else int(node.cpus))

    @property
    def wanted(self) -> str:
        """What a node needs for a worker."""
        return "a GPU" if self.gpu else counted(self.threads or 1, "CPU")
