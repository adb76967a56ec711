"""How long work says what it does: the type of every `progress` argument, and what says nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work calls to say where it is."""

    def __call__(self, stage: str, done: float | None = None, /) -> None:
        """A stage begins; or, with the share of it that is `done` (0 to 1), goes on."""


def silent(stage: str, done: float | None = None, /) -> None:
    """Progress that nobody wants to see."""
