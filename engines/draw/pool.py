"""Workspaces that are made once and lent out again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

IDLE = 2  # of a kind, kept for reuse; a workspace of d16 in FP32 for one guided image holds 0.2 GB
Space = TypeVar("Space")
Key = tuple[Hashable, ...]


class Pool:
    """Idle workspaces by key, whose first part is their kind.

    Each is lent to one borrower at a time; the least recently used ones of a kind are dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[Key, list[Any]] = OrderedDict()
        self._closed = False

    @contextmanager
    def borrow(self, key: Key, make: Callable[[], Space]) -> Iterator[Space]:
        """An idle workspace of this key, or a new one from `make`."""
        with self._lock:
            idle = self._idle.get(key)
            space: Space | None = idle.pop() if idle else None
        if space is None:
            space = make()
        try:
            yield space
        finally:
            with self._lock:
                if not self._closed:
                    self._idle.setdefault(key, []).append(space)
                    self._idle.move_to_end(key)
                    self._shrink(key[0])

    def close(self) -> None:
        """Drop the idle ones now, and the others when they come back."""
        with self._lock:
            self._closed = True
            self._idle.clear()

    def _shrink(self, kind: Hashable) -> None:
        keys = [key for key in self._idle if key[0] == kind]
        while sum(len(self._idle[key]) for key in keys) > IDLE:
            self._idle[next(key for key in keys if self._idle[key])].pop()
