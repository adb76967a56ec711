"""The documentation as data: its pages, and the shell commands, examples and tables in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {page.relative_to(ROOT).as_posix(): page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
"""Path of each page by its name, such as `README.md` or `docs/int8.md`."""


@dataclass(frozen=True)
class ShownCommand:
    """A command in a shell block of a page, as one line."""

    page: str
    line: str


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The contents of the page's fenced blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """The commands of a shell block: without comments, with continued lines and open quotes joined."""
    joined, found = "", []
    for line in block.replace("\\\n", "").splitlines():
        joined = f"{joined}\n{line}" if joined else re.sub(r"\s+# .*", "", f" {line}").strip()
        if joined and joined.count('"') % 2 == 0:
            found.append(re.sub(r" {2,}", " ", joined))
            joined = ""
    assert not joined, f"a quote is left open: {joined}"
    return found


def shown_commands() -> list[ShownCommand]:
    """Every command of every shell block of every page."""
    return [ShownCommand(page, line) for page in PAGES for block in blocks(page, "sh") for line in commands(block)]
