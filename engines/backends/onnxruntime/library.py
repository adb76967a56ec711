"""The module onnxruntime, the libraries that it needs for a GPU, and its words as errors of ours."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends.onnxruntime.arithmetic import exact_products
from engines.errors import BackendError, OutOfMemoryError
from engines.packages import install_command

INSTALL = f"install one with: {install_command('cpu')}"
INSTALL_GPU = f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_command('gpu')}"
# Of opset 20, 1.24 has no CUDA kernel for Equal, Pad, ReduceMax and Resize, 1.26 none for Equal and ReduceMax.
INSTALL_NEWER = 'pip install "onnxruntime-gpu>=1.27"'
INSTALL_CUDA = 'pip install "onnxruntime-gpu[cuda,cudnn]"'


@dataclass(frozen=True)
class Plugin:
    """A provider that comes as a package of its own."""

    module: str
    title: str
    extra: str | None = None
    """The extra of this project that installs it."""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return install_command(self.extra) if self.extra else f"pip install {self.module.replace('_', '-')}"


PLUGINS = {
    "nv_tensorrt_rtx": Plugin("onnxruntime_ep_nv_tensorrt_rtx", "TensorRT-RTX"),
    "webgpu": Plugin("onnxruntime_ep_webgpu", "WebGPU", "webgpu"),
}

NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
"""The variable that versions from 1.29 on read when their library is loaded. Without it they write a device id and a
queue of events, with names and paths of models, below HOME, look up the host that takes them, and warn where HOME
cannot be written. Versions without telemetry do not know it."""
CUDNN = "libcudnn.so.9"  # of every onnxruntime-gpu from 1.19 to 1.31

_NO_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "alloc_failed")
_SOURCE = re.compile(r"/\S+\.\w+:\d+ [^(\[]*\([^)]*\)(?: \[with [^\]]*\])? ?")  # file, line and signature in C++


def import_onnxruntime() -> Any:
    """The onnxruntime module, without its telemetry unless the process's environment already decides about that.

    The one place that imports it. Raises `BackendError` where none is installed.
    """
    os.environ.setdefault(*NO_TELEMETRY)
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"no ONNX Runtime is installed ({error}); {INSTALL}") from error
    return onnxruntime


def load_cuda_libraries(ort: Any) -> None:
    """Load cuBLAS, cuDNN and their like from where pip puts them, which no loader searches.

    Raises `BackendError` that names the library which is nowhere. ONNX Runtime itself would log four lines about
    cuBLAS and run on the CPU, and miss cuDNN at the first convolution.
    """
    if not ort.cuda_version:  # a build without CUDA, beside which a plugin brings its own
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    missing = re.search(r"Failed to load (\S+): (.*)", said.getvalue())
    problem = f"{Path(missing[1]).name} ({missing[2]})" if missing else ""
    try:
        ctypes.CDLL(CUDNN)
    except OSError as error:
        problem = problem or f"{CUDNN} ({error})"
    if problem:
        raise BackendError(
            f"ONNX Runtime {ort.__version__} is built for CUDA {ort.cuda_version} and cannot load {problem}; "
            f"install the CUDA libraries with: {INSTALL_CUDA}, or add their folder to LD_LIBRARY_PATH"
        )


def load_tensorrt() -> str | None:
    """Load TensorRT's libraries where pip put them; its version.

    None where it is no Python package: then the loader finds them, or ONNX Runtime will say what is missing.
    """
    try:
        module = importlib.import_module("tensorrt")
    except (ImportError, OSError):
        return None
    return None if module.__file__ is None else str(module.__version__)  # any folder of that name can be imported


def what_is_missing(ort: Any, provider: str) -> str:
    """Why the library of a provider cannot be loaded, as the loader says it; empty where that is not the trouble.

    To be asked after ONNX Runtime has tried itself: the libraries of providers do not survive being loaded before.
    """
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if library.is_file():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return f" ({error})"
    return ""


def plugin_devices(ort: Any, provider: str, name: str) -> list[Any]:
    """What a provider that is a plugin can use here; registers it on first use.

    `provider`: one of `PLUGINS`; `name`: as ONNX Runtime calls it. Raises `BackendError`.
    """

    def known() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == name]

    devices = known()
    if not devices:
        try:
            plugin = importlib.import_module(PLUGINS[provider].module)
            ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        except Exception as error:
            raise translated(error, f"loading the {PLUGINS[provider].title} plugin") from error
        devices = known()
    return devices


def cpu_session(model: Path | bytes, threads: int | None, doing: str) -> Any:
    """A session of a graph on the CPU with ONNX Runtime's defaults, for looking into graphs and timing them.

    `model`: a file, or a serialised graph that refers to none; `doing`: what for. Raises `BackendError`.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4
    exact_products(ort, options)
    try:
        return ort.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise translated(error, doing) from error


def translated(error: Exception, doing: str, why: str = "") -> BackendError:
    """The border: what ONNX Runtime throws, as one line of ours."""
    text = " ".join(_SOURCE.sub("", str(error)).split())
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in _NO_MEMORY):
        return OutOfMemoryError(
            f"out of memory while {doing}; lower the batch size, or close other programs that use it ({text[:200]})"
        )
    return BackendError(f"ONNX Runtime failed while {doing}: {text[:400]}{why}")
