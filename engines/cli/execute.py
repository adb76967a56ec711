"""Runs a job for `var-run`: loads the engines if there is work, shows progress, reports."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engines.bundle.manifest import Manifest
from engines.cli.common import json_out, peak_memory, show, tell, version
from engines.cli.progress import StageClock
from engines.cli.sinks import ImageSinks
from engines.draw.results import ImageSource, Stop, Timings
from engines.files.jobs import ImageJob, Item, Made, Sink, run_job
from engines.progress import Steps
from engines.spec.choices import STEPWISE
from engines.words import counted

if TYPE_CHECKING:
    from engines.cli.options import SourceOptions

SHOWN_FILES = 4
Source = TypeVar("Source", bound=ImageSource)


@dataclass(frozen=True)
class Opened(Generic[Source]):
    """A bundle that can be asked, and what draws with it once there is something to draw."""

    manifest: Manifest
    place: str
    """The bundle's folder, or the address of the server that has it."""
    load: Callable[[], Source]
    kept: bool = False
    """Whether what draws stays open after a job, since more jobs come."""


class ImageRun(Generic[Source]):
    """One job from its first check to its report. What draws is loaded when the first image is due."""

    def __init__(
        self,
        options: SourceOptions,
        opened: Opened[Source],
        job: ImageJob,
        sinks: ImageSinks,
        produce: Callable[[Source, Sequence[Item], Stop | None], Made],
    ) -> None:
        """`produce` makes images with what was loaded; the `Stop` is for whoever draws scale by scale, to ask."""
        self._options, self._opened, self._job, self._sinks, self._produce = options, opened, job, sinks, produce
        self._source: Source | None = None
        self._runtime: dict[str, Any] | None = None
        self._timings = Timings()
        self._load_seconds = self._total_seconds = 0.0
        self._done = 0.0
        self.extra: dict[str, Any] = {}
        """More for the report."""

    def run(self, *remarks: str | None) -> None:
        """Make what is missing, then report on stdout. `remarks`: to tell before, once the files can be written."""
        document = self.make(*remarks)
        if document is not None:
            json_out(document)

    def make(self, *remarks: str | None) -> dict[str, Any] | None:
        """As `run`, but give what --json prints, where that was asked for."""
        sinks, files = self._sinks.open()
        for remark in filter(None, remarks):
            tell(remark)
        try:
            with StageClock() as self._clock:
                made = self._run(sinks)
        finally:
            if self._source is not None and not self._opened.kept:
                self._source.close()
        if self._options.as_json:
            return self._document([file for group in files for file in group], made)
        self._summary(made, sum(sink.replaced for sink in sinks))
        for group in files:
            _list(group)
        return None

    def _run(self, sinks: Sequence[Sink]) -> int:
        """Have what is missing drawn, and stored; how many images that were."""
        return run_job(self._job, sinks, self._timed, batch=self._options.together, progress=self._tell)

    def _timed(self, items: Sequence[Item]) -> Made:
        start = time.perf_counter()
        if self._source is None:
            self._source = self._opened.load()
            self._runtime = self._source.describe_runtime()
            loaded = time.perf_counter()
            self._load_seconds, start = loaded - start, loaded
            self._clock.restart()
            self._tell(self._done)
        made = self._produce(self._source, items, self._scales(self._source, len(items)))
        if made.timings is not None:
            self._timings.add(made.timings)
        self._total_seconds += time.perf_counter() - start
        return made

    def _tell(self, done: float) -> None:
        """Say how many images are done; of one under way, a part."""
        self._done, total = done, len(self._job.items)
        self._clock(f"{int(done)} of {total} images", Steps(done, total))

    def _scales(self, source: Source, images: int) -> Stop | None:
        """What is asked before each scale of a batch, says that it goes on, and tells how far it is."""
        options = self._options
        if options.url is not None or self._job.settings.get("form") != STEPWISE:
            return None
        tokens, size = self._opened.manifest.config.scale_lengths, min(source.max_batch, options.batch)
        parts = [min(size, images - start) for start in range(0, images, size)]
        after = options.refine_from or 0  # two models: first all parts of the one, then all of the other
        stages = [range(after), range(after, len(tokens))]
        weights = [*tokens[:-1], 2 * tokens[-1]]  # the decoder's work is about that of the last scale
        work = [weights[scale] * part for stage in stages for part in parts for scale in stage]
        began, total, done = self._done, sum(work), itertools.accumulate(work, initial=0)

        def stop() -> bool:
            self._tell(began + images * next(done, total) / total)
            return False

        return stop

    def _summary(self, made: int, replaced: int) -> None:
        total = len(self._job.items)
        if not made:
            tell(f"nothing to make: {'the image is' if total == 1 else f'all {total} images are'} there")
            return
        there = f", {total - made} were there" if made < total else ""
        each = f" ({self._total_seconds / made:.2f} s each)" if made > 1 else ""
        over = f", {counted(replaced, 'file')} replaced" if replaced else ""
        quality = f", PSNR {self.extra['psnr_db']:.1f} dB" if self.extra.get("psnr_db") else ""
        tell(f"{counted(made, 'image')} in {self._total_seconds:.2f} s{each}{there}{quality}{over}")

    def _document(self, files: Sequence[Path], made: int) -> dict[str, Any]:
        """What --json prints; seconds are sums over the images made now, null where they were not taken."""
        taken = self._timings if self._timings.scales else None
        facts = self._opened.manifest
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
                "path": self._opened.place,
                "name": facts.name,
                "precision": facts.precision,
                "build_key": facts.build_key,
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
