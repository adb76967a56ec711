"""`cuda.bindings.runtime` over host memory."""

from __future__ import annotations

import ctypes
import enum
import time
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


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess


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


class HostCuda:
    """The module. Functions return tuples that begin with the status, as the bindings do."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaError_t = cudaError_t

    def __init__(self, *, devices=1, memory=1 << 34, name="Emulated GPU", capability=(8, 6), capture=True):
        self.devices, self.memory, self.name, self.capability = devices, memory, name, capability
        self.capture_works = capture
        self.allocations = {}
        self.freed = 0
        self.total_allocations = 0
        self.launches = 0
        self.events, self.streams, self.graphs, self.execs = {}, {}, {}, {}
        self._capturing = {}
        self._handle = 1000

    # devices

    def cudaGetDeviceCount(self):
        return (OK, self.devices) if self.devices else (cudaError_t.cudaErrorInsufficientDriver, None)

    def cudaSetDevice(self, ordinal):
        return (OK if ordinal < self.devices else cudaError_t.cudaErrorInvalidValue,)

    def cudaGetDeviceProperties(self, ordinal):
        major, minor = self.capability
        return OK, SimpleNamespace(
            name=self.name.encode(), major=major, minor=minor, totalGlobalMem=self.memory, ordinal=ordinal
        )

    def cudaRuntimeGetVersion(self):
        return OK, 12060

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
        assert not self._capturing, "an allocation while a stream is captured"
        allocation = Allocation(size, pinned)
        self.allocations[allocation.address] = allocation
        self.total_allocations += 1
        return OK, allocation.address

    def _free(self, address, *, pinned):
        self.drain()  # as cudaFree does
        allocation = self.allocations.pop(address)
        assert allocation.pinned == pinned
        assert allocation.intact(), "something wrote outside of its allocation"
        self.freed += 1
        return (OK,)

    def region(self, address, size, *, to_end=False):
        """The live bytes at `address`; `to_end`: up to the end of the allocation."""
        for allocation in self.allocations.values():
            offset = address - allocation.address
            if offset >= 0 and offset + size <= allocation.size:
                return allocation.bytes[offset : None if to_end else offset + size]
        raise AssertionError(f"{size} bytes at {address:#x} lie in no live allocation")

    def check_guards(self):
        assert all(allocation.intact() for allocation in self.allocations.values()), "a write outside of an allocation"

    def cudaMemsetAsync(self, address, value, size, stream):
        def work():
            self.region(address, size)[:] = value

        return self._enqueue(stream, work)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        host, device = (source, to) if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else (to, source)
        for address, pinned in ((host, True), (device, False)):
            owner = next(
                a for a in self.allocations.values() if a.address <= address and address + size <= a.address + a.size
            )
            assert owner.pinned == pinned, "a copy in the wrong direction"

        def work():
            ctypes.memmove(self.region(to, size).ctypes.data, self.region(source, size).ctypes.data, size)

        return self._enqueue(stream, work)

    # streams: nothing is done before somebody waits

    def cudaStreamCreateWithFlags(self, flags):
        return OK, self._new(self.streams, [])

    def cudaStreamDestroy(self, stream):
        self.drain()
        del self.streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        assert stream not in self._capturing, "a wait while the stream is captured"
        self.drain()
        return (OK,)

    def drain(self):
        for queue in self.streams.values():
            while queue:
                queue.pop(0)()

    def _enqueue(self, stream, work):
        (self._capturing[stream] if stream in self._capturing else self.streams[stream]).append(work)
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
        assert self.events[event] is not None, "an event that was never recorded"
        return (OK,)

    def cudaEventElapsedTime(self, start, end):
        return OK, (self.events[end] - self.events[start]) * 1e3

    # graphs

    def cudaStreamBeginCapture(self, stream, mode):
        if not self.capture_works:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        assert stream not in self._capturing
        self._capturing[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        return OK, self._new(self.graphs, self._capturing.pop(stream))

    def cudaGraphInstantiate(self, graph, flags):
        return OK, self._new(self.execs, list(self.graphs[graph]))

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        self.launches += 1
        for work in self.execs[executable]:
            self._enqueue(stream, work)
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        self.drain()
        del self.execs[executable]
        return (OK,)

    def _new(self, table, value):
        self._handle += 1
        table[self._handle] = value
        return self._handle

    def leaks(self):
        """What is not given back: all empty after a close."""
        tables = {"memory": self.allocations, "events": self.events, "streams": self.streams}
        tables |= {"graphs": self.graphs, "executables": self.execs}
        return {name: len(table) for name, table in tables.items() if table}
