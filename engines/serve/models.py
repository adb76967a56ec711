"""The bundles that a server has: loaded when they are asked for, unloaded when nobody has asked for long.

Of several, those that are in use stay; of the others, the one that was used longest ago makes room where the memory
that they are estimated to need is more than the server may take.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle, default_bundle
from engines.bundle.inspection import quantised_layers
from engines.draw.pipeline import Pipeline
from engines.errors import UsageError, VarExportError
from engines.joining.batch import Count
from engines.serve.joiner import Joiner
from engines.sizing.memory import memory
from engines.sizing.workload import Workload
from engines.spec.choices import ONNXRUNTIME, QUANTISED, TENSORRT

log = logging.getLogger(__name__)
SWEEP_SECONDS = 1.0
HALF_PRECISIONS = ("fp16", "bf16")


class UnknownModelError(UsageError):
    """A request names a model that this server does not have."""


class NoRoomError(VarExportError):
    """The models in use leave no memory for another."""


class ServedModel:
    """One bundle of a server."""

    def __init__(self, name: str, bundle: Bundle, needs: int) -> None:
        self.name, self.bundle, self.needs = name, bundle, needs
        self.joiner: Joiner | None = None
        self.asked = 0
        """Requests that hold it: it is not unloaded meanwhile."""
        self.lock = asyncio.Lock()

    @property
    def idle_seconds(self) -> float:
        """For how long nobody has used it; 0 where somebody does, or it is not loaded."""
        if self.joiner is None or self.asked or not self.joiner.is_idle:
            return 0.0
        return time.monotonic() - self.joiner.idle_since


class Models:
    """All bundles of a server, by name; the first one is meant where a request names none."""

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        count: Callable[[str], Count],
        max_batch: int = 8,
        queue: int = 64,
        keep: float = 600.0,
        budget: int | None = None,
        check: str = "once",
        runtime: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
            paths: bundle folders, or `hf://` names; the newest in `bundles/`, else the demo, where there are none.
            count: of a model's name, what adds to its metrics.
            max_batch: images in one batch, at most.
            queue: images that may wait for one model.
            keep: seconds after which a model that nobody uses is unloaded.
            budget: bytes that all loaded models may need together, as estimated; None is no limit.
            check: as of `Pipeline.load`, as are the keywords in `runtime`.

        Raises `BundleError`, and `UsageError` where two bundles have one name.

        """
        self._count, self._keep, self._budget, self._queue = count, keep, budget, queue
        self._load = {"form": "stepwise", "max_batch": max_batch, "check": check, **(runtime or {})}
        self._by_name: dict[str, ServedModel] = {}
        self._room = asyncio.Lock()
        for path in paths or [default_bundle()[0]]:
            bundle = Bundle.open(path)
            name = bundle.path.name or bundle.name
            if name in self._by_name:
                raise UsageError(f"two bundles are called {name}: rename one of their folders")
            if "stepwise" not in bundle.forms:
                raise UsageError(f"{path} has the fused graph alone, which shows no scales: build with --form both")
            self._by_name[name] = ServedModel(name, bundle, _needed(bundle, max_batch))

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def find(self, name: str | None) -> ServedModel:
        """The model of this name, or the first one. Raises `UnknownModelError`."""
        if name is None:
            return next(iter(self._by_name.values()))
        if name not in self._by_name:
            raise UnknownModelError(f"there is no model {name!r:.200}; this server has {', '.join(self._by_name)}")
        return self._by_name[name]

    async def joiner(self, model: ServedModel) -> Joiner:
        """The queue of a model, which is loaded unless it is. The caller counts itself in `model.asked` meanwhile.

        Raises `NoRoomError`, and what `Pipeline.load` raises.
        """
        async with model.lock:
            if model.joiner is None:
                async with self._room:
                    await self._make_room(model)
                    log.info("loading %s", model.name)
                    model.joiner = await asyncio.to_thread(self._opened, model)
            return model.joiner

    async def sweep(self) -> None:
        """Unload what nobody has used for long, for ever."""
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._keep))
            for model in self:
                if model.idle_seconds > self._keep:
                    await self._unload(model, self._keep)

    async def close(self) -> None:
        """Finish what waits, and free all engines."""
        for model in self:
            await self._closed(model)

    def _opened(self, model: ServedModel) -> Joiner:
        pipeline = Pipeline.load(model.bundle.path, **self._load)
        return Joiner(pipeline, self._count(model.name), queue=self._queue)

    async def _make_room(self, model: ServedModel) -> None:
        if self._budget is None:
            return
        while sum(each.needs for each in self if each.joiner is not None) + model.needs > self._budget:
            idle = [each for each in self if each.idle_seconds > 0]
            if not idle:
                if not any(each.joiner is not None for each in self):
                    return  # alone it may try
                raise NoRoomError(f"other models are in use, and the memory for {model.name} beside them is too little")
            await self._unload(max(idle, key=lambda each: each.idle_seconds))

    async def _unload(self, model: ServedModel, idle: float = 0.0) -> None:
        """Free the engines of a model that is still idle once nobody loads it; it counts until they are free."""
        async with model.lock:
            if model.idle_seconds > idle:
                log.info("unloading %s", model.name)
                await self._closed(model)

    async def _closed(self, model: ServedModel) -> None:
        try:
            if model.joiner is not None:
                await asyncio.to_thread(model.joiner.close)
        except Exception:  # the others are to be freed all the same
            log.exception("%s could not be freed", model.name)
        model.joiner = None


def _needed(bundle: Bundle, max_batch: int) -> int:
    """Bytes that drawing batches of so many images is estimated to need."""
    on_gpu = bundle.for_gpus or bool(bundle.plans)
    halved = bundle.precision in HALF_PRECISIONS and not on_gpu  # a CPU computes those in FP32
    ways = {layer.name: layer.way for layer in quantised_layers(bundle)} if bundle.precision in QUANTISED else None
    load = Workload(
        config=bundle.config,
        precision="fp32" if halved else bundle.precision,
        images=max_batch,
        max_top_k=bundle.max_top_k,
        smooth=bundle.smooth,
        ways=ways,
        target=TENSORRT if on_gpu else ONNXRUNTIME,
    )
    return memory(load).total
