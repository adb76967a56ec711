"""What pages are put together from, as plain data; `templates/parts.html` shows each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Figures in rows."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """The first columns hold words and are aligned to the left; the first of all names its row."""
    emphasised: int | None = None
    """The row that sums the others up."""
    misses: frozenset[int] = frozenset()
    """Rows that miss a threshold."""


@dataclass(frozen=True)
class Chart:
    """A drawing, what it says in words, and its figures."""

    title: str
    svg: Markup
    table: Table | None
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """One figure that matters most."""

    what: str
    value: str
    note: str = ""
    missed: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values; one without a value is left out."""

    title: str
    pairs: Sequence[tuple[str, str]]
    tables: Sequence[Table] = ()
    """Long ones, folded."""
