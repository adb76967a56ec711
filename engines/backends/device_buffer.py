"""Tensors in the memory of a GPU, which every backend that computes on one shares."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engines.backends.base import Array, Buffer
from engines.backends.cuda import Allocation, Cuda
from engines.spec.contract import storage


def zeros(cuda: Cuda, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
    """A buffer of zeros on the device. Raises `OutOfMemoryError`."""
    kind = storage(dtype)
    memory = cuda.allocate(int(np.prod(shape)) * kind.itemsize)
    with cuda.held():
        cuda.call("cudaMemsetAsync", memory.address, 0, memory.size, cuda.stream, doing="clearing memory")
    return DeviceBuffer(cuda, memory, 0, shape, kind)


class DeviceBuffer(Buffer):
    """A tensor, or a part of one, in the memory of the device. Copies pass through page-locked memory of its own."""

    def __init__(
        self, cuda: Cuda, memory: Allocation, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._cuda, self._memory, self._offset = cuda, memory, offset
        self._staging: Array | None = None
        self._pinned: Allocation | None = None
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
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        shape = (count, *self.shape[1:])
        return DeviceBuffer(self._cuda, self._memory, self._offset + start * row, shape, self.dtype)

    def shaped(self, shape: tuple[int, ...]) -> DeviceBuffer:
        return DeviceBuffer(self._cuda, self._memory, self._offset, shape, self.dtype)

    def gather(self, source: Buffer, entries: Sequence[int], axis: int) -> None:
        """See `Buffer`: returns before the copies are done, of which there is one for each run of neighbours."""
        assert isinstance(source, DeviceBuffer)
        cuda = self._cuda
        outer, entry = int(np.prod(self.shape[:axis])), int(np.prod(self.shape[axis + 1 :])) * self.dtype.itemsize
        pitch, old_pitch = self.shape[axis] * entry, source.shape[axis] * entry
        kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        with cuda.held():
            for place, first, count in _runs(entries):
                to, old, width = self.address + place * entry, source.address + first * entry, count * entry
                cuda.call(
                    "cudaMemcpy2DAsync",
                    to,
                    pitch,
                    old,
                    old_pitch,
                    width,
                    outer,
                    kind,
                    cuda.stream,
                    doing="copying rows",
                )

    def _staged(self) -> tuple[Array, int]:
        if self._staging is None or self._pinned is None:
            self._pinned = self._cuda.allocate(self.size, pinned=True)
            raw = (ctypes.c_uint8 * self.size).from_address(self._pinned.address)
            self._staging = np.ctypeslib.as_array(raw).view(self.dtype).reshape(self.shape)
        return self._staging, self._pinned.address


def _runs(entries: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Place, first entry and length of each run of entries that follow on one another."""
    start = 0
    for end in range(1, len(entries) + 1):
        if end == len(entries) or entries[end] != entries[end - 1] + 1:
            yield start, int(entries[start]), end - start
            start = end
