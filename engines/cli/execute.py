"""Runs a job for `var-run`: loads the engines if there is work, shows progress, reports."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.bundle.bundle import Bundle
from engines.cli.common import json_out, peak_memory, show, tell, version
from engines.files.jobs import Item, Job, Made, Sink, run_job

if TYPE_CHECKING:
    from engines.cli.options import Options
    from engines.draw.pipeline import Pipeline
    from engines.draw.results import Timings
    from engines.triton.client import RemotePipeline

SHOWN_FILES = 4
PLAIN_PROGRESS_SECONDS = 10.0


class Execution:
    """One job from its first check to its report.

    Args:
        options: of the command.
        drawer: what draws: a bundle, loaded when the first image is due, or a server.
        job: the items.
        produce: makes a batch of them with `self.pipeline`, or with `self.source`.
    """

    def __init__(
        self,
        options: Options,
        drawer: Bundle | RemotePipeline,
        job: Job,
        produce: Callable[[Sequence[Item]], Made],
    ) -> None:
        self._options, self._drawer, self._job, self._produce = options, drawer, job, produce
        self._facts = drawer.manifest
        self._remote = None if isinstance(drawer, Bundle) else drawer
        self._pipeline: Pipeline | None = None
        self._timings: Timings | None = None
        self._load_seconds = self._total_seconds = 0.0
        self._runtime: dict[str, Any] | None = None
        self.extra: dict[str, Any] = {}
        """More for the report."""

    @property
    def pipeline(self) -> Pipeline:
        """The engines, loaded on first use."""
        if self._pipeline is None:
            from engines.draw.pipeline import Pipeline

            start = time.perf_counter()
            options = self._options
            assert isinstance(self._drawer, Bundle), "a server needs no engines here"
            self._pipeline = Pipeline.load(
                self._drawer.path, form=options.form, max_batch=options.batch, **vars(options.runtime)
            )
            self._runtime = self._pipeline.describe_runtime()
            self._load_seconds = time.perf_counter() - start
        return self._pipeline

    @property
    def source(self) -> Pipeline | RemotePipeline:
        """What draws: the engines, or a server."""
        if self._remote is None:
            return self.pipeline
        if self._runtime is None:
            self._runtime = self._remote.describe_runtime()
        return self._remote

    def add_timings(self, timings: Timings) -> None:
        """Sum the timings of a batch; a server's are its own."""
        if self._remote is not None:
            return
        if self._timings is None:
            self._timings = timings
            return
        total = self._timings
        total.cond += timings.cond
        total.decode += timings.decode
        total.total += timings.total
        total.scales = [a + b for a, b in zip(total.scales, timings.scales, strict=True)]

    def run(self, make_sinks: Callable[[], tuple[list[Sink], list[Sequence[Path]]]]) -> None:
        """Make what is missing, then report on stdout."""
        sinks, files = make_sinks()
        total = len(self._job.items)
        try:
            with _progress(total, self._options.batch) as progress:
                made = run_job(self._job, sinks, self._timed, batch=self._options.batch, progress=progress)
        finally:
            if self._pipeline is not None:
                self._pipeline.close()
        if self._options.as_json:
            json_out(self._document([file for group in files for file in group], made))
            return
        self._summary(made)
        for group in files:
            _list(group)

    def _timed(self, items: Sequence[Item]) -> Made:
        _ = self.source  # loading has its own figure
        start = time.perf_counter()
        made = self._produce(items)
        self._total_seconds += time.perf_counter() - start
        return made

    def _summary(self, made: int) -> None:
        total = len(self._job.items)
        if not made:
            tell(f"nothing to make: all {total} images are there")
            return
        there = f", {total - made} were there" if made < total else ""
        each = f" ({self._total_seconds / made:.2f} s each)" if made > 1 else ""
        quality = f", PSNR {self.extra['psnr_db']:.1f} dB" if self.extra.get("psnr_db") else ""
        plural = "image" if made == 1 else "images"
        tell(f"{made} {plural} in {self._total_seconds:.2f} s{each}{there}{quality}")

    def _document(self, files: Sequence[Path], made: int) -> dict[str, Any]:
        """What --json prints; seconds are sums over the images made now, null where they were not taken."""
        taken = self._timings
        return {
            "files": [str(file) for file in files],
            "images": len(self._job.items),
            "images_made": made,
            "settings": {**self._job.settings, "batch": self._options.batch, "threads": self._options.runtime.threads},
            "timings": {
                "load_s": self._load_seconds,
                "cond_s": taken.cond if taken else None,
                "scales_s": list(taken.scales) if taken else None,
                "decode_s": taken.decode if taken else None,
                "outside_s": taken.outside if taken else None,
                "total_s": self._total_seconds,
            },
            "peak_memory_bytes": peak_memory(),
            "bundle": {
                "path": str(self._drawer.path if isinstance(self._drawer, Bundle) else self._drawer.url),
                "name": self._facts.name,
                "precision": self._facts.precision,
                "build_key": self._facts.build_key,
            },
            "versions": {"var_export": version(), "python": platform.python_version()},
            "runtime": self._runtime,
            **self.extra,
        }


def _list(files: Sequence[Path]) -> None:
    """Paths on stdout, the first few of many."""
    shown = files if len(files) <= SHOWN_FILES else files[: SHOWN_FILES - 1]
    for file in shown:
        show(str(file))
    if len(files) > len(shown):
        show(f"... and {len(files) - len(shown)} more in {files[-1].parent}")


@contextmanager
def _progress(total: int, batch: int) -> Iterator[Callable[[int], None] | None]:
    """What to call with the number of images done; None for a job of one batch."""
    if total <= batch:
        yield None
    elif sys.stderr.isatty():
        with click.progressbar(length=total, label="images", show_pos=True, file=sys.stderr) as bar:
            yield lambda done: bar.update(done - bar.pos)
    else:
        yield _plain_progress(total)


def _plain_progress(total: int) -> Callable[[int], None]:
    """A line every few seconds, for logs."""
    last = time.monotonic()

    def progress(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_PROGRESS_SECONDS:
            last = time.monotonic()
            tell(f"{done} of {total} images")

    return progress
