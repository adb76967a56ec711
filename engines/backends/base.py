"""What a runtime must offer: buffers, engines, and calls bound once and run many times.

The scale loop knows these four classes and nothing else of a backend. A new backend is one file that
implements them and an entry in `engines/backends/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import TensorInfo

Array = NDArray[Any]


class Buffer(ABC):
    """A tensor where the backend computes; its address does not change while it lives."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def write(self, value: Array) -> None:
        """Copy from the host; `value` has the shape and dtype of the buffer."""

    @abstractmethod
    def read(self) -> Array:
        """A copy on the host, once everything that was started has finished."""

    @abstractmethod
    def rows(self, start: int, count: int) -> Buffer:
        """`count` entries of the first axis from `start`, sharing memory with this buffer."""

    @abstractmethod
    def shaped(self, shape: tuple[int, ...]) -> Buffer:
        """The beginning of this buffer under another, smaller shape, sharing memory."""


class Call(ABC):
    """An engine with every input and output bound to a buffer."""

    @abstractmethod
    def run(self) -> None:
        """Start the work; a later `Buffer.read` waits for it. Raises `BackendError`."""


class Engine(ABC):
    """One graph, loaded."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @abstractmethod
    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Call:
        """Prepare a call; the buffers must outlive it."""

    @abstractmethod
    def close(self) -> None:
        """Free the engine."""


class Backend(ABC):
    """A runtime, configured: threads, provider, device."""

    name: str
    provider: str

    @abstractmethod
    def open(self, path: Path, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> Engine:
        """Load one graph file. Raises `BackendError`."""

    @abstractmethod
    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Allocate zeros."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Versions and settings, for reports."""

    def upload(self, value: Array) -> Buffer:
        """A buffer that holds `value`."""
        buffer = self.buffer(value.shape, str(value.dtype))
        buffer.write(value)
        return buffer

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds beyond its engines."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
