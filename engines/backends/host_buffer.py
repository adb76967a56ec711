"""Buffers in the memory of the host, for backends that compute there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.backends.base import Array, Buffer
from engines.errors import OutOfMemoryError

_CONVOLVING, _PIXELS = ("decode", "encode"), 256 * 256


def images_at_once(graph: str, image_size: int) -> int | None:
    """What `Backend.images_at_once` is on a CPU: of convolutions as many as have the pixels of one of 256 x 256.

    More are no faster, and need the memory of all: 8 images of d16 in INT8 took 17.2 s with one call of the decoder,
    and 15.3 s with eight. The decoder of the demo (64 x 64) took 1.1 to 1.4 times as long for 8 images one by one.
    """
    return max(1, _PIXELS // image_size**2) if graph in _CONVOLVING else None


class HostBuffer(Buffer):
    """Memory of the host."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        """A new one. Raises `OutOfMemoryError`."""
        try:
            return cls(np.zeros(shape, dtype))
        except MemoryError as error:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raise OutOfMemoryError(f"cannot allocate {size / 2**20:.0f} MiB; lower the batch size") from error

    @property
    def address(self) -> int:
        """Where it begins."""
        assert self.array.flags.c_contiguous
        return int(self.array.ctypes.data)

    def write(self, value: Array) -> None:
        np.copyto(self.array, value, casting="no")

    def read(self) -> Array:
        return self.array.copy()

    def rows(self, start: int, count: int) -> HostBuffer:
        return HostBuffer(self.array[start : start + count])

    def shaped(self, shape: tuple[int, ...]) -> HostBuffer:
        return HostBuffer(self.array.reshape(-1)[: int(np.prod(shape))].reshape(shape))

    def gather(self, source: Buffer, entries: Sequence[int], axis: int) -> None:
        assert isinstance(source, HostBuffer)
        np.take(source.array, entries, axis=axis, out=self.array, mode="clip")  # "raise" would copy once more
