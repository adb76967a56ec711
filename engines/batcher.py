"""Joins requests that arrive one by one into batches, for a server around a `Pipeline`.

One thread runs one batch at a time. What arrives meanwhile is the next one; whoever brings more than that waits, so
that a server's own queue can bound and refuse. After a batch, its clients' next requests are given a moment to
arrive: without it, eight clients in turn get batches of 1 and 7 for ever. A lone client never waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

JOIN_SHARE, JOIN_SECONDS = 1 / 10, 0.05
"""The part of a batch's time, and the most, to wait for companions."""
Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Items, run in batches.

    Args:
        run: does a batch, in the batcher's thread.
        limit: images of a batch, at most; also what may wait here.
    """

    def __init__(self, run: Callable[[list[Item]], None], *, limit: int) -> None:
        self._run, self._limit = run, limit
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Item, int]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def put(self, item: Item, images: int = 1) -> None:
        """Add an item of so many images; waits while a whole batch is waiting."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._images() + images <= self._limit)
            self._waiting.append((item, images))
            self._changed.notify_all()

    def close(self) -> None:
        """Run what is there, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _images(self) -> int:
        return sum(images for _, images in self._waiting)

    def _work(self) -> None:
        expected, deadline = 0, 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._join(expected, deadline)
                batch = self._take()
                self._changed.notify_all()
            began = time.monotonic()
            try:
                self._run(batch)
            except Exception:
                log.exception("a batch failed")
            ended = time.monotonic()
            deadline = ended + min(JOIN_SECONDS, JOIN_SHARE * (ended - began))
            with self._changed:
                expected = len(batch) + len(self._waiting)

    def _join(self, expected: int, deadline: float) -> None:
        """Wait for as many items as were here around the end of the last batch; for a lone one not at all."""

        def complete() -> bool:
            return len(self._waiting) >= expected or self._images() >= self._limit or self._closed

        self._changed.wait_for(complete, max(0.0, deadline - time.monotonic()))

    def _take(self) -> list[Item]:
        batch: list[Item] = []
        images = 0
        while self._waiting and (not batch or images + self._waiting[0][1] <= self._limit):
            item, count = self._waiting.popleft()
            batch.append(item)
            images += count
        return batch
