"""ONNX Runtime: the backend that runs anywhere, and the numerical ground truth of the others.

Calls use I/O binding with raw addresses: a scale's new keys are written straight behind the cached
ones, so the host copies nothing of the past.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backends.base import Array, Backend, Buffer, Call, Engine
from engines.contract import TensorInfo
from engines.errors import BackendError, OutOfMemoryError
from engines.machine import machine

if TYPE_CHECKING:
    from engines.bundle import Bundle

PROVIDERS = {"cpu": "CPUExecutionProvider"}
INSTALL = 'install one with: pip install "var-export[cpu]"'


def import_onnxruntime() -> Any:
    """The onnxruntime module. Raises `BackendError` where none is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"no ONNX Runtime is installed ({error}); {INSTALL}") from error
    return onnxruntime


class HostBuffer(Buffer):
    """Memory of the host."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def write(self, value: Array) -> None:
        """See `Buffer`."""
        np.copyto(self.array, value, casting="no")

    def read(self) -> Array:
        """See `Buffer`."""
        return self.array.copy()

    def rows(self, start: int, count: int) -> HostBuffer:
        """See `Buffer`."""
        return HostBuffer(self.array[start : start + count])

    def shaped(self, shape: tuple[int, ...]) -> HostBuffer:
        """See `Buffer`."""
        return HostBuffer(self.array.reshape(-1)[: int(np.prod(shape))].reshape(shape))


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on one execution provider."""

    name = "onnxruntime"

    def __init__(self, provider: str = "cpu", threads: int | None = None) -> None:
        """Args: provider: a key of `PROVIDERS`; threads: of each operator, all physical cores by default."""
        if provider not in PROVIDERS:
            raise BackendError(f"unknown provider {provider!r}; this version runs: {', '.join(PROVIDERS)}")
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be 1 or more, got {threads}")
        self.provider = provider
        self.threads = threads
        self._ort = import_onnxruntime()
        available = self._ort.get_available_providers()
        if PROVIDERS[provider] not in available:
            raise BackendError(
                f"provider {provider!r} is not part of the installed ONNX Runtime, which has {', '.join(available)}"
            )

    def open(self, bundle: Bundle, graph: str) -> OnnxRuntimeEngine:
        """See `Backend`."""
        path = bundle.graph_path(graph)
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        options.log_severity_level = 3
        asked = PROVIDERS[self.provider]
        try:
            session = self._ort.InferenceSession(str(path), options, providers=[asked])
        except Exception as error:  # the module's exceptions share no base class but Exception
            raise _translated(error, f"loading {path.name}") from error
        if session.get_providers()[0] != asked:
            raise BackendError(f"{asked} was asked for, but ONNX Runtime runs {path.name} on {session.get_providers()}")
        return OnnxRuntimeEngine(graph, session, *bundle.tensors(graph))

    def buffer(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        """See `Backend`."""
        try:
            return HostBuffer(np.zeros(shape, dtype))
        except MemoryError as error:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raise OutOfMemoryError(f"cannot allocate {size / 2**20:.0f} MiB; lower the batch size") from error

    def close(self) -> None:
        """See `Backend`: sessions belong to their engines, so nothing is left."""

    def describe(self) -> dict[str, Any]:
        """See `Backend`."""
        return {
            "backend": self.name,
            "provider": PROVIDERS[self.provider],
            "onnxruntime": self._ort.__version__,
            "threads": self.threads or machine().physical_cores,
        }


class OnnxRuntimeEngine(Engine):
    """One session."""

    def __init__(
        self, name: str, session: Any, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._session = session

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OnnxRuntimeCall:
        """See `Engine`."""
        if self._session is None:
            raise BackendError(f"the {self.name} engine is closed")
        return OnnxRuntimeCall(self.name, self._session, inputs, outputs)

    def close(self) -> None:
        """See `Engine`."""
        self._session = None


class OnnxRuntimeCall(Call):
    """A session's I/O binding, filled once."""

    def __init__(self, name: str, session: Any, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        self._name, self._session = name, session
        self._binding = session.io_binding()
        self._alive = (dict(inputs), dict(outputs))  # the binding holds addresses only
        for tensors, bind in ((inputs, self._binding.bind_input), (outputs, self._binding.bind_output)):
            for tensor, buffer in tensors.items():
                assert isinstance(buffer, HostBuffer)
                array = buffer.array
                assert array.flags.c_contiguous, tensor
                try:
                    bind(tensor, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
                except Exception as error:
                    raise _translated(error, f"binding {tensor} of {name}") from error

    def run(self) -> None:
        """See `Call`."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise _translated(error, f"running {self._name}") from error


def _translated(error: Exception, doing: str) -> BackendError:
    """The border: what ONNX Runtime throws, as one line of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return OutOfMemoryError(f"out of memory while {doing}; lower the batch size ({text[:200]})")
    return BackendError(f"ONNX Runtime failed while {doing}: {text[:400]}")
