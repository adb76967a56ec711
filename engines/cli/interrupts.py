"""Signals that end a program in order, wherever they come."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from engines.cli.common import tell


class Interrupts:
    """Turns signals into one KeyboardInterrupt whose message says what is left; a context manager.

    Python drops an exception that is raised inside of a destructor or a callback from C; the next stage
    raises it again. While a graph is traced it waits for that stage: PyTorch's dispatcher calls Python from C++ then,
    and aborts the process on an exception.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self._signals = signals
        self.message = "interrupted: nothing was written"
        self._seen = self._holding = False
        self._before: dict[signal.Signals, Any] = {}

    def check(self, *, holding: bool = False) -> None:
        """Raise where a signal came. `holding`: what comes until the next call is raised there."""
        if self._seen:
            raise KeyboardInterrupt(self.message)
        self._holding = holding

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self._signals}
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if value is not None and self._seen:
            raise KeyboardInterrupt(self.message) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._seen = self._seen, True
        if self._holding and not again:
            tell("interrupted: stopping after this graph")
        elif not again:  # a second one must not break the cleaning up
            raise KeyboardInterrupt(self.message)
