"""A bundle's graphs in OpenVINO, as the scale loop's backend.

Requests read and write the loop's own buffers: a scale's new keys are written straight behind the cached ones, so
nothing of the past is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engines.backends.base import Backend, Buffer, Call, Engine
from engines.backends.host_buffer import HostBuffer
from engines.backends.openvino.arithmetic import FLOAT_LAYERS, saturates
from engines.errors import BackendError, OutOfMemoryError
from engines.machine import machine
from engines.packages import install_command
from engines.spec.choices import INT8, OPENVINO
from engines.spec.contract import TensorInfo

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

_CPU = "CPU"
_NO_MEMORY = ("bad_alloc", "out of memory", "failed to allocate")
# Compiled pieces are kept by what they compute and not by all of its shapes: with more than one past length, a step's
# attention was wrong from the third scale on (2026.4.1, CPU with AVX2: logits off by 28 where 2e-5 is right).
_CPU_OPTIONS = {"CPU_RUNTIME_CACHE_CAPACITY": "0"}
_HINTS = {"INFERENCE_PRECISION_HINT": "f32"}  # by default it is bfloat16 where the processor has it


def import_openvino() -> Any:
    """The module openvino. The one place that imports it. Raises `BackendError` where none is installed."""
    try:
        import openvino
        import openvino.opset13
    except ImportError as error:
        raise BackendError(f"no OpenVINO is installed ({error}); {install_command('openvino')}") from error
    return openvino


class OpenVinoBackend(Backend):
    """OpenVINO on one device."""

    name = OPENVINO

    def __init__(self, device: str = "CPU", threads: int | None = None, *, module: Any = None) -> None:
        """Args: device: as OpenVINO calls it, such as CPU, GPU or GPU.1; threads: of the CPU, all physical cores by
        default; module: for tests.

        Raises `BackendError` where OpenVINO or the device is missing.
        """
        if threads is not None and threads < 1:
            raise BackendError(f"threads must be 1 or more, got {threads}")
        self._ov = module or import_openvino()
        self._core = self._ov.Core()
        self.provider, self._threads = device, threads
        available = list(self._core.available_devices)
        # Of the CPU, which computes for AUTO too.
        self._core.set_property(_CPU, _CPU_OPTIONS | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads}))
        if device not in (*available, "AUTO", *(each.partition(".")[0] for each in available)):
            raise BackendError(f"OpenVINO {self._ov.__version__} finds no {device} here; it has {', '.join(available)}")

    def lacks(self, bundle: Bundle) -> str | None:
        """See `Backend`: graphs that were made for TensorRT."""
        if not bundle.for_gpus:
            return None
        return f"{bundle.path} is for TensorRT: build one with --precision fp16, fp32 or int8 for OpenVINO"

    def open(self, bundle: Bundle, graph: str) -> OpenVinoEngine:
        problem = self.lacks(bundle)
        if problem is not None:
            raise BackendError(problem)
        if bundle.precision == INT8 and self.arithmetic().get("saturates"):
            self._core.set_property(_CPU, FLOAT_LAYERS)
        path = bundle.graph_path(graph, cpu=True)
        try:
            model = self._core.compile_model(self._core.read_model(path), self.provider, _HINTS)
        except Exception as error:
            raise translated(error, f"loading {graph}") from error
        bundle.graph_path(graph, cpu=True)  # still in place: so it was what was read
        return OpenVinoEngine(self._ov, graph, model, *bundle.tensors(graph))

    def buffer(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        return HostBuffer.zeros(shape, dtype)

    def arithmetic(self) -> dict[str, Any]:
        """See `Backend`: whether the CPU's 8-bit products saturate, which its name need not tell."""
        return {"saturates": saturates(self._ov)} if self.provider in (_CPU, "AUTO") else {}

    def describe(self) -> dict[str, Any]:
        """See `Backend`."""
        return {
            "backend": self.name,
            "openvino": self._ov.__version__,
            "device": self.provider,
            "threads": self._threads or machine().physical_cores,
        }

    def close(self) -> None:
        """See `Backend`."""


class OpenVinoEngine(Engine):
    """One compiled model."""

    def __init__(
        self, ov: Any, name: str, model: Any, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._ov, self._model = ov, model

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OpenVinoCall:
        if self._model is None:
            raise BackendError(f"the {self.name} engine is closed")
        return OpenVinoCall(self._ov, self, self._model.create_infer_request(), {**inputs, **outputs})

    def close(self) -> None:
        self._model = None


class OpenVinoCall(Call):
    """A request whose tensors are the buffers."""

    def __init__(self, ov: Any, engine: OpenVinoEngine, request: Any, buffers: Mapping[str, Buffer]) -> None:
        self._engine, self._request = engine, request
        self._lock = threading.Lock()
        self._tensors = []
        for name, buffer in buffers.items():
            assert isinstance(buffer, HostBuffer), name
            tensor = ov.Tensor(buffer.array, shared_memory=True)
            self._tensors.append(tensor)
            try:
                request.set_tensor(name, tensor)
            except Exception as error:
                raise translated(error, f"binding {name} of {engine.name}") from error

    def run(self) -> None:
        try:
            with self._lock:
                self._request.infer()
        except Exception as error:
            raise translated(error, f"running {self._engine.name}") from error


def translated(error: Exception, doing: str) -> BackendError:
    """The border: what OpenVINO throws, as one line of ours."""
    text = " ".join(line for line in str(error).split("\n") if line and not line.startswith("Exception from"))
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in _NO_MEMORY):
        return OutOfMemoryError(f"out of memory while {doing}; lower the batch size ({text[:200]})")
    return BackendError(f"OpenVINO failed while {doing}: {text[:400]}")
