"""What can be done with what is installed, and the command that fixes the rest."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

from engines.backends.onnxruntime import library as onnxruntime_library
from engines.backends.tensorrt import library as tensorrt_library
from engines.errors import BackendError
from engines.host import environment
from engines.machine import machine
from engines.packages import install_command

CPU = ("CPUExecutionProvider",)
FULL = {"onnxruntime": "1.25.0", "torch": "2.13.0+cpu", "onnx": "1.23.2", "onnxscript": "0.7", "safetensors": "0.8.0"}
EXPORT = [
    "torch>=2.9; extra == 'export'",
    'onnx>=1.19; extra == "export"',
    "numpy>=1.26",
    'huggingface_hub>=0.30; extra == "hub"',
]


@pytest.fixture(autouse=True)
def only_what_is_given(monkeypatch):
    monkeypatch.setattr(environment, "_version", lambda name: None)
    monkeypatch.setattr(environment.metadata, "requires", lambda name: EXPORT)
    monkeypatch.setattr(environment, "gpu", lambda: pytest.fail("a GPU is looked for without cuda-bindings"))
    monkeypatch.setattr(tensorrt_library, "load", not_installed)


def not_installed(name):
    raise BackendError(f"{name} is not installed; install it") from ImportError(f"No module named {name!r}")


def capability(what, versions, available=CPU, problem=None):
    found = environment.capabilities({**dict.fromkeys(environment.PACKAGES), **versions}, available, problem)
    return next(c for c in found if c.what == what)


def test_all_is_there():
    assert capability("build bundles", FULL) == environment.Capability(
        "build bundles", True, "torch 2.13.0+cpu, onnx 1.23.2", None
    )
    assert capability(environment.RUN_ON_CPU, FULL).usable


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"onnx": "1.23.2"}, "torch is not installed"),
        ({"torch": "2.8.1", "onnx": "1.23.2"}, "torch 2.8.1 is older than 2.9"),
        ({}, "torch is not installed, onnx is not installed"),
    ],
)
def test_what_is_missing_has_a_command(versions, reason):
    found = capability("build bundles", versions)
    assert (found.usable, found.reason, found.fix) == (False, reason, install_command("export"))


def test_an_extra_is_known_without_metadata(monkeypatch):
    def unknown(name):
        raise environment.metadata.PackageNotFoundError

    monkeypatch.setattr(environment.metadata, "requires", unknown)
    assert not capability("build bundles", {"torch": "2.13"}).usable
    assert capability("build bundles", FULL).usable


def test_no_runtime():
    found = capability(environment.RUN_ON_CPU, {}, (), "No module named 'onnxruntime'")
    assert found.reason == "No module named 'onnxruntime'"
    assert found.fix == install_command("cpu")


def test_openvino_alone_draws(monkeypatch):
    found = capability("run bundles through OpenVINO", {})
    assert (found.usable, found.reason, found.fix) == (
        False,
        "openvino is not installed",
        install_command("openvino"),
    )
    alone = {"openvino": "2026.4.1"}
    for what in ("run bundles through OpenVINO", environment.RUN_ON_CPU):
        found = capability(what, alone, (), "No module named 'onnxruntime'")
        assert (found.usable, found.fix) == (True, None)
        assert found.reason.startswith("openvino 2026.4.1 on CPU")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not capability(environment.RUN_ON_CPU, alone, (), "No module named 'onnxruntime'").usable


GPU = ("CUDAExecutionProvider", *CPU)
GPU_PACKAGES = {"onnxruntime-gpu": "1.31.1", "cuda-bindings": "13.5.0"}


@pytest.fixture
def card(monkeypatch):
    """A GPU, CUDA's libraries, and both TensorRTs."""
    monkeypatch.setattr(environment, "gpu", lambda: ("RTX 4090 (compute capability 8.9, CUDA 13.0)", ""))
    monkeypatch.setattr(onnxruntime_library, "load_cuda_libraries", lambda ort: None)
    monkeypatch.setattr(tensorrt_library, "load", lambda name: SimpleNamespace(version="10.13"))


def test_a_gpu_and_everything_for_it(card):
    found = capability("run on a GPU through ONNX Runtime", GPU_PACKAGES, GPU)
    assert (found.usable, found.fix) == (True, None)
    assert found.reason == "onnxruntime-gpu 1.31.1 (cuda), RTX 4090 (compute capability 8.9, CUDA 13.0)"
    for title in ("TensorRT", "TensorRT-RTX"):
        found = capability(f"run on a GPU through {title}", GPU_PACKAGES)
        assert (found.usable, found.fix) == (True, None)
        assert found.reason == f"{title} 10.13, RTX 4090 (compute capability 8.9, CUDA 13.0)"


ALL = ("ONNX Runtime", "TensorRT", "TensorRT-RTX")


@pytest.mark.parametrize("through", ALL)
def test_without_a_gpu_nothing_is_to_be_installed(through, card, monkeypatch):
    monkeypatch.setattr(environment, "gpu", lambda: (None, "no usable NVIDIA GPU or driver here"))
    found = capability(f"run on a GPU through {through}", GPU_PACKAGES, GPU)
    assert (found.usable, found.reason, found.fix) == (False, "no usable NVIDIA GPU or driver here", None)


@pytest.mark.parametrize("through", ALL)
def test_without_bindings_no_gpu_is_looked_for(through, monkeypatch):
    monkeypatch.setattr(tensorrt_library, "load", lambda name: SimpleNamespace(version="10.13"))
    found = capability(f"run on a GPU through {through}", {"onnxruntime-gpu": "1.31.1"}, GPU)
    assert (found.usable, found.reason) == (False, "cuda-bindings is not installed")
    assert found.fix == install_command("gpu")


@pytest.mark.parametrize(
    ("available", "problem", "reason", "fix"),
    [
        (CPU, None, "onnxruntime-gpu 1.31.1 has no provider for a GPU", "pip uninstall -y onnxruntime onnxruntime-gpu"),
        ((), "No module named 'onnxruntime'", "No module named 'onnxruntime'", install_command("gpu")),
    ],
)
def test_a_gpu_without_an_onnx_runtime_for_it(available, problem, reason, fix, card):
    found = capability("run on a GPU through ONNX Runtime", GPU_PACKAGES, available, problem)
    assert (found.usable, found.reason) == (False, reason)
    assert found.fix.startswith(fix)


def test_a_gpu_without_cuda_libraries(card, monkeypatch):
    def missing(ort):
        raise BackendError("cannot load libcublasLt.so.13; pip install it")

    monkeypatch.setattr(onnxruntime_library, "load_cuda_libraries", missing)
    found = capability("run on a GPU through ONNX Runtime", GPU_PACKAGES, GPU)
    assert (found.usable, found.reason) == (False, "cannot load libcublasLt.so.13; pip install it")


@pytest.mark.parametrize(("name", "title"), [("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX")])
def test_a_gpu_without_tensorrt(name, title, card, monkeypatch):
    monkeypatch.setattr(tensorrt_library, "load", not_installed)
    found = capability(f"run on a GPU through {title}", GPU_PACKAGES)
    assert (found.usable, found.reason) == (False, f"{title} is not installed (No module named {name!r})")
    assert found.fix == tensorrt_library.FLAVOURS[name].install


@pytest.mark.parametrize(("name", "title"), [("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX")])
def test_all_that_is_missing_is_said_at_once(name, title):
    """Who installs one package and asks again should not hear of the next."""
    found = capability(f"run on a GPU through {title}", {"onnxruntime": "1.32.0"})
    assert found.reason == f"cuda-bindings is not installed, {title} is not installed (No module named {name!r})"
    install = tensorrt_library.FLAVOURS[name].install
    assert found.fix == ", then ".join(dict.fromkeys([install_command("gpu"), install]))
    found = capability("run on a GPU through ONNX Runtime", {"onnxruntime": "1.32.0"})
    assert found.reason == "cuda-bindings is not installed, onnxruntime 1.32.0 has no provider for a GPU"
    assert found.fix.startswith(f"{install_command('gpu')}, then pip uninstall -y onnxruntime")


def test_the_processors_arithmetic_is_probed(monkeypatch):
    from engines.backends.onnxruntime import arithmetic

    monkeypatch.setattr(arithmetic, "saturates", lambda ort: False)
    assert environment.arithmetic() == "8-bit products are exact"
    monkeypatch.setattr(arithmetic, "saturates", lambda ort: True)
    assert environment.arithmetic().startswith("8-bit products saturate here by default")


def test_the_gpu_is_that_of_cuda(monkeypatch):
    import engines.backends.cuda
    from tests.emulation import HostCuda

    monkeypatch.undo()
    emulated = HostCuda()
    monkeypatch.setattr(engines.backends.cuda, "import_cuda_runtime", lambda: emulated)
    assert environment.gpu() == ("Emulated GPU (compute capability 8.6, CUDA 12.6)", "")
    assert emulated.leaks() == {}
    emulated.devices = 0
    name, problem = environment.gpu()
    assert name is None
    assert "nvidia-smi" in problem


def test_two_runtimes_are_one_too_many():
    both = {"onnxruntime": "1.25.0", "onnxruntime-gpu": "1.25.0"}
    (warning,) = environment.warnings(both, dataclasses.replace(machine(), quota=None))
    assert "pip uninstall onnxruntime onnxruntime-gpu" in warning
    assert environment.warnings(FULL, dataclasses.replace(machine(), quota=None)) == []


def test_a_container_with_less_than_its_cores():
    here = dataclasses.replace(machine(), quota=2.5, physical_cores=32)
    (warning,) = environment.warnings(FULL, here)
    assert "pass --threads 2" in warning


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("1.20", (1, 20)), ("2.9.0a0+git1", (2, 9, 0)), ("x", ())]
)
def test_versions_compare_by_number(version, numbers):
    assert environment._numbers(version) == numbers
