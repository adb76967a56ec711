"""A queue in front of one pipeline, and the thread that draws whoever waits in it, together.

submit --> waiting (so many images at most) --> one batch of those that fit --> each ticket is told what is its own
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engines.draw.pipeline import Pipeline
from engines.draw.results import Preview
from engines.errors import CancelledError, VarExportError
from engines.joining.batch import Count, draw_joined, let_join
from engines.joining.orders import Order

log = logging.getLogger(__name__)

FIRST_GUESS = 1.0
"""Seconds of a batch, before there was one."""


class QueueFullError(VarExportError):
    """More images wait than may; `seconds` is when to come back."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class TimedOutError(VarExportError):
    """A request waited longer than it may."""


Told = Preview | VarExportError | Exception
"""What a ticket hears: its images after a scale, or why it gets no more."""


@dataclass(eq=False)
class Ticket:
    """One request in the queue: a member of a batch, as soon as there is room."""

    order: Order
    scales: tuple[int, ...]
    tell: Callable[[Told], None]
    """Called in the thread that draws."""
    deadline: float = math.inf
    """The value of `time.monotonic()` from which on nobody waits for the request."""
    is_use: bool = True
    """Whether drawing it is a use of the model: a model that is only asked whether it draws is unused."""
    done: bool = False
    """Whether the request has its final images."""
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _late: bool = False

    def cancel(self) -> None:
        """Nobody waits for it any more: it takes no place in a batch, and one that runs goes on without it."""
        self._cancelled.set()

    def is_gone(self) -> bool:
        """See `engines.joining.batch.Member`."""
        self._late = self._late or time.monotonic() > self.deadline
        return self._late or self._cancelled.is_set()

    def show(self, preview: Preview) -> None:
        """See `engines.joining.batch.Member`."""
        self.done = self.done or preview.final
        self.tell(preview)

    def end(self) -> None:
        """Say why it gets no more, once it has gone."""
        late = self._late and not self._cancelled.is_set()
        self.tell(TimedOutError("the request took longer than it may") if late else CancelledError("it was cancelled"))


class Joiner:
    """A pipeline that answers tickets, in the order in which they came; close it to free the engines."""

    def __init__(self, pipeline: Pipeline, count: Count, *, queue: int) -> None:
        """Args: pipeline: which is this one's own now; count: adds to a metric; queue: how many images may wait."""
        self.pipeline = pipeline
        self._count, self._most = count, queue
        self._condition = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running = 0
        self._closing = False
        self._seconds = FIRST_GUESS
        self.idle_since = time.monotonic()
        self.drew_at = -math.inf
        """When the last batch came out well, of `time.monotonic()`."""
        self._thread = threading.Thread(target=self._work, name=f"draw {pipeline.bundle.name}", daemon=True)
        self._thread.start()

    @property
    def images_waiting(self) -> int:
        """Images that wait for their batch."""
        with self._condition:
            return sum(len(ticket.order) for ticket in self._waiting if not ticket.is_gone())

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._condition:
            return not self._waiting and not self._running

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them, or none.

        Each is of `pipeline.max_batch` images at most. Raises `QueueFullError`; a queue that is empty takes any.
        """
        asked = sum(len(ticket.order) for ticket in tickets)
        with self._condition:
            if self._closing:
                raise CancelledError("the server stops")
            for gone in [ticket for ticket in self._waiting if ticket.is_gone()]:
                self._waiting.remove(gone)
                self._settle(gone)
            waiting = sum(len(ticket.order) for ticket in self._waiting)
            if waiting and waiting + asked > self._most:
                batches = math.ceil(waiting / self.pipeline.max_batch) + (self._running > 0)
                raise QueueFullError(max(1, math.ceil(batches * self._seconds)))
            self._waiting.extend(tickets)
            self._condition.notify()

    def close(self) -> None:
        """Draw what waits, then free the engines."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()
        self.pipeline.close()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._closing:
                    self._condition.wait()
                if not self._waiting:
                    return
                members = self._next_batch()
                self._running = len(members)
            began = time.monotonic()
            if members:
                self._draw(members)
            with self._condition:
                self._running = 0
                ended = time.monotonic()
                if any(member.is_use for member in members):
                    self.idle_since = ended
            if members:
                self._seconds += (ended - began - self._seconds) / 4
                let_join(began, len(members))

    def _next_batch(self) -> list[Ticket]:
        """Those at the head of the queue that fit in a batch together; who has gone is told so and left out."""
        members: list[Ticket] = []
        room = self.pipeline.max_batch
        while self._waiting and len(self._waiting[0].order) <= room:
            ticket = self._waiting.popleft()
            if ticket.is_gone():
                self._settle(ticket)
                continue
            members.append(ticket)
            room -= len(ticket.order)
        return members

    def _draw(self, members: Sequence[Ticket]) -> None:
        try:
            draw_joined(self.pipeline, members, self._count)
        except CancelledError:
            pass  # each is told so below
        except Exception as error:
            if not isinstance(error, VarExportError):
                log.exception("a batch failed")
            for ticket in members:
                if not ticket.is_gone():
                    self._count("var_images_total", {"result": "failed"}, len(ticket.order))
                    ticket.tell(error)
        else:
            self.drew_at = time.monotonic()
        for ticket in members:
            if not ticket.done and ticket.is_gone():
                self._settle(ticket)

    def _settle(self, ticket: Ticket) -> None:
        self._count("var_images_total", {"result": "cancelled"}, len(ticket.order))
        ticket.end()
