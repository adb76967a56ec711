"""One NVIDIA GPU through the CUDA runtime: memory, one stream, events, graphs. Nothing of TensorRT.

Every backend that computes on a GPU shares these buffers. Work is ordered by one stream; the host waits
only where a result is read. Calls into CUDA hold one lock, so that no thread's work lands in another's capture.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from engines.backends.base import Array, Buffer, Mark
from engines.errors import BackendError, OutOfMemoryError
from engines.spec.contract import storage

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
        self._memory: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._events: weakref.WeakSet[EventMark] = weakref.WeakSet()
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

    def allocate(self, size: int, *, pinned: bool = False) -> Memory:
        """`size` bytes on the device, or of the host's page-locked memory. Raises `OutOfMemoryError`."""
        with self.held():
            memory = Memory(self, size, pinned)
            self._memory.add(memory)
            return memory

    def buffer(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        """A buffer of zeros on the device."""
        kind = storage(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        memory = self.allocate(size)
        with self.held():
            self.call("cudaMemsetAsync", memory.address, 0, memory.size, self.stream, doing="clearing memory")
        return DeviceBuffer(self, memory, 0, shape, kind)

    def mark(self) -> EventMark:
        """An event of the stream."""
        with self.held():
            event = EventMark(self)
            self._events.add(event)
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
                for event in list(self._events):
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


class Memory:
    """One allocation, freed once: by its owner, by the garbage collector, or when the device is closed."""

    def __init__(self, cuda: Cuda, size: int, pinned: bool) -> None:
        self.size = max(size, ALIGNMENT)  # an empty tensor needs an address too
        self._cuda, self._pinned = cuda, pinned
        self.address = 0
        doing = f"allocating {self.size / 2**20:.1f} MiB of {'page-locked host' if pinned else 'GPU'} memory"
        if pinned:
            self.address = int(cuda.call("cudaHostAlloc", self.size, 0, doing=doing))
        else:
            try:
                self.address = int(cuda.call("cudaMalloc", self.size, doing=doing))
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

    def free(self) -> None:
        """Give it back; the work that uses it must be done."""
        address, self.address = self.address, 0
        if address:
            self._cuda.call("cudaFreeHost" if self._pinned else "cudaFree", address, doing="freeing memory")

    def __del__(self) -> None:
        if getattr(self, "address", 0):
            try:
                with self._cuda.held():
                    self.free()  # cudaFree waits for the device itself
            except BackendError:  # closed, or the driver is already gone: nobody is left to tell
                pass


class DeviceBuffer(Buffer):
    """A tensor, or a part of one, in the memory of the device. Copies pass through page-locked memory of its own."""

    def __init__(self, cuda: Cuda, memory: Memory, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._cuda, self._memory, self._offset = cuda, memory, offset
        self._staging: Array | None = None
        self._pinned: Memory | None = None
        self._written = -1

    @property
    def address(self) -> int:
        """Where it begins on the device."""
        return self._memory.address + self._offset

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def write(self, value: Array) -> None:
        """See `Buffer`: returns before the copy is done."""
        if value.shape != self.shape or value.dtype != self.dtype:
            raise ValueError(f"{value.dtype} {value.shape} does not fit into {self.dtype} {self.shape}")
        cuda = self._cuda
        with cuda.held():
            staging, pinned = self._staged()
            if self._written == cuda.epoch:  # the copy before this one may still read the staging memory
                cuda.synchronize()
            np.copyto(staging, value)
            kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            cuda.call("cudaMemcpyAsync", self.address, pinned, self.size, kind, cuda.stream, doing="copying to the GPU")
            self._written = cuda.epoch

    def read(self) -> Array:
        """See `Buffer`."""
        cuda = self._cuda
        with cuda.held():
            staging, pinned = self._staged()
            kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            cuda.call(
                "cudaMemcpyAsync", pinned, self.address, self.size, kind, cuda.stream, doing="copying from the GPU"
            )
            cuda.synchronize()
            return staging.copy()

    def rows(self, start: int, count: int) -> DeviceBuffer:
        """See `Buffer`."""
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        shape = (count, *self.shape[1:])
        return DeviceBuffer(self._cuda, self._memory, self._offset + start * row, shape, self.dtype)

    def shaped(self, shape: tuple[int, ...]) -> DeviceBuffer:
        """See `Buffer`."""
        return DeviceBuffer(self._cuda, self._memory, self._offset, shape, self.dtype)

    def _staged(self) -> tuple[Array, int]:
        if self._staging is None or self._pinned is None:
            self._pinned = self._cuda.allocate(self.size, pinned=True)
            raw = (ctypes.c_uint8 * self.size).from_address(self._pinned.address)
            self._staging = np.ctypeslib.as_array(raw).view(self.dtype).reshape(self.shape)
        return self._staging, self._pinned.address


class EventMark(Mark):
    """A CUDA event."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._event = cuda.call("cudaEventCreate", doing="making an event")

    def record(self) -> None:
        """See `Mark`."""
        with self._cuda.held():
            self._cuda.call("cudaEventRecord", self._event, self._cuda.stream, doing="recording an event")

    def since(self, earlier: Mark) -> float:
        """See `Mark`."""
        assert isinstance(earlier, EventMark)
        with self._cuda.held():
            self._cuda.call("cudaEventSynchronize", self._event, doing="waiting for an event")
            milliseconds = self._cuda.call("cudaEventElapsedTime", earlier._event, self._event, doing="timing")
            return float(milliseconds) / 1e3

    def free(self) -> None:
        """Give the event back."""
        event, self._event = self._event, None
        if event is not None:
            self._cuda.call("cudaEventDestroy", event, doing="freeing an event")

    def __del__(self) -> None:
        if getattr(self, "_event", None) is not None:
            try:
                with self._cuda.held():
                    self.free()
            except BackendError:
                pass


class Graph:
    """Work recorded once, started by one call."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda, self._handle = cuda, handle

    def launch(self) -> None:
        """Start it on the stream."""
        self._cuda.call("cudaGraphLaunch", self._handle, self._cuda.stream, doing="launching a CUDA graph")

    def free(self) -> None:
        """Give it back; its work must be done."""
        handle, self._handle = self._handle, None
        if handle is not None:
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
