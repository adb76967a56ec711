"""Progress on stderr: on a terminal one live line with a running clock, elsewhere a line per stage."""

from __future__ import annotations

import shutil
import sys
import threading
import time

import click

from engines.cli.common import CLEAR, tell
from engines.words import printable

TICK = 0.5  # seconds between two looks at the clock


class StageClock:
    """Shows stages and how long they take, as `engines.progress.Progress`; a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._start = time.monotonic()
        self._stage = ""
        self._done = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    def __call__(self, stage: str, done: float | None = None) -> None:
        """A stage begins; or, with the share of it that is `done`, goes on."""
        self._stage = stage if done is None else f"{stage} ({done:.0%})"
        if self._live:
            self._draw()
        elif not self._quiet and done is None:
            tell(self._line())

    def __enter__(self) -> StageClock:
        if self._live:
            self._clock.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        if self._live:
            self._clock.join()
            click.echo(CLEAR, err=True, nl=False)

    def _tick(self) -> None:
        while not self._done.wait(TICK):
            self._draw()

    def _draw(self) -> None:
        if self._stage:
            width = shutil.get_terminal_size().columns - 1
            click.echo(CLEAR + printable(self._line())[:width], err=True, nl=False)

    def _line(self) -> str:
        return f"{self.seconds:7.1f} s  {self._stage}"
