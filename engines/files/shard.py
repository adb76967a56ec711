"""Which part of a job one of several machines has. Light, since the command line reads it before anything else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engines.errors import UsageError

_FORM = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class Shard:
    """A part of a job."""

    number: int
    """Which part it is, counted from 1."""
    of: int
    """How many parts there are."""

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard written as `3/8`. Raises `UsageError`."""
        found = _FORM.fullmatch(text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"a shard is K/N with K from 1 to N, such as 3/8, not {text[:40]!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def items(self) -> slice:
        """Which images of the whole job it has: every N-th, so that each part grows as the whole does."""
        return slice(self.number - 1, None, self.of)

    def count(self, whole: int) -> int:
        """How many of so many images it has."""
        return len(range(whole)[self.items])
