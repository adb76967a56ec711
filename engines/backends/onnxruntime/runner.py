"""A bundle's graphs in ONNX Runtime, as the scale loop's backend.

Calls use I/O binding with raw addresses: a scale's new keys are written straight behind the cached
ones, so nothing of the past is copied. On a GPU the buffers lie there, copies and kernels are ordered by one stream,
and the host waits only where a result is read.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engines.backends.base import Backend, Buffer, Call, Engine, HostMark, Mark, check_threads
from engines.backends.cuda import Cuda
from engines.backends.device_buffer import DeviceBuffer, zeros
from engines.backends.host_buffer import HostBuffer, images_at_once
from engines.backends.onnxruntime import providers
from engines.backends.onnxruntime.arithmetic import exact_products, saturates
from engines.backends.onnxruntime.library import import_onnxruntime, translated
from engines.backends.onnxruntime.providers import PROVIDERS
from engines.backends.tensorrt.profiles import Range
from engines.errors import BackendError, VarExportError
from engines.machine import machine
from engines.spec.choices import OPENVINO
from engines.spec.contract import TensorInfo

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.bundle.held import HeldFiles

# ONNX Runtime gives back the page-locked memory of its own small copies after a run that waits for the GPU. None
# would: 10 KiB lost with each image (1.31.1, demo model). One in so many costs nothing that can be measured.
WAIT_EVERY = 32


class Session(Protocol):
    """What computes a graph: an `onnxruntime.InferenceSession`, or what stands before one."""

    def io_binding(self) -> Any:
        """An `onnxruntime.IOBinding` for `run_with_iobinding`."""

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """Run with the inputs and outputs of a binding."""


@dataclass(frozen=True)
class RunnableGraph:
    """What runs for one graph of a bundle: a session, and the inputs and outputs that the loop binds."""

    session: Session
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


Load = Callable[[Path], Session]
"""Makes a session of an ONNX file, with the options of the backend. Raises `BackendError`."""
Sessions = Callable[[str, Load], RunnableGraph]
"""Decides what runs for a graph, given its name and how to load a file: the seam for graphs that are not the bundle's.
Inputs and outputs must be those of the bundle's graph but for the type of the cache."""


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on one execution provider."""

    name = "onnxruntime"

    def __init__(
        self,
        provider: str = "cpu",
        threads: int | None = None,
        *,
        device: int = 0,
        sessions: Sessions | None = None,
        module: Any = None,
        cuda: Cuda | None = None,
    ) -> None:
        """Args: provider: a key of `PROVIDERS`; threads: of each operator on the CPU, all physical cores by default;
        device: as CUDA counts GPUs; sessions: what runs in place of a bundle's own graphs, whatever their precision, on
        providers that compile nothing; the others are for tests.

        Raises `BackendError` where the provider, a library that it needs or the GPU is missing.
        """
        if provider == OPENVINO:
            raise BackendError(f"{OPENVINO} is a backend of its own: --backend {OPENVINO}, without a provider")
        if provider not in PROVIDERS:
            raise BackendError(f"unknown provider {provider!r}; this version runs: {', '.join(PROVIDERS)}")
        check_threads(threads)
        if provider == "webgpu" and device:
            raise BackendError(f"WebGPU chooses the GPU itself, and knows no device {device}")
        self.provider = provider
        self.threads = threads
        self._sessions = sessions
        self._ort = module or import_onnxruntime()
        providers.check_provider(self._ort, provider)
        self.cuda: Cuda | None = None
        self._compiler: dict[str, str] = {}
        if provider == "cpu":
            providers.share_arena(self._ort)
        elif provider in providers.ON_CUDA:
            self.cuda = cuda or Cuda(device)
            try:
                self._compiler = providers.prepare(self._ort, provider)
            except BackendError:
                self.cuda.close()
                raise
        self._engines: weakref.WeakSet[OnnxRuntimeEngine] = weakref.WeakSet()
        self._nodes: dict[str, dict[str, int]] = {}

    def lacks(self, bundle: Bundle) -> str | None:
        """See `Backend`: convolutions in BF16, which ONNX Runtime takes from opset 22 on only, and S8 Q/DQ in FP16."""
        if not bundle.for_gpus:
            return None
        what = "BF16" if bundle.precision == "bf16" else f"{bundle.precision.upper()} and FP16 for TensorRT"
        return (
            f"{bundle.path} is in {what}, which ONNX Runtime cannot run: build TensorRT plans with var-export "
            f"build {bundle.path} --target tensorrt, or a bundle with --precision fp16 or fp32"
        )

    def images_at_once(self, graph: str, image_size: int) -> int | None:
        """See `Backend`."""
        return images_at_once(graph, image_size) if self.provider == "cpu" else None

    def remedy(self, bundle: Bundle) -> str:
        """See `Backend`."""
        if bundle.precision == "fp32":
            return "This ONNX Runtime computes wrongly here: take another version of it"
        return f"The arithmetic of {bundle.precision} is another here: take a bundle in fp32"

    def open(self, bundle: Bundle, graph: str) -> OnnxRuntimeEngine:
        if self._sessions is not None:
            runnable, shapes = self._sessions(graph, lambda file: self._load(graph, file, {})), {}
        else:
            problem = self.lacks(bundle)
            if problem is not None:
                raise BackendError(problem)
            shapes = providers.shape_ranges(self.provider, bundle, graph)
            engine: dict[str, str] = {}
            if self.cuda is not None:
                key = {"onnxruntime": self._ort.__version__, **self._compiler, **self.cuda.describe()}
                engine = providers.engine_options(self.provider, bundle, graph, shapes, key)
            path = bundle.path / bundle.graph_name(graph, cpu=self.provider == "cpu")
            loaded = self._load(graph, path, engine, bundle.held, exact=not bundle.manifest.reduced_range)
            runnable = RunnableGraph(loaded, *bundle.tensors(graph))
        opened = OnnxRuntimeEngine(self, graph, runnable, shapes)
        self._engines.add(opened)
        return opened

    def _load(
        self, graph: str, path: Path, engine: Mapping[str, str], held: HeldFiles | None = None, *, exact: bool = True
    ) -> Any:
        """A session of a file that computes on the provider.

        Args: engine: options that follow from the graph; held: the bundle's files, where the file is one of them;
        exact: take exact kernels for 8-bit products where the usual ones saturate.
        """
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        options.log_severity_level = 4  # what goes wrong is raised; once is enough
        if self.provider == "cpu":
            providers.save_memory(options)
            if exact:
                exact_products(self._ort, options)
        else:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        registered = providers.session_providers(self.provider, self.cuda, engine)
        with self.held():
            session = providers.open_verified(self._ort, path, held, options, registered, self.provider)
            nodes = providers.check_session(self._ort, session, path, self.provider, self.cuda)
        if nodes:
            self._nodes[graph] = nodes
        return session

    def buffer(self, shape: tuple[int, ...], dtype: str) -> HostBuffer | DeviceBuffer:
        if self.cuda is not None:
            return zeros(self.cuda, shape, dtype)
        return HostBuffer.zeros(shape, dtype)

    def mark(self) -> Mark:
        """See `Backend`: on a GPU an event, since calls return before their work is done."""
        return HostMark() if self.cuda is None else self.cuda.mark()

    def held(self) -> contextlib.AbstractContextManager[None]:
        """What a thread needs to use a session: nothing on the CPU; the GPU for itself, since all share a stream."""
        return contextlib.nullcontext() if self.cuda is None else self.cuda.held()

    def arithmetic(self) -> dict[str, Any]:
        """See `Backend`: whether the CPU's 8-bit products saturate, which its name need not tell."""
        return {"saturates": saturates(self._ort)} if self.provider == "cpu" else {}

    def run_options(self, *, wait: bool) -> Any:
        """Of a run that returns when the GPU is done, or has been given the work; `Buffer.read` waits for that."""
        options = self._ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "0" if wait else "1")
        return options

    def close(self) -> None:
        """See `Backend`: on a GPU frees every buffer too."""
        if self.provider == "cpu":
            providers.share_arena(self._ort)  # takes the place of the old one, which goes with its last session
        if self.cuda is not None:
            for engine in list(self._engines):
                engine.close()
            self.cuda.close()

    def describe(self) -> dict[str, Any]:
        """See `Backend`; on a GPU also how many nodes of each loaded graph every provider runs."""
        here = {
            "backend": self.name,
            "provider": PROVIDERS[self.provider],
            "onnxruntime": self._ort.__version__,
        }
        if self._sessions is not None:
            here["graphs"] = "changed"  # no figure of theirs is one of the bundle
        if self.provider == "cpu":
            return here | {"threads": self.threads or machine().physical_cores}
        device = providers.describe_plugin(self._ort, self.provider) if self.cuda is None else self.cuda.describe()
        return here | self._compiler | device | {"nodes": self._nodes}


class OnnxRuntimeEngine(Engine):
    """One session."""

    def __init__(
        self,
        backend: OnnxRuntimeBackend,
        name: str,
        runnable: RunnableGraph,
        shapes: Mapping[str, Range],
    ) -> None:
        """Args: shapes: what a compiling provider built the graph for, by input; empty where any shape runs."""
        self.name, self.inputs, self.outputs = name, runnable.inputs, runnable.outputs
        self._backend = backend
        self._session: Session | None = runnable.session
        self._runs = itertools.count(1)
        self._run_options = backend.run_options(wait=backend.cuda is None), backend.run_options(wait=True)
        self._calls: weakref.WeakSet[OnnxRuntimeCall] = weakref.WeakSet()
        self._lock = threading.RLock()  # of binding and closing, which may meet
        self._limits = {
            dim: (shapes[info.name][0][axis], shapes[info.name][2][axis])
            for info in runnable.inputs
            if info.name in shapes
            for axis, dim in enumerate(info.shape)
            if dim in ("B", "N")
        }

    @property
    def max_images(self) -> int | None:
        return self._limits["B"][1] if "B" in self._limits else None

    def shape_for(self, images: int, rows: int) -> tuple[int, int]:
        wanted = {"B": images, "N": rows}
        for dim, (least, most) in self._limits.items():
            if wanted[dim] > most:
                what = "images" if dim == "B" else "rows"
                raise BackendError(
                    f"{wanted[dim]} {what} are more than provider {self._backend.provider!r} builds the {self.name} "
                    f"graph for ({most}); lower the batch size"
                )
            wanted[dim] = max(wanted[dim], least)
        return wanted["B"], wanted["N"]

    def run(self, session: Session, binding: Any) -> None:
        """Start a run of a call's binding. Raises `BackendError`, `OutOfMemoryError`."""
        started, finished = self._run_options
        try:
            session.run_with_iobinding(binding, started if next(self._runs) % WAIT_EVERY else finished)
        except VarExportError:  # of what stands before a session
            raise
        except Exception as error:
            why = providers.webgpu_error if self._backend.provider == "webgpu" else translated
            raise why(error, f"running {self.name}") from error

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> OnnxRuntimeCall:
        with self._lock:
            if self._session is None:
                raise BackendError(f"the {self.name} engine is closed")
            call = OnnxRuntimeCall(self._backend, self, self._session, inputs, outputs)
            self._calls.add(call)
        return call

    def close(self) -> None:
        """See `Engine`: its calls end with it."""
        with self._lock:
            if self._session is None:
                return
            with self._backend.held():
                if self._backend.cuda is not None:
                    self._backend.cuda.synchronize()
                for call in list(self._calls):
                    call.close()
                self._session = None


class OnnxRuntimeCall(Call):
    """A session's I/O binding, filled once; before each run again where buffers on the host are copied by binding."""

    def __init__(
        self,
        backend: OnnxRuntimeBackend,
        engine: OnnxRuntimeEngine,
        session: Session,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
    ) -> None:
        self._backend, self._engine = backend, engine
        self._copies = backend.provider != "cpu" and backend.cuda is None
        with backend.held():
            binding = session.io_binding()
            self._fill(binding, inputs, outputs)
        # The binding holds addresses only: the buffers stay for as long as a run may use them.
        self._bound: tuple[Any, Any, Any] | None = session, binding, (dict(inputs), dict(outputs))

    def _fill(self, binding: Any, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        cuda = self._backend.cuda
        place = ("cpu", 0) if cuda is None else ("cuda", cuda.ordinal)
        for tensors, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for tensor, buffer in tensors.items():
                assert isinstance(buffer, HostBuffer | DeviceBuffer), tensor
                try:
                    bind(tensor, *place, buffer.dtype, buffer.shape, buffer.address)
                except Exception as error:
                    raise translated(error, f"binding {tensor} of {self._engine.name}") from error

    def run(self) -> None:
        with self._backend.held():
            bound = self._bound
            if bound is None:
                raise BackendError(f"the {self._engine.name} engine is closed")
            if self._copies:
                self._fill(bound[1], bound[2][0], {})
            self._engine.run(*bound[:2])

    def close(self) -> None:
        """Let go of session and buffers; a run of another thread holds on to them until it ends."""
        self._bound = None
