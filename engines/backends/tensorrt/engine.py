"""One plan on a GPU: its execution contexts, and how a call runs.

Every call owns an execution context with its profile, shapes and addresses set once; contexts of all engines
share one scratch memory, since they run one after the other on one stream. A call runs directly the
first time, is recorded as a CUDA graph the second time, and is one launch from then on.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.backends.base import Buffer, Call, Engine
from engines.backends.cuda import ALIGNMENT, Allocation, Cuda, Graph
from engines.backends.device_buffer import DeviceBuffer
from engines.backends.tensorrt.kernel_cache import KernelCache
from engines.backends.tensorrt.library import Library
from engines.bundle.plans import PlanFile, PlanSet
from engines.errors import BackendError, OutOfMemoryError
from engines.spec.contract import TensorInfo

log = logging.getLogger(__name__)
DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
}
"""TensorRT's name of each type in `engines.spec.contract`."""


class Scratch:
    """Memory that every context may use while it runs; it only grows."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._memory: Allocation | None = None
        self.generation = 0
        """Changes whenever the address does."""

    @property
    def address(self) -> int:
        """Where it is; 0 before the first reservation."""
        return self._memory.address if self._memory else 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self._memory.size if self._memory else 0

    def reserve(self, size: int) -> None:
        """Have `size` bytes at least. Raises `OutOfMemoryError`."""
        size = max(size, ALIGNMENT)  # a context that needs none is given an address all the same
        if size <= self.size:
            return
        with self._cuda.held():
            self._cuda.synchronize()
            before, old, self._memory = self.size, self._memory, None
            self.generation += 1
            if old is not None:
                old.free()
            try:
                self._memory = self._cuda.allocate(size)
            except OutOfMemoryError:
                if before:  # the room for it was just freed; the calls that are prepared go on with it
                    self._memory = self._cuda.allocate(before)
                raise


@dataclass(frozen=True)
class SharedResources:
    """What the engines of a backend share: the vendor's library, one stream of one GPU, and scratch memory on it."""

    library: Library
    cuda: Cuda
    scratch: Scratch


class TensorRTEngine(Engine):
    """One deserialized plan."""

    def __init__(
        self,
        shared: SharedResources,
        engine: Any,
        plan: PlanFile,
        chosen: PlanSet,
        kernels: KernelCache | None,
        graph: str,
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
    ) -> None:
        self.name, self.inputs, self.outputs = graph, inputs, outputs
        self._shared, self._engine, self._plan, self._kernels = shared, engine, plan, kernels
        # Whether a capture holds the copies of streamed weights is nowhere documented: such engines run directly.
        self.capturable = not chosen.weight_streaming
        self._told = False
        self._calls: weakref.WeakSet[TensorRTCall] = weakref.WeakSet()
        self._check_tensors()
        self._profiles = [
            {info.name: engine.get_tensor_profile_shape(info.name, index) for info in inputs if _varies(info)}
            for index in range(engine.num_optimization_profiles)
        ]

    @property
    def max_images(self) -> int:
        """See `Engine`."""
        return self._plan.batch[2]

    def shape_for(self, images: int, rows: int) -> tuple[int, int]:
        """See `Engine`."""
        (least_images, _, most_images), (least_rows, _, most_rows) = self._plan.batch, self._plan.rows
        if images > most_images and any("B" in info.shape for info in self.inputs):
            raise BackendError(
                f"{images} images are more than the {self.name} plan holds ({most_images}); "
                f"lower --batch, or build with --batch 1:1:{images}"
            )
        if rows > most_rows:
            raise BackendError(f"{rows} rows are more than the {self.name} plan holds ({most_rows}); lower the batch")
        return max(images, least_images), max(rows, least_rows)

    def context(self) -> Any:
        """A new execution context, whose scratch memory is ours."""
        if self._kernels is not None:
            return self._engine.create_execution_context(self._kernels.config)
        strategy = self._shared.library.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._engine.create_execution_context(strategy)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> TensorRTCall:
        """See `Engine`. Raises `BackendError` where no profile holds these shapes."""
        with self._shared.cuda.held():  # another thread may close it meanwhile
            if self._engine is None:
                raise BackendError(f"the {self.name} engine is closed")
            shapes = {info.name: inputs[info.name].shape for info in self.inputs if _varies(info)}
            profile = self._profile_for(shapes)
            call = TensorRTCall(self._shared, self, profile, shapes, {**inputs, **outputs})
            self._calls.add(call)
        return call

    def close(self) -> None:
        """See `Engine`."""
        with self._shared.cuda.lock:  # not held(): the device may be closed already
            for call in list(self._calls):
                call.close()
            if self._kernels is not None:
                self._kernels.save()
            self._engine = self._kernels = None

    def tell(self, level: int, text: str) -> None:
        """Log a line about this engine, once for all of its calls."""
        if not self._told:
            log.log(level, "%s %s", self.name, text)
        self._told = True

    def _profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        for index, ranges in enumerate(self._profiles):
            if all(_within(shape, ranges[name][0], ranges[name][2]) for name, shape in shapes.items()):
                return index
        raise BackendError(
            f"no profile of the {self.name} plan holds "
            f"{', '.join(f'{name} {shape}' for name, shape in list(shapes.items())[:3])}; build the plans again"
        )

    def _check_tensors(self) -> None:
        """The plan takes and gives what the contract says."""
        trt, engine = self._shared.library.trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        wanted = {info.name: info for info in (*self.inputs, *self.outputs)}
        if set(names) != set(wanted):
            odd = ", ".join(sorted(set(names) ^ set(wanted))[:4])
            raise BackendError(
                f"{self._plan.file} has other tensors than the {self.name} graph ({odd}); build it again"
            )
        for name, info in wanted.items():
            kind = engine.get_tensor_dtype(name)
            if kind != getattr(trt.DataType, DTYPES[info.dtype]):
                raise BackendError(f"{self._plan.file} has {name} as {kind}, not {info.dtype}; build it again")


class TensorRTCall(Call):
    """An execution context with everything set."""

    def __init__(
        self,
        shared: SharedResources,
        engine: TensorRTEngine,
        profile: int,
        shapes: Mapping[str, tuple[int, ...]],
        buffers: Mapping[str, Buffer],
    ) -> None:
        self._shared, self._engine = shared, engine
        self._buffers = dict(buffers)  # the context holds addresses only
        self._graph: Graph | None = None
        self._runs, self._generation = 0, -1
        self._capturable = engine.capturable
        library, cuda = shared.library, shared.cuda
        doing = f"preparing {engine.name}"
        with library.translated(doing), cuda.held():
            context = library.check(engine.context(), doing)
            library.check(context.set_optimization_profile_async(profile, cuda.stream), doing)
            for name, shape in shapes.items():
                library.check(context.set_input_shape(name, tuple(shape)), f"{doing}: shape of {name}")
            for name, buffer in buffers.items():
                assert isinstance(buffer, DeviceBuffer), name
                if buffer.address % ALIGNMENT:
                    raise BackendError(
                        f"{name} of {engine.name} would begin at an address that is no multiple of {ALIGNMENT} bytes, "
                        "which TensorRT needs: the cache of this model's number of heads cannot be bound in this "
                        "precision and batch; use --precision fp32, or an even batch"
                    )
                library.check(context.set_tensor_address(name, buffer.address), f"{doing}: address of {name}")
            need = context.update_device_memory_size_for_shapes()
            shared.scratch.reserve(int(need))
        self._context = context

    def run(self) -> None:
        """See `Call`: starts the work and returns."""
        shared = self._shared
        with shared.cuda.held():
            if self._context is None:
                raise BackendError(f"the {self._engine.name} engine is closed")
            if self._generation != shared.scratch.generation:
                self._settle()
            if self._graph is not None:
                self._graph.launch()
                return
            if self._runs and self._capturable and self._capture():
                return
            self._execute()
            self._runs += 1

    def close(self) -> None:
        """Free the graph and the context; the work must be done."""
        if self._context is not None:
            with self._shared.cuda.held():
                self._shared.cuda.synchronize()
                self._drop_graph()
                self._context = None
                self._buffers.clear()

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            with contextlib.suppress(BackendError):  # the device is closed: its graphs went with it
                self.close()

    def _settle(self) -> None:
        """Use the scratch memory where it is now; a graph that was recorded with the old address is void."""
        scratch = self._shared.scratch
        self._drop_graph()
        self._context.set_device_memory(scratch.address, scratch.size)
        self._generation = scratch.generation
        self._runs = 0

    def _execute(self) -> None:
        library, name = self._shared.library, self._engine.name
        with library.translated(f"running {name}"):
            library.check(self._context.execute_async_v3(self._shared.cuda.stream), f"running {name}")

    def _capture(self) -> bool:
        """Record the call as a CUDA graph and start it; False where TensorRT or CUDA will not."""
        cuda, context = self._shared.cuda, self._context
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(cuda.stream):
            self._capturable = False
            self._engine.tell(logging.INFO, "cannot be captured as a CUDA graph; it runs directly")
            return False
        try:
            self._graph = cuda.capture(self._execute)
        except BackendError as error:
            self._capturable = False
            self._engine.tell(logging.WARNING, f"could not be captured as a CUDA graph and runs directly: {error}")
            return False
        self._graph.launch()
        return True

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.free()


def _varies(info: TensorInfo) -> bool:
    return any(isinstance(dim, str) for dim in info.shape)


def _within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
