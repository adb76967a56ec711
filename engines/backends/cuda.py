"""One NVIDIA GPU through the CUDA runtime: memory, one stream, events, graphs. Nothing of TensorRT.

Every backend that computes on a GPU has one of these. Work is ordered by one stream; the host waits
only where a result is read. Calls into CUDA hold one lock, so that no thread's work lands in another's capture.
"""

from __future__ import annotations

import gc
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engines.backends.base import Mark
from engines.errors import BackendError, OutOfMemoryError

ALIGNMENT = 256  # bytes; of every address that TensorRT is given
INSTALL = (
    'install it with: pip install "cuda-bindings>=12.8" (for a driver of CUDA 12, as on JetPack 6: "cuda-bindings<13")'
)


def import_cuda_runtime() -> Any:
    """The module cuda.bindings.runtime. Raises `BackendError` where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(f"the GPU backends need cuda-bindings ({error}); {INSTALL}") from error
    return runtime


class Cuda:
    """A device and the stream on which all of its work is ordered."""

    def __init__(self, ordinal: int = 0, runtime: Any = None) -> None:
        """Args: ordinal: as CUDA counts devices; runtime: the module to call, for tests.

        Raises `BackendError` where there is no such device, or no driver.
        """
        self.runtime = runtime or import_cuda_runtime()
        self.ordinal = ordinal
        self.lock = threading.RLock()
        self.epoch = 0
        """Counts the waits for the stream: what was started in an earlier epoch is done."""
        self._thread = threading.local()
        self._memory: weakref.WeakSet[Allocation] = weakref.WeakSet()
        self._handles: weakref.WeakSet[EventMark] = weakref.WeakSet()
        self._closed = False
        count = self.call("cudaGetDeviceCount", doing="looking for a GPU")
        if not 0 <= ordinal < count:
            raise BackendError(f"there is no GPU {ordinal}: CUDA sees {count}")
        with self.held():
            self.stream = int(
                self.call("cudaStreamCreateWithFlags", self.runtime.cudaStreamNonBlocking, doing="making a stream")
            )
            properties = self.call("cudaGetDeviceProperties", ordinal, doing="reading the GPU's properties")
            self.version = _dotted(self.call("cudaRuntimeGetVersion", doing="reading the CUDA version"))
        name = properties.name
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.integrated = bool(properties.integrated)
        if self.integrated:  # every Jetson Orin is called Orin, from 4 SM to 16; power modes switch some off
            self.name = f"{self.name} ({properties.multiProcessorCount} SM)"
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.total_memory = int(properties.totalGlobalMem)

    def call(self, function: str, *args: Any, doing: str) -> Any:
        """Call the CUDA runtime and return what it gives beside the error code.

        Raises `OutOfMemoryError` and `BackendError`.
        """
        status, *values = getattr(self.runtime, function)(*args)
        if int(status) != 0:
            self._fail(status, doing)
        return values[0] if len(values) == 1 else tuple(values) if values else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """The lock, with this device current in the calling thread."""
        with self.lock:
            if self._closed:
                raise BackendError("the GPU backend is closed; load the pipeline again")
            if not getattr(self._thread, "current", False):
                self.call("cudaSetDevice", self.ordinal, doing=f"choosing GPU {self.ordinal}")
                self._thread.current = True
            yield

    def synchronize(self) -> None:
        """Wait until everything that was started is done."""
        self.call("cudaStreamSynchronize", self.stream, doing="waiting for the GPU")
        self.epoch += 1

    def allocate(self, size: int, *, pinned: bool = False) -> Allocation:
        """`size` bytes on the device, or of the host's page-locked memory. Raises `OutOfMemoryError`."""
        with self.held():
            memory = Allocation(self, size, pinned)
            self._memory.add(memory)
            return memory

    def mark(self) -> EventMark:
        """An event of the stream."""
        with self.held():
            event = EventMark(self)
            self._handles.add(event)
            return event

    def free_memory(self) -> int:
        """Bytes that the device has left."""
        with self.held():
            free, _ = self.call("cudaMemGetInfo", doing="asking for free memory")
            return int(free)

    def capture(self, work: Callable[[], None]) -> Graph:
        """The work that `work` starts on the stream, recorded instead of done."""
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.held(), _no_garbage_collection():
            self.call("cudaStreamBeginCapture", self.stream, mode, doing="starting a CUDA graph")
            try:
                work()
            except BaseException:
                status, graph = self.runtime.cudaStreamEndCapture(self.stream)  # the capture is broken: only end it
                if int(status) == 0 and graph:
                    self.runtime.cudaGraphDestroy(graph)
                raise
            graph = self.call("cudaStreamEndCapture", self.stream, doing="ending a CUDA graph")
            try:
                return Graph(self, self.call("cudaGraphInstantiate", graph, 0, doing="instantiating a CUDA graph"))
            finally:
                self.call("cudaGraphDestroy", graph, doing="freeing a CUDA graph")

    def close(self) -> None:
        """Wait, then free the memory, events and stream. May be called twice."""
        with self.lock:
            if self._closed:
                return
            self._thread.current = False
            with self.held():
                self.synchronize()
                for memory in list(self._memory):
                    memory.free()
                for event in list(self._handles):
                    event.free()
                self.call("cudaStreamDestroy", self.stream, doing="freeing the stream")
            self._closed = True

    def describe(self) -> dict[str, Any]:
        """The device, for reports."""
        return {
            "gpu": self.name,
            "compute_capability": self.compute_capability,
            "gpu_memory": self.total_memory,
            "cuda": self.version,
        }

    def _driver_problem(self) -> str:
        """Why CUDA does not start: cuda-bindings bring their own CUDA runtime, which needs a driver as new."""
        _, driver = self.runtime.cudaDriverGetVersion()
        _, needed = self.runtime.cudaRuntimeGetVersion()
        if driver and needed and driver // 1000 < needed // 1000:
            return (
                f"the driver has CUDA {_dotted(driver)}, but cuda-bindings need {_dotted(needed)}: "
                f'pip install "cuda-bindings<{driver // 1000 + 1}"'
            )
        return "no usable NVIDIA GPU or driver here; nvidia-smi should list one"

    def _fail(self, status: Any, doing: str) -> None:
        text = str(getattr(status, "name", status))
        if text == "cudaErrorMemoryAllocation":
            raise OutOfMemoryError(f"the GPU is out of memory while {doing}; lower the batch size")
        if text in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice"):
            raise BackendError(f"{self._driver_problem()} ({text} while {doing})")
        raise BackendError(f"CUDA failed while {doing}: {text}")


class _Owned(ABC):
    """Something of the device that is freed once: by its owner, by the garbage collector, or when that is closed."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._handle: Any = None

    def free(self) -> None:
        """Give it back; the work that uses it must be done."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._give_back(handle)

    @abstractmethod
    def _give_back(self, handle: Any) -> None:
        """Have CUDA free it."""

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            try:
                with self._cuda.held():
                    self.free()  # freeing memory waits for the device itself
            except BackendError:  # closed, or the driver is already gone: nobody is left to tell
                pass


class Allocation(_Owned):
    """Memory of the device, or page-locked memory of the host."""

    def __init__(self, cuda: Cuda, size: int, pinned: bool) -> None:
        super().__init__(cuda)
        self.size = max(size, ALIGNMENT)  # an empty tensor needs an address too
        self._pinned = pinned
        doing = f"allocating {self.size / 2**20:.1f} MiB of {'page-locked host' if pinned else 'GPU'} memory"
        if pinned:
            self._handle = int(cuda.call("cudaHostAlloc", self.size, 0, doing=doing))
        else:
            try:
                self._handle = int(cuda.call("cudaMalloc", self.size, doing=doing))
            except OutOfMemoryError as error:
                free, total = cuda.call("cudaMemGetInfo", doing="asking for free memory")
                more = (
                    "close other programs on the GPU, or build with --weight-streaming"
                    if not cuda.integrated
                    else "or close other programs: the GPU has no memory but the system's"
                )
                raise OutOfMemoryError(
                    f"the GPU is out of memory: {self.size / 2**20:.1f} MiB were needed, {free / 2**20:.0f} of "
                    f"{total / 2**20:.0f} MiB are free; lower --batch, {more}"
                ) from error

    @property
    def address(self) -> int:
        """Where it begins; 0 once it is freed."""
        return self._handle or 0

    def _give_back(self, handle: int) -> None:
        self._cuda.call("cudaFreeHost" if self._pinned else "cudaFree", handle, doing="freeing memory")


class EventMark(_Owned, Mark):
    """A CUDA event."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__(cuda)
        self._handle = cuda.call("cudaEventCreate", doing="making an event")

    def record(self) -> None:
        """See `Mark`."""
        with self._cuda.held():
            self._cuda.call("cudaEventRecord", self._handle, self._cuda.stream, doing="recording an event")

    def since(self, earlier: Mark) -> float:
        """See `Mark`."""
        assert isinstance(earlier, EventMark)
        with self._cuda.held():
            self._cuda.call("cudaEventSynchronize", self._handle, doing="waiting for an event")
            milliseconds = self._cuda.call("cudaEventElapsedTime", earlier._handle, self._handle, doing="timing")
            return float(milliseconds) / 1e3

    def _give_back(self, handle: Any) -> None:
        self._cuda.call("cudaEventDestroy", handle, doing="freeing an event")


class Graph(_Owned):
    """Work recorded once, started by one call."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        super().__init__(cuda)
        self._handle = handle

    def launch(self) -> None:
        """Start it on the stream."""
        self._cuda.call("cudaGraphLaunch", self._handle, self._cuda.stream, doing="launching a CUDA graph")

    def _give_back(self, handle: Any) -> None:
        self._cuda.call("cudaGraphExecDestroy", handle, doing="freeing a CUDA graph")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A finalizer that frees memory in the thread that captures would break the capture, and lose the memory."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _dotted(version: int) -> str:
    """12060 as 12.6."""
    return f"{version // 1000}.{version % 1000 // 10}"
