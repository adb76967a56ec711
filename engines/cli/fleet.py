"""A job of `var-run --ray`: the same checks, sinks and report as one that is drawn here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle
from engines.cli.common import tell
from engines.cli.execute import ImageRun, Opened
from engines.cli.options import WRITERS, FleetOptions, OutputOptions, SourceOptions
from engines.cli.sinks import ImageSinks
from engines.draw.results import ImageSource
from engines.files.jobs import Chunk, ImageJob, JobInterruptedError, Made, Sink, run_drawing
from engines.files.merging import merge
from engines.fleet.bundles import BundlePieces
from engines.fleet.cluster import Cluster
from engines.fleet.hands import Staffing
from engines.fleet.pool import Fleet
from engines.fleet.record import FleetRecord
from engines.fleet.shards import ShardPlan
from engines.fleet.worker import WorkOrder
from engines.spec.choices import PLAN_TARGETS


class FleetRun(ImageRun[ImageSource]):
    """One job that a cluster draws. Nothing of Ray is loaded or started before the first image is due."""

    def __init__(
        self,
        options: SourceOptions,
        opened: Opened[Any],
        job: ImageJob,
        sinks: ImageSinks,
        fleet: FleetOptions,
        *,
        backend: str | None,
        preview: bool,
    ) -> None:
        """Args: backend: that all workers have to have; None: each takes what it has; preview: whether the pictures
        after each scale are wanted.
        """

        def produce(*_: object) -> Made:
            raise AssertionError("a cluster draws, not this machine")

        super().__init__(options, opened, job, sinks, produce)
        self._fleet, self._backend, self._preview = fleet, backend, preview
        self._plan: ShardPlan | None = None
        self._record: FleetRecord | None = None

    def store_at(self, output: OutputOptions, arguments: Mapping[str, Any]) -> None:
        """Have workers store the images, where that was asked for. `arguments`: of `make_job`, for this job."""
        if self._fleet.write_at == WRITERS[1] and output.npz is not None:
            side = self._opened.manifest.config.image_size
            self._plan = ShardPlan(str(output.npz.absolute()), arguments, side, self._options.batch)

    def _run(self, sinks: Sequence[Sink]) -> int:
        if self._plan is not None:
            return self._run_shards(self._plan, sinks)
        return run_drawing(self._job, sinks, self._drawn, batch=self._options.together, progress=self._tell)

    def _run_shards(self, plan: ShardPlan, sinks: Sequence[Sink]) -> int:
        """Have workers write the shards that are missing, then merge them; how many images these have."""
        total = len(self._job.items)
        try:
            if all(sink.has(item) for sink in sinks for item in self._job.items):
                return 0
        finally:
            for sink in sinks:  # they have said that the file may be written; the shards take their place
                sink.close()
        chunks = plan.missing()
        done = total - sum(map(len, chunks))
        count = 0
        self._tell(done)
        try:
            with closing(self._drawn(chunks)) as drawn:
                for chunk, made in drawn:
                    done += len(chunk)
                    count += len(made.images)
                    self._tell(done)
            merge([plan.path(number) for number in range(1, plan.of + 1)], Path(plan.out), overwrite=True)
        except KeyboardInterrupt:
            raise JobInterruptedError(done, total) from None
        shutil.rmtree(plan.folder)
        return count

    def _drawn(self, chunks: Sequence[Chunk]) -> Generator[tuple[Chunk, Made], None, None]:
        """See `engines.files.jobs.Drawing`."""
        if not chunks:
            return
        began = time.perf_counter()
        ready: list[float] = []

        def loaded() -> None:
            ready.append(time.perf_counter())
            self._load_seconds = ready[0] - began
            self._clock.restart()
            self._tell(self._done)

        with ExitStack() as stack:
            cluster = stack.enter_context(Cluster(self._fleet.ray or ""))
            order, staffing = self._order(), self._staffing()
            pieces = BundlePieces(Path(order.bundle), cluster.ray.put)
            fleet = stack.enter_context(Fleet(cluster, order, pieces, staffing, tell=tell, progress=loaded))
            self._record = fleet.record
            self.extra["fleet"] = {"address": self._fleet.ray}
            try:
                for chunk, made in fleet.drawn(chunks):
                    if made.timings is not None:
                        self._timings.add(made.timings)
                    yield chunk, made
                    self._total_seconds = time.perf_counter() - ready[0]
            finally:
                self.extra["fleet"] |= fleet.record.describe()

    def _order(self) -> WorkOrder:
        """What each worker is told."""
        options, bundle = self._options, Bundle.open(self._opened.place, verify=False)
        runtime = {name: value for name, value in vars(options.runtime).items() if name not in ("threads", "backend")}
        form = self._job.settings["form"]
        load = {"form": form, "max_batch": options.batch, "check": options.check, "backend": self._backend, **runtime}
        place = str(bundle.path.resolve())
        return WorkOrder(place, bundle.digest, dict(self._job.settings), load, preview=self._preview, shards=self._plan)

    def _staffing(self) -> Staffing:
        runtime = self._options.runtime
        on_gpu = runtime.provider.lower() != "cpu" or (self._backend or runtime.backend) in PLAN_TARGETS
        return Staffing(threads=runtime.threads, gpu=on_gpu, most=self._fleet.workers, mixed=self._fleet.mixed)

    def _summary(self, made: int, replaced: int) -> None:
        super()._summary(made, replaced)
        for line in self._record.lines() if self._record is not None else ():
            tell(line)
