"""Progress on stderr: on a terminal one live line, elsewhere a line per stage and one at least every ten seconds."""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from dataclasses import dataclass

import click

from engines.cli.common import CLEAR, tell
from engines.progress import Steps
from engines.words import duration, printable

TICK = 0.5  # seconds between two looks at the clock
SILENCE = 9.0  # seconds without a line, after which a log gets one: with a tick, and what delays it, below ten
_LEAST = 0.05  # of a step


@dataclass(frozen=True)
class _Series:
    """Calls with a growing share: what a rate is counted from."""

    began: float
    first: float
    """The share at the beginning: what an earlier run did took this one no time."""
    came: float
    """When the last share came."""
    share: float
    steps: int
    """How many there are in all; 0 where none are counted."""

    @property
    def rate(self) -> float:
        """The share of a second; 0 before there is enough to tell by."""
        gained = self.share - self.first
        known = self.came > self.began and gained * self.steps >= (_LEAST if self.steps else 0.0)
        return gained / (self.came - self.began) if known else 0.0

    @property
    def _left_of_step(self) -> float:
        """The share that the step under way has left: one that takes longer than the others is not over."""
        at = round(self.share * self.steps, 6)
        return (math.floor(at) + 1 - at) / self.steps if self.steps else 0.0

    def text(self, now: float) -> str:
        """`38%, 1.2 s each, 14 s left`; inside of a step, by the time that those before took."""
        if not self.rate:
            return f"{self.share:.0%}"
        share = min(self.share + min((now - self.came) * self.rate, 0.9 * self._left_of_step), 1.0)
        pace = f"{duration(1 / (self.rate * self.steps))} each, " if self.steps else ""
        return f"{share:.0%}, {pace}{duration((1 - share) / self.rate)} left"


class StageClock:
    """Shows stages, how long they take, how far they are, as `engines.progress.Progress`; a context manager."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._start = self._told = self._began = time.monotonic()
        self._stage = ""
        self._series: _Series | None = None
        self._done = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    def __call__(self, stage: str, done: float | None = None) -> None:
        """A stage begins; or, with the share of it that is `done`, goes on."""
        now, series = time.monotonic(), self._series
        goes_on = done is not None and series is not None and done >= series.share
        if not goes_on:
            self._began = now
        if done is None:
            self._series = None
        else:
            first = series.first if goes_on and series is not None else done
            self._series = _Series(self._began, first, now, done, done.total if isinstance(done, Steps) else 0)
        self._stage = stage
        if self._live:
            self._draw()
        elif done is None or (isinstance(done, Steps) and done.slow) or now - self._told >= SILENCE:
            self._tell()

    def restart(self) -> None:
        """What comes is counted from now, as after the loading of what does it."""
        self._series = None

    def __enter__(self) -> StageClock:
        self._clock.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._clock.join()
        if self._live:
            click.echo(CLEAR, err=True, nl=False)

    def _tick(self) -> None:
        while not self._done.wait(TICK):
            if self._live:
                self._draw()
            elif self._stage and time.monotonic() - self._told >= SILENCE:
                self._tell()

    def _draw(self) -> None:
        if self._stage:
            width = shutil.get_terminal_size().columns - 1
            click.echo(CLEAR + printable(self._line())[:width], err=True, nl=False)

    def _tell(self) -> None:
        self._told = time.monotonic()
        tell(self._line())

    def _line(self) -> str:
        now, series = time.monotonic(), self._series
        words = [] if series is None else [series.text(now)]
        if (series is None or not series.rate) and now - self._began >= SILENCE:
            words.append(f"for {duration(now - self._began)}")
        state = f" ({', '.join(words)})" if words else ""
        return f"{self.seconds:7.1f} s  {self._stage}{state}"
