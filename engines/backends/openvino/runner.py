"""A bundle's graphs in OpenVINO, as the scale loop's backend.

Requests read and write the loop's own buffers: a scale's new keys are written straight behind the cached ones, so
nothing of the past is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backends.base import Array, Backend, Buffer, Call, Engine
from engines.backends.onnxruntime.runner import HostBuffer
from engines.errors import BackendError

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle


class OpenVinoBackend(Backend):
    name = "openvino"

    def __init__(self, device: str = "CPU", threads: int | None = None, hint: str = "f32") -> None:
        import openvino

        self._ov, self.provider, self._threads, self._hint = openvino, device, threads, hint
        self._core = openvino.Core()

    def open(self, bundle: Bundle, graph: str) -> OpenVinoEngine:
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self._hint, "CPU_RUNTIME_CACHE_CAPACITY": "0"}
        if self._threads:
            options["INFERENCE_NUM_THREADS"] = self._threads
        path = bundle.path / bundle.graph_name(graph, cpu=False)
        model = self._core.compile_model(self._core.read_model(path), self.provider, options)
        return OpenVinoEngine(self, graph, model, *bundle.tensors(graph))

    def buffer(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "openvino": self._ov.__version__, "device": self.provider}

    def close(self) -> None:
        pass


class OpenVinoEngine(Engine):
    def __init__(self, backend: OpenVinoBackend, name: str, model: Any, inputs: Any, outputs: Any) -> None:
        self._backend, self.name, self._model, self.inputs, self.outputs = backend, name, model, inputs, outputs

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OpenVinoCall:
        return OpenVinoCall(self._backend._ov, self._model, inputs, outputs)

    def close(self) -> None:
        self._model = None


class OpenVinoCall(Call):
    def __init__(self, ov: Any, model: Any, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        self._request = model.create_infer_request()
        self._bound = dict(inputs), dict(outputs)
        for name, buffer in {**inputs, **outputs}.items():
            self._request.set_tensor(name, ov.Tensor(buffer.array, shared_memory=True))

    def run(self) -> None:
        self._request.infer()
