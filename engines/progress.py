"""How long work says what it does: the type of every `progress` argument, and what says nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work calls to say where it is."""

    def __call__(self, stage: str, done: float | None = None, /) -> None:
        """A stage begins; or, with the share of it that is `done` (0 to 1), goes on. `Steps` says what it counts."""


class Steps(float):
    """The share of steps that are done, as in `Steps(3, 32)`, which knows how many there are."""

    def __new__(cls, done: float, total: int, *, slow: bool = False) -> Steps:
        """`done` of `total` steps; `slow` ones are so few that a log has a line for each."""
        share = super().__new__(cls, done / total if total else 1.0)
        share.total, share.slow = total, slow
        return share

    total: int
    slow: bool


def silent(stage: str, done: float | None = None, /) -> None:
    """Progress that nobody wants to see."""
