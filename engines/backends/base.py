"""What a runtime must offer: buffers, engines, calls bound once and run many times, and marks in time.

The scale loop knows these classes and nothing else of a backend. A new backend is one file or folder that
implements them and an entry in `engines/backends/__init__.py`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import BackendError
from engines.spec.contract import TensorInfo

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

Array = NDArray[Any]


MOST_THREADS = 1024


def check_threads(threads: int | None) -> None:
    """Raise `BackendError` on a number of threads that no runtime takes."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        limit = "1 or more" if threads < 1 else f"at most {MOST_THREADS}"
        raise BackendError(f"threads must be {limit}, got {threads}")


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

    @abstractmethod
    def gather(self, source: Buffer, entries: Sequence[int], axis: int) -> None:
        """Fill this buffer with some entries of an axis of `source`, where both lie: nothing passes the host.

        `source` is of the same backend and dtype, and of the same sizes but for that axis; the two share no memory.
        """


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

    @property
    def max_images(self) -> int | None:
        """Most images of one call; None where nothing limits them."""
        return None

    def shape_for(self, images: int, rows: int) -> tuple[int, int]:
        """The batch (B, N) to run these images and rows in: larger where the engine has a least or only size.

        Raises `BackendError` for more than it holds.
        """
        return images, rows

    @abstractmethod
    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Call:
        """Prepare a call; the buffers must outlive it."""

    @abstractmethod
    def close(self) -> None:
        """Free the engine."""


class Mark(ABC):
    """A point in the order of a backend's work, for timing."""

    @abstractmethod
    def record(self) -> None:
        """Set the point behind the work started so far."""

    @abstractmethod
    def since(self, earlier: Mark) -> float:
        """Seconds of the backend's time from `earlier`, once this point is reached."""


class HostMark(Mark):
    """For backends whose calls return when the work is done."""

    def __init__(self) -> None:
        self.time = 0.0

    def record(self) -> None:
        """See `Mark`."""
        self.time = time.perf_counter()

    def since(self, earlier: Mark) -> float:
        """See `Mark`."""
        assert isinstance(earlier, HostMark)
        return self.time - earlier.time


class Backend(AbstractContextManager["Backend"]):
    """A runtime, configured: threads, provider, device."""

    name: str
    provider: str

    @abstractmethod
    def open(self, bundle: Bundle, graph: str) -> Engine:
        """Load what this backend runs of one graph of a bundle. Raises `BackendError`, `BundleError`."""

    @abstractmethod
    def buffer(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Allocate zeros."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Versions and settings, for reports."""

    def arithmetic(self) -> dict[str, Any]:
        """What a probe of this machine's kernels found, on which a verdict about them depends; nothing by default."""
        return {}

    def judged_as(self, bundle: Bundle) -> str:
        """The precision whose thresholds hold for `bundle` here; its own, unless the backend computes in another."""
        return bundle.precision

    def remedy(self, bundle: Bundle) -> str:
        """What to do, as a sentence without its stop, where `bundle` is computed wrongly here."""
        return "Take another backend"

    def lacks(self, bundle: Bundle) -> str | None:
        """Why this backend cannot run `bundle` as it is; None where nothing is missing."""
        return None

    def images_at_once(self, graph: str, image_size: int) -> int | None:
        """How many images, of that many pixels a side, one call of `graph` takes at most; None: any number."""
        return None

    def mark(self) -> Mark:
        """A mark, to be recorded as often as needed."""
        return HostMark()

    def upload(self, value: Array) -> Buffer:
        """A buffer that holds `value`."""
        buffer = self.buffer(value.shape, str(value.dtype))
        buffer.write(value)
        return buffer

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds beyond its engines."""

    def __exit__(self, *raised: object) -> None:
        self.close()
