"""Who draws which chunk: workers come and go, chunks are given out, given again, and named where they never succeed.

Each worker has at most `AHEAD` chunks: the one that it draws and the one after. So a result waits for the driver, never
the other way round, and what is drawn but not stored is at most `AHEAD` chunks for each worker, however long the job.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from engines.errors import BackendError, VarExportError
from engines.files.jobs import Chunk, Made
from engines.fleet.bundles import BundlePieces
from engines.fleet.cluster import Cluster, Node
from engines.fleet.hands import Hand, Lot, Staffing
from engines.fleet.record import DrawnBy, FleetRecord
from engines.fleet.worker import Failed, FleetWorker, WorkerFacts, WorkOrder
from engines.words import counted

AHEAD = 2
TRIES = 3
"""How often a chunk may fail before it is named and left out."""
HOPELESS = 12
"""Failures after which a job ends that has not had a single image."""
LOOK_S = 1.0
"""Seconds between two looks at which nodes there are."""
_NAMED = 8  # chunks in the message about those that failed


class Fleet(AbstractContextManager["Fleet"]):
    """The workers of one job, on a cluster. `drawn` is an `engines.files.jobs.Drawing`."""

    def __init__(
        self,
        cluster: Cluster,
        order: WorkOrder,
        pieces: BundlePieces | None,
        staffing: Staffing,
        *,
        tell: Callable[[str], None],
        progress: Callable[[], None] | None = None,
    ) -> None:
        """Args: pieces: of the order's bundle, for nodes that do not see it; tell: called with a line where a worker
        is refused or lost; progress: called when the first worker can draw.
        """
        self._cluster, self._order, self._pieces, self._staffing = cluster, order, pieces, staffing
        self._tell, self._progress = tell, progress
        self._hands: list[Hand] = []
        self._waits: dict[Any, tuple[Hand, str]] = {}
        """What is awaited, by its reference: `missing`, `start` or `draw` of a worker."""
        self._again: deque[Lot] = deque()
        self._new: deque[Lot] = deque()
        self._failed: list[Lot] = []
        self._unfit: VarExportError | None = None
        self._started = self._failures = 0
        self._stillborn: dict[str, int] = {}
        """Workers that ended before they could draw, by their nodes."""
        self._looked = self._idle_since = time.monotonic() - LOOK_S
        self.record = FleetRecord()

    def drawn(self, chunks: Sequence[Chunk]) -> Generator[tuple[Chunk, Made], None, None]:
        """See `engines.files.jobs.Drawing`.

        Raises, when all others are drawn, an error that names the chunks which failed `TRIES` times; and at once where
        no node can draw, none is there for long, or everything fails.
        """
        self._new.extend(map(Lot, chunks))
        self._idle_since = time.monotonic()
        while self._new or self._again or any(hand.lots for hand in self._hands):
            self._recruit()
            self._hand_out()
            for reference in self._arrived():
                hand, what = self._waits.pop(reference, (None, ""))
                if hand is None:  # its worker was lost meanwhile
                    continue
                try:
                    value = self._cluster.ray.get(reference)
                except self._cluster.ray.exceptions.RayError as error:
                    self._lose(hand, _why(error))
                    continue
                if what != "draw":
                    self._prepare(hand, what, value)
                    continue
                lot = hand.take(reference)
                self._hand_out()  # before the images are stored: the worker goes on meanwhile
                if isinstance(value, Failed):
                    self._fail(hand, lot, value)
                    continue
                assert hand.drawn is not None
                hand.failed.clear()
                hand.drawn.add(lot.chunk)
                yield lot.chunk, value
                del value
        if self._failed:
            raise self._named()

    def close(self) -> None:
        """End all workers."""
        for hand in self._hands:
            self._cluster.ray.kill(hand.actor)
        self._hands.clear()
        self._waits.clear()

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def _left(self) -> int:
        return len(self._new) + len(self._again)

    def _recruit(self) -> None:
        """Start workers where there is room for them and work to do; raise where there has been nobody for long."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        nodes = {node.name: node for node in self._cluster.nodes()}
        for hand in list(self._hands):
            if hand.node.name not in nodes:
                self._lose(hand, "its node is gone", blame=False)
        idle = sum(not hand.lots for hand in self._hands)
        for node in nodes.values():
            if node.name in self.record.refused:
                continue
            here = sum(hand.node.name == node.name for hand in self._hands)
            for _ in range(here, self._staffing.room(node)):
                if idle >= self._left or len(self._hands) >= (self._staffing.most or len(self._hands) + 1):
                    break
                self._start(node)
                idle += 1
        if any(hand.placed for hand in self._hands):
            self._idle_since = now
        elif self._unfit is not None and not self._hands:
            raise self._unfit
        elif now - self._idle_since > self._staffing.patience:
            raise BackendError(
                f"no worker for {now - self._idle_since:.0f} s: each needs {self._staffing.wanted} that is free on a "
                "node of the cluster; when there is one, the same command continues"
            )

    def _start(self, node: Node) -> None:
        self._started += 1
        cpus = self._staffing.cpus(node)
        actor = self._cluster.start(
            FleetWorker, node, cpus=cpus, gpus=float(self._staffing.gpu), order=self._order, threads=cpus
        )
        hand = Hand(self._started, node, actor)
        self._hands.append(hand)
        self._waits[actor.missing.remote()] = hand, "missing"

    def _prepare(self, hand: Hand, what: str, value: Any) -> None:
        """The next step of a worker that does not draw yet."""
        hand.placed = True
        if isinstance(value, Failed):
            self._refuse(hand, value.reason, value)
        elif what == "missing":
            references = None
            if value:
                assert self._pieces is not None, "a bundle that nobody can send"
                references = self._pieces.references
            self._waits[hand.actor.start.remote(references)] = hand, "start"
        else:
            self._admit(hand, value)

    def _admit(self, hand: Hand, facts: WorkerFacts) -> None:
        """A worker can draw; unless it computes otherwise than those before."""
        first = next((worker.facts.computes for worker in self.record.workers), facts.computes)
        if facts.computes != first and not self._staffing.mixed:
            other = {name: value for name, value in facts.computes.items() if first.get(name) != value}
            usual = {name: first.get(name) for name in other}
            reason = f"it computes with {_words(other)}, the others with {_words(usual)}: --mixed allows it"
            self._refuse(hand, reason, Failed("BackendError", reason))
            return
        if not self.record.workers and self._progress is not None:
            self._progress()
        hand.drawn = DrawnBy(hand.number, hand.node.name, facts)
        self.record.workers.append(hand.drawn)

    def _refuse(self, hand: Hand, reason: str, failed: Failed) -> None:
        """A node cannot draw this job: none is started there again."""
        if hand.node.name not in self.record.refused:
            self._tell(f"no worker on {hand.node.host}: {reason}")
            self.record.refused[hand.node.name] = reason
            self._unfit = self._unfit or failed.error(f"no worker on {hand.node.host}: {reason}")
        self._drop(hand)

    def _hand_out(self) -> None:
        """Give each worker what it may have ahead, in turns: what was lost, then what is new, then what failed."""
        for depth in range(1, AHEAD + 1):
            for hand in self._hands:
                if hand.drawn is None or len(hand.lots) >= depth:
                    continue
                lot = self._next_for(hand)
                if lot is None:
                    continue
                reference = hand.actor.draw.remote(lot.chunk)
                hand.lots.append((reference, lot))
                self._waits[reference] = hand, "draw"

    def _next_for(self, hand: Hand) -> Lot | None:
        able = {other.number for other in self._hands if other.drawn is not None}
        if self._new:
            return self._new.popleft()
        for lot in self._again:
            if hand.number not in lot.avoided or able <= lot.avoided:  # nobody is left who has not tried
                self._again.remove(lot)
                return lot
        return None

    def _arrived(self) -> list[Any]:
        """References of what is there, in the order in which each worker was given it; waits for `LOOK_S` at most."""
        if not self._waits:
            time.sleep(LOOK_S / 10)
            return []
        waits = list(self._waits)
        ready, _ = self._cluster.ray.wait(waits, num_returns=1, timeout=LOOK_S, fetch_local=True)
        return list(ready)

    def _fail(self, hand: Hand, lot: Lot, failed: Failed) -> None:
        """A chunk was not drawn: others try it, or it is given up."""
        lot.failures.append(failed)
        lot.avoided.add(hand.number)
        self._failures += 1
        hand.failed.add(lot)
        if len(lot.failures) >= TRIES:
            self._failed.append(lot)
        else:
            self.record.retried += 1
            self._again.append(lot)
        if self._failures >= HOPELESS and not any(worker.images for worker in self.record.workers):
            raise failed.error(f"nothing could be drawn: {failed.reason}")
        if len(hand.failed) >= TRIES and hand in self._hands:
            self._lose(hand, f"it failed on {TRIES} chunks in turn", blame=False)

    def _lose(self, hand: Hand, why: str, *, blame: bool = True) -> None:
        """A worker is gone, with all that it had: the chunk that it drew may be to blame, those after it are not."""
        if hand not in self._hands:
            return
        self._tell(f"worker {hand.number} on {hand.node.host} is gone: {why}")
        if hand.drawn is not None:
            hand.drawn.lost = why
        else:
            self._stillborn[hand.node.name] = self._stillborn.get(hand.node.name, 0) + 1
            if self._stillborn[hand.node.name] >= TRIES:
                self._refuse(hand, why, Failed("BackendError", why))
                return
        lots = [lot for _, lot in hand.lots]
        self._drop(hand)
        if lots and blame:
            self._fail(hand, lots.pop(0), Failed("BackendError", f"its worker ended ({why})"))
        self.record.retried += len(lots)
        self._new.extendleft(reversed(lots))

    def _drop(self, hand: Hand) -> None:
        self._hands.remove(hand)
        self._waits = {reference: of for reference, of in self._waits.items() if of[0] is not hand}
        hand.lots.clear()
        self._cluster.ray.kill(hand.actor)

    def _named(self) -> VarExportError:
        """The error about what never succeeded, in the order of the job."""
        self._failed.sort(key=lambda lot: lot.chunk[0].number)
        named = [
            f"images {lot.chunk[0].number} to {lot.chunk[-1].number} (seeds {lot.chunk[0].seed} to "
            f"{lot.chunk[-1].seed}): {lot.failures[-1].reason}"
            for lot in self._failed[:_NAMED]
        ]
        more = f"; and {len(self._failed) - _NAMED} more" if len(self._failed) > _NAMED else ""
        count = sum(len(lot.chunk) for lot in self._failed)
        return (
            self._failed[0]
            .failures[-1]
            .error(
                f"{counted(count, 'image')} failed {TRIES} times, the others are stored, and the same command tries "
                f"again: {'; '.join(named)}{more}"
            )
        )


def _why(error: Exception) -> str:
    """What an error of Ray's says in its many lines: its last one where a worker could not be made, else its first."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return (lines[-1] if "creation task" in lines[0] else lines[0])[:200]


def _words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
