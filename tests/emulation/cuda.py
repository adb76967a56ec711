"""`cuda.bindings.runtime` over host memory."""

from __future__ import annotations

import ctypes
import enum
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

GUARD = 256
GUARD_BYTE, POISON_BYTE = 0xA5, 0xFF  # 0xFFFF.. is NaN in every floating type, -1 in every integer


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess


class Misuse(AssertionError):
    """Something that a real GPU punishes with a crash or with wrong numbers."""


class Allocation:
    """`size` bytes between guards, poisoned."""

    def __init__(self, size, pinned):
        self.size, self.pinned = size, pinned
        self.raw = np.full(size + 3 * GUARD, GUARD_BYTE, np.uint8)
        base = self.raw.ctypes.data
        self.start = -(base + GUARD) % GUARD + GUARD
        self.address = base + self.start
        self.bytes = self.raw[self.start : self.start + size]
        self.bytes[:] = POISON_BYTE

    def intact(self):
        before, after = self.raw[: self.start], self.raw[self.start + self.size :]
        return bool((before == GUARD_BYTE).all() and (after == GUARD_BYTE).all())


@dataclass
class Capture:
    thread: int
    work: list = field(default_factory=list)
    valid: bool = True


class HostCuda:
    """The module. Functions return tuples that begin with the status, as the bindings do.

    `violations` keeps every misuse: an exception alone may be lost in a finalizer.
    """

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaError_t = cudaError_t

    def __init__(
        self,
        *,
        devices=1,
        memory=1 << 34,
        name="Emulated GPU",
        capability=(8, 6),
        capture=True,
        driver=12060,
        integrated=False,
        processors=16,
    ):
        self.driver, self.integrated, self.processors = driver, integrated, processors
        self.devices, self.memory, self.name, self.capability = devices, memory, name, capability
        self.capture_works = capture
        self.allocations = {}
        self.freed = 0
        self.total_allocations = 0
        self.launches = 0
        self.violations = []
        self.events, self.streams, self.graphs, self.execs = {}, {}, {}, {}
        self._capturing = {}
        self._current = threading.local()
        self._handle = 1000
        self._lock = threading.RLock()  # pipelines of several threads may share the device

    def misuse(self, text):
        self.violations.append(text)
        raise Misuse(text)

    def require(self, condition, text):
        if not condition:
            self.misuse(text)

    # devices

    def cudaGetDeviceCount(self):
        return (OK, self.devices) if self.devices else (cudaError_t.cudaErrorInsufficientDriver, None)

    def cudaSetDevice(self, ordinal):
        self._current.device = ordinal
        return (OK if ordinal < self.devices else cudaError_t.cudaErrorInvalidValue,)

    def cudaGetDeviceProperties(self, ordinal):
        major, minor = self.capability
        return OK, SimpleNamespace(
            name=self.name.encode(),
            major=major,
            minor=minor,
            totalGlobalMem=self.memory,
            integrated=int(self.integrated),
            multiProcessorCount=self.processors,
            ordinal=ordinal,
        )

    def cudaRuntimeGetVersion(self):
        return OK, 12060

    def cudaDriverGetVersion(self):
        return OK, self.driver

    def cudaMemGetInfo(self):
        return OK, self.memory - self.in_use, self.memory

    # memory

    @property
    def in_use(self):
        return sum(a.size for a in self.allocations.values() if not a.pinned)

    def cudaMalloc(self, size):
        if self.in_use + size > self.memory:
            return cudaError_t.cudaErrorMemoryAllocation, None
        return self._allocate(size, pinned=False)

    def cudaHostAlloc(self, size, flags):
        return self._allocate(size, pinned=True)

    def cudaFree(self, address):
        return self._free(address, pinned=False)

    def cudaFreeHost(self, address):
        return self._free(address, pinned=True)

    def _allocate(self, size, *, pinned):
        if self._breaks_capture():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        # The current device is a property of the thread: who forgets to set it allocates on GPU 0.
        self.require(hasattr(self._current, "device"), "an allocation in a thread that chose no device")
        allocation = Allocation(size, pinned)
        with self._lock:
            self.allocations[allocation.address] = allocation
            self.total_allocations += 1
        return OK, allocation.address

    def _free(self, address, *, pinned):
        if self._breaks_capture():
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        with self._lock:
            self.drain()  # as cudaFree does
            self.require(address in self.allocations, f"{address:#x} is freed, and not allocated")
            allocation = self.allocations.pop(address)
            self.require(allocation.pinned == pinned, "memory is freed by the wrong function")
            self.require(allocation.intact(), "something wrote outside of its allocation")
            self.freed += 1
        return (OK,)

    def region(self, address, size, *, to_end=False):
        """The live bytes at `address`; `to_end`: up to the end of the allocation."""
        for allocation in list(self.allocations.values()):
            offset = address - allocation.address
            if offset >= 0 and offset + size <= allocation.size:
                return allocation.bytes[offset : None if to_end else offset + size]
        return self.misuse(f"{size} bytes at {address:#x} lie in no live allocation")

    def check_guards(self):
        with self._lock:
            intact = all(allocation.intact() for allocation in self.allocations.values())
        self.require(intact, "a write outside of an allocation")

    def poison(self, *, keep=()):
        """Spoil all memory, pinned too, but for the allocations in which the addresses `keep` lie."""
        with self._lock:
            self.drain()
            for start, allocation in self.allocations.items():
                if not any(start <= address < start + allocation.size for address in keep):
                    allocation.bytes[:] = POISON_BYTE

    def cudaMemsetAsync(self, address, value, size, stream):
        def work():
            self.region(address, size)[:] = value

        return self._enqueue(stream, work)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        host, device = (source, to) if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else (to, source)
        with self._lock:
            for address, pinned in ((host, True), (device, False)):
                inside = (a for a in self.allocations.values() if a.address <= address < a.address + a.size)
                owner = next(inside, None)
                self.require(owner is not None, f"a copy of memory that is not allocated, {address:#x}")
                self.require(address + size <= owner.address + owner.size, "a copy beyond its allocation")
                self.require(owner.pinned == pinned, "a copy in the wrong direction")

        def work():
            ctypes.memmove(self.region(to, size).ctypes.data, self.region(source, size).ctypes.data, size)

        return self._enqueue(stream, work)

    def cudaMemcpy2DAsync(self, to, to_pitch, source, source_pitch, width, height, kind, stream):
        self.require(kind == cudaMemcpyKind.cudaMemcpyDeviceToDevice, "a copy of rows that passes the host")
        self.require(0 < width <= min(to_pitch, source_pitch), "rows that are wider than their distance")
        places = [(to + row * to_pitch, source + row * source_pitch) for row in range(height)]
        for address in places[-1:]:
            for end in address:
                self.region(end, width)
        apart = places[-1][0] + width <= source or places[-1][1] + width <= to
        self.require(apart, "a copy of rows onto one another: their order is nowhere promised")

        def work():
            for there, here in places:
                ctypes.memmove(self.region(there, width).ctypes.data, self.region(here, width).ctypes.data, width)

        return self._enqueue(stream, work)

    # streams: nothing is done before somebody waits

    def cudaStreamCreateWithFlags(self, flags):
        return OK, self._new(self.streams, deque())

    def cudaStreamDestroy(self, stream):
        self.drain()
        del self.streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if stream in self._capturing:
            self._capturing[stream].valid = False
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self.require(stream in self.streams, "a wait for a stream that was destroyed")
        self.drain()
        return (OK,)

    def drain(self):
        with self._lock:
            for queue in list(self.streams.values()):
                while queue:
                    queue.popleft()()

    def _enqueue(self, stream, work):
        if stream in self._capturing:
            self._capturing[stream].work.append(work)
        else:
            self.require(stream in self.streams, "work for a stream that was destroyed")
            self.streams[stream].append(work)
        return (OK,)

    enqueue = _enqueue

    # events

    def cudaEventCreate(self):
        return OK, self._new(self.events, None)

    def cudaEventDestroy(self, event):
        del self.events[event]
        return (OK,)

    def cudaEventRecord(self, event, stream):
        def work():
            self.events[event] = time.perf_counter()

        self.events[event] = None
        return self._enqueue(stream, work)

    def cudaEventSynchronize(self, event):
        self.drain()
        self.require(self.events[event] is not None, "an event that was never recorded")
        return (OK,)

    def cudaEventElapsedTime(self, start, end):
        self.require(None not in (self.events[start], self.events[end]), "an event that has not come yet is read")
        return OK, (self.events[end] - self.events[start]) * 1e3

    # graphs

    def cudaStreamBeginCapture(self, stream, mode):
        if not self.capture_works:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self.require(stream not in self._capturing, "a capture within a capture")
        self._capturing[stream] = Capture(threading.get_ident())
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        capture = self._capturing.pop(stream)
        if not capture.valid:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return OK, self._new(self.graphs, capture.work)

    def cudaGraphInstantiate(self, graph, flags):
        return OK, self._new(self.execs, list(self.graphs[graph]))

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        self.launches += 1
        self.require(executable in self.execs, "a launch of a graph that was freed")
        for work in self.execs[executable]:
            self._enqueue(stream, work)
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        self.drain()
        del self.execs[executable]
        return (OK,)

    def _breaks_capture(self):
        """What may wait for the whole device breaks a capture of its own thread, in the mode that is used here."""
        broken = [capture for capture in self._capturing.values() if capture.thread == threading.get_ident()]
        for capture in broken:
            capture.valid = False
        return bool(broken)

    def _new(self, table, value):
        with self._lock:
            self._handle += 1
            table[self._handle] = value
            return self._handle

    def leaks(self):
        """What is not given back: all empty after a close."""
        tables = {"memory": self.allocations, "events": self.events, "streams": self.streams}
        tables |= {"graphs": self.graphs, "executables": self.execs}
        return {name: len(table) for name, table in tables.items() if table}
