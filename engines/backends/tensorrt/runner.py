"""Plans on a GPU, as the scale loop's backend.

`engines.backends.tensorrt.engine` runs one plan; this finds the plan that fits the machine, and verifies it.
"""

from __future__ import annotations

import mmap
import weakref
from typing import TYPE_CHECKING, Any

from engines.backends.base import Backend
from engines.backends.cuda import Cuda, EventMark
from engines.backends.device_buffer import DeviceBuffer, zeros
from engines.backends.tensorrt import library as libraries
from engines.backends.tensorrt.engine import Scratch, SharedResources, TensorRTEngine
from engines.backends.tensorrt.kernel_cache import KernelCache
from engines.backends.tensorrt.library import Library
from engines.errors import BackendError, BundleError
from engines.storage import cache_folder

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle


class TensorRTBackend(Backend):
    """TensorRT or TensorRT-RTX on one GPU."""

    provider = "cuda"

    def __init__(
        self, target: str, *, device: int = 0, library: Library | None = None, cuda: Cuda | None = None
    ) -> None:
        """Args: target: `tensorrt` or `tensorrt-rtx`; device: as CUDA counts GPUs; the others are for tests.

        Raises `BackendError` where TensorRT, cuda-bindings or the GPU is missing.
        """
        self.name = target
        self.library = library or libraries.load(target)
        self.cuda = cuda or Cuda(device)
        self.scratch = Scratch(self.cuda)
        self._shared = SharedResources(self.library, self.cuda, self.scratch)
        self.here = self.library.platform(self.cuda)
        with self.library.translated("starting the runtime"):
            self._runtime = self.library.check(self.library.trt.Runtime(self.library.logger), "starting the runtime")
        self._engines: weakref.WeakSet[TensorRTEngine] = weakref.WeakSet()

    def open(self, bundle: Bundle, graph: str) -> TensorRTEngine:
        """See `Backend`: the plan that fits this machine, verified before it is deserialized."""
        bundle.graph_path(graph)  # names the missing form
        chosen = bundle.plans_for(self.here, graph)
        plan = chosen.graphs[graph]
        problem = bundle.plan_problem(plan)
        if problem is not None:
            raise BundleError(f"{problem}: var-export build {bundle.path} --target {self.name}")
        doing = f"loading {plan.file}"
        file = bundle.path / plan.file
        with self.library.translated(doing), self.cuda.held(), file.open("rb") as stream:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._refuse_invalid(data, plan.file)
                engine = self.library.check(self._runtime.deserialize_cuda_engine(data), doing)
            if chosen.weight_streaming:
                budget = engine.get_weight_streaming_automatic_budget()
                engine.weight_streaming_budget_v2 = budget
                if engine.weight_streaming_budget_v2 != budget:  # refused without a word
                    raise self.library.error(f"{doing}: keeping {budget / 2**20:.0f} MiB of weights on the GPU")
            kernels = None
            if self.library.flavour.name == "tensorrt-rtx":
                home = cache_folder()
                kept = None if home is None else home / "kernels" / f"{plan.sha256[:32]}.cache"
                kernels = KernelCache(self.library.trt, engine, kept)
        opened = TensorRTEngine(self._shared, engine, plan, chosen, kernels, graph, *bundle.tensors(graph))
        self._engines.add(opened)
        return opened

    def lacks(self, bundle: Bundle) -> str | None:
        try:
            for graph in bundle.graphs:
                bundle.plans_for(self.here, graph)
        except BundleError as error:
            return str(error)
        return None

    def remedy(self, bundle: Bundle) -> str:
        return "Build the plans again on this machine, with --precision bf16 or fp32 if that does not help"

    def buffer(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        return zeros(self.cuda, shape, dtype)

    def mark(self) -> EventMark:
        """See `Backend`: an event, since calls return before their work is done."""
        return self.cuda.mark()

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "provider": self.provider,
            self.name: self.library.version,
            **self.cuda.describe(),
        }

    def close(self) -> None:
        """See `Backend`: frees every buffer too."""
        for engine in list(self._engines):
            engine.close()
        self._runtime = None
        self.cuda.close()

    def _refuse_invalid(self, data: mmap.mmap, name: str) -> None:
        """Ask TensorRT-RTX, which can tell from the header; TensorRT cannot, and relies on the manifest."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        header = data[: self._runtime.engine_header_size]
        validity, reasons = self._runtime.get_engine_validity(header)
        if validity == self.library.trt.EngineValidity.INVALID:
            raise BackendError(f"{self.library.flavour.title} {self.library.version} refuses {name} (reason {reasons})")
