"""Small formats of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MIB = 2**20


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; nothing where there are no rows."""
    lines = [_line(row) for row in rows]
    return "\n".join([_line(headers), _line(["---"] * len(headers)), *lines]) if lines else ""


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def section(title: str, note: str, body: str) -> list[str]:
    """A chapter; nothing where it has no body."""
    return [f"## {title}", note, body] if body else []


def guidance(cfg: float) -> str:
    """The strength of guidance, for columns: `4`, `none`."""
    return f"{cfg:g}" if cfg else "none"


def ms(seconds: float) -> str:
    """Seconds as milliseconds without the unit."""
    return f"{1e3 * seconds:.2f}"


def mib(size: int) -> str:
    """Bytes as MiB."""
    return f"{size / MIB:.0f}"
