"""A bundle's graphs in OpenVINO, as the scale loop's backend.

Requests read and write the loop's own buffers: a scale's new keys are written straight behind the cached ones, so
nothing of the past is copied.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.backends.base import Backend, Buffer, Call, Engine, check_threads
from engines.backends.host_buffer import HostBuffer, images_at_once
from engines.backends.openvino.arithmetic import FLOAT_LAYERS, saturates
from engines.backends.openvino.library import import_openvino, translated, version_of
from engines.backends.openvino.rewrite import rewrite
from engines.bundle.manifest import WEIGHTS
from engines.errors import BackendError
from engines.machine import machine
from engines.spec.choices import BF16, F32, INT4, OPENVINO, PRECISION_HINTS, PRECISIONS, QUANTISED
from engines.spec.contract import TensorInfo
from engines.spec.policy import LARGE_BLOCK
from engines.storage import cache_folder, kernel_folder, link_or_copy

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

_CPU, AUTO = "CPU", "AUTO"
# Kernels made of several operators (snippets) are kept by what they compute and not by all of its shapes: with more
# than one past length, a step's attention was wrong from the third scale on (2026.4.1, CPU with AVX2: logits off by 28
# where 2e-5 is right). Not to keep any kernel mends it too, and every call then makes all of its kernels anew.
_CPU_OPTIONS = {"SNIPPETS_MODE": "DISABLE"}


class OpenVinoBackend(Backend):
    """OpenVINO on one device."""

    name = OPENVINO

    def __init__(
        self, device: str = _CPU, threads: int | None = None, *, hint: str | None = None, module: Any = None
    ) -> None:
        """Args: device: as OpenVINO calls it, such as CPU, GPU or GPU.1; threads: of the CPU, all physical cores by
        default; hint: one of `engines.spec.choices.PRECISION_HINTS`; by default f32, and bf16 for what quantised
        bundles leave in floating point on a CPU that has it; module: for tests.

        Raises `BackendError` where OpenVINO or the device is missing.
        """
        check_threads(threads)
        if hint not in (None, *PRECISION_HINTS):
            raise BackendError(f"a precision hint is one of {', '.join(PRECISION_HINTS)}, got {hint!r:.60}")
        if hint is not None and device == AUTO:
            raise BackendError(f"{AUTO} does not say what it computes in: name the device for --precision-hint {hint}")
        self.hint = hint
        if device.startswith("NPU"):
            raise BackendError("an NPU takes graphs of fixed shapes alone, and those of a bundle vary: take CPU or GPU")
        self._ov = module or import_openvino()
        self.provider, self._threads = device, threads
        self._floats, self._taken = False, hint or F32
        self._unlinked: dict[str, tempfile.TemporaryDirectory[str]] = {}
        try:
            self._core = self._ov.Core()
            self._available = list(self._core.available_devices)
            self._has_bf16 = BF16.upper() in self._core.get_property(_CPU, "OPTIMIZATION_CAPABILITIES")
            # Of the CPU, which computes for AUTO too.
            own = _CPU_OPTIONS | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads})
            self._core.set_property(_CPU, own)
        except Exception as error:
            raise translated(error, "starting") from error
        if device not in (*self._available, AUTO, *(each.partition(".")[0] for each in self._available)):
            here = ", ".join(self._available)
            raise BackendError(f"OpenVINO {version_of(self._ov)} finds no {device} here; it has {here}")

    def lacks(self, bundle: Bundle) -> str | None:
        """See `Backend`: graphs that were made for TensorRT."""
        if not bundle.for_gpus:
            return None
        return f"{bundle.path} is for TensorRT: build one with --precision fp16, fp32, int8 or int4 for OpenVINO"

    def open(self, bundle: Bundle, graph: str) -> OpenVinoEngine:
        problem = self.lacks(bundle)
        if problem is not None:
            raise BackendError(problem)
        if bundle.precision in QUANTISED and not bundle.manifest.reduced_range and self.arithmetic().get("saturates"):
            self._core.set_property(_CPU, FLOAT_LAYERS)
            self._floats = True
        path = bundle.graph_path(graph, cpu=True)
        # Feature maps are summed in float32 in every precision; what a code that wins by a hair decides is large.
        exact = ("accumulate", "encode") if self.hint is None else ("accumulate",)
        hint = F32 if graph in exact else self._hint_for(bundle)
        options = {"INFERENCE_PRECISION_HINT": hint, **self._cache(bundle, path.name)}
        if bundle.precision == INT4 and self.provider == _CPU:
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(LARGE_BLOCK)  # else its products are in floating point
        try:
            model = self._core.read_model(self._without_links(bundle, path))
            rewrite(self._ov, model, graph)
            model = self._core.compile_model(model, self.provider, options)
            taken = None if self.provider == AUTO else model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        except Exception as error:
            raise translated(error, f"loading {graph}") from error
        bundle.graph_path(graph, cpu=True)  # still in place: so it was what was read
        self._taken = self._hint_for(bundle)
        if taken not in (None, hint):
            raise BackendError(f"{hint} was asked for, but OpenVINO's {self.provider} computes in {taken} here")
        return OpenVinoEngine(self._ov, graph, model, *bundle.tensors(graph))

    def buffer(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        return HostBuffer.zeros(shape, dtype)

    def _hint_for(self, bundle: Bundle) -> str:
        """What a bundle's floating point is computed in.

        INT8's thresholds leave room for bfloat16: with the demo KL is 3.1e-3 in place of 2.3e-3, where 4.7e-3 is what
        its build allows. What floating-point bundles promise it would break.
        """
        if self.hint is not None:
            return self.hint
        narrow = bundle.precision in QUANTISED and self.provider == _CPU and self._has_bf16 and not self._floats
        return BF16 if narrow else F32

    def arithmetic(self) -> dict[str, Any]:
        """See `Backend`: whether the CPU's 8-bit products saturate, which its name need not tell."""
        return {"saturates": saturates(self._ov)} if self.provider in (_CPU, AUTO) else {}

    def judged_as(self, bundle: Bundle) -> str:
        """See `Backend`: half precision by its own thresholds, where the bundle promises more than the hint."""
        asked = {BF16: "bf16", "f16": "fp16"}.get(self._hint_for(bundle), bundle.precision)
        return max(asked, bundle.precision, key=PRECISIONS.index)

    def images_at_once(self, graph: str, image_size: int) -> int | None:
        """See `Backend`."""
        return images_at_once(graph, image_size) if self.provider == _CPU else None

    def remedy(self, bundle: Bundle) -> str:
        """See `Backend`."""
        hint = self._hint_for(bundle)
        if hint != F32:
            return f"{hint} is not enough for it here: take --precision-hint {F32}"
        return "OpenVINO computes something else here: take --backend onnxruntime, or another version of it"

    def describe(self) -> dict[str, Any]:
        """See `Backend`; of devices other than the CPU, what they are."""
        here: dict[str, Any] = {
            "backend": self.name,
            "openvino": version_of(self._ov),
            "provider": self.provider,
            "hint": self._taken,
        }
        if self._floats:
            here["int8"] = "computed in floating point"
        if self.provider in (_CPU, AUTO):
            here["threads"] = self._threads or machine().physical_cores
        chosen = self._available if self.provider == AUTO else [self.provider]
        if chosen != [_CPU]:
            here["gpu"] = ", ".join(str(self._core.get_property(device, "FULL_DEVICE_NAME")) for device in chosen)
        return here

    def _without_links(self, bundle: Bundle, graph: Path) -> Path:
        """A graph's file with its weights beside it: OpenVINO reads none that a link leads to, as in caches of hubs.

        Another name of the files, or a copy where they lie on another disk, stands in a folder as long as the backend.
        """
        if not bundle.held.linked(graph.name, WEIGHTS):
            return graph
        home = cache_folder()
        if home is not None:  # where links to the cache of a hub are likely to be possible
            with contextlib.suppress(OSError):
                home.mkdir(parents=True, exist_ok=True)
        if bundle.digest not in self._unlinked:
            place = home if home is not None and os.access(home, os.W_OK) else None
            self._unlinked[bundle.digest] = tempfile.TemporaryDirectory(dir=place, prefix="openvino-")
        folder = Path(self._unlinked[bundle.digest].name)
        for name in (graph.name, WEIGHTS):
            if not (folder / name).exists():
                link_or_copy(graph.parent / name, folder / name)
        return folder / graph.name

    def _cache(self, bundle: Bundle, file: str) -> dict[str, str]:
        """Where compiled models are kept, by the content that they were made of.

        For devices that take their time to compile. A CPU does not: of d16, a gigabyte would save 1 of 3 seconds.
        """
        if self.provider == _CPU:
            return {}
        files = [bundle.files[name].sha256 for name in (file, WEIGHTS)]
        folder = kernel_folder(self.name, [self._ov.__version__, *files])
        return {} if folder is None else {"CACHE_DIR": str(folder)}

    def close(self) -> None:
        """See `Backend`."""
        while self._unlinked:
            self._unlinked.popitem()[1].cleanup()


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
