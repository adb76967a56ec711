"""What is installed, what can be done with it, and what to install for the rest: `var-export doctor`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.errors import BackendError, BundleError, VarExportError
from engines.host.capability import RUN_ON_GPU, Capability, through_openvino, through_webgpu
from engines.machine import Machine, machine
from engines.packages import install_command

PROJECT = "var-export"
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "onnx",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda-bindings",
)
RUN_ON_CPU = "run bundles on the CPU"
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # both fill one folder, so only one of them may be installed


@dataclass(frozen=True)
class DemoState:
    """Whether the embedded demo bundle is there and whole, and what is wrong with it."""

    path: Path
    present: bool
    verified: bool
    problem: str | None


@dataclass(frozen=True)
class SelfTest:
    """One demo image, drawn and held against its golden run."""

    passed: bool
    seconds: float
    failures: tuple[str, ...]


def installed() -> dict[str, str | None]:
    """Version of each of `PACKAGES`; None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def providers() -> tuple[tuple[str, ...], str | None]:
    """The providers of the installed ONNX Runtime, or none and the reason."""
    from engines.backends.onnxruntime import import_onnxruntime

    try:
        return tuple(import_onnxruntime().get_available_providers()), None
    except BackendError as error:
        return (), str(error.__cause__ or error)


def arithmetic() -> str:
    """How this processor multiplies 8-bit integers, which INT8 bundles consist of."""
    from engines.backends.onnxruntime import import_onnxruntime
    from engines.backends.onnxruntime.arithmetic import saturates

    if saturates(import_onnxruntime()):
        return (
            "8-bit products saturate here by default: INT8 takes ONNX Runtime's exact kernels, which are slower "
            "(a bundle built with --reduce-range needs none)"
        )
    return "8-bit products are exact"


def gpu() -> tuple[str | None, str]:
    """The GPU that the backends use by default; or None, and why there is none."""
    from engines.backends.cuda import Cuda

    try:
        cuda = Cuda()
    except BackendError as error:
        return None, str(error)
    found = f"{cuda.name} (compute capability {cuda.compute_capability}, CUDA {cuda.version})"
    cuda.close()
    return found, ""


def capabilities(versions: dict[str, str | None], available: Iterable[str], problem: str | None) -> list[Capability]:
    """What can be done here; `available` and `problem` come from `providers`."""
    from engines.backends.onnxruntime import PROVIDERS

    available = tuple(available)
    on_cpu = PROVIDERS["cpu"] in available
    runtime = next((f"{name} {versions[name]}" for name in RUNTIMES if versions.get(name)), "ONNX Runtime")
    device = (
        _Gpu(*gpu())
        if versions.get("cuda-bindings")
        else _Gpu(None, "cuda-bindings is not installed", install_command("gpu"))
    )
    openvino = through_openvino(versions)
    missing = problem or f"{runtime} has no {PROVIDERS['cpu']}"
    return [
        Capability(RUN_ON_CPU, True, runtime if on_cpu else openvino.reason)
        if on_cpu or openvino.usable
        else Capability(RUN_ON_CPU, False, missing, install_command("cpu")),
        _extra("build bundles", "export", versions, fallback=("torch", "onnx", "onnxscript", "safetensors")),
        _extra("read checkpoints from hf://", "hub", versions, fallback=("huggingface_hub",)),
        _extra("write pages and charts", "report", versions, fallback=("matplotlib", "jinja2")),
        openvino,
        _onnxruntime_gpu(runtime, available, problem, device),
        *(_tensorrt(name, device) for name in ("tensorrt", "tensorrt-rtx")),
        through_webgpu(available),
    ]


def warnings(versions: dict[str, str | None], machine: Machine) -> list[str]:
    """What works, but not as well as it could; each with its fix."""
    found = []
    if all(versions.get(name) for name in RUNTIMES):
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other: "
            f"pip uninstall {' '.join(RUNTIMES)}, then install one of them"
        )
    if machine.quota is not None and machine.quota < machine.physical_cores:
        threads = max(1, int(machine.quota))
        found.append(
            f"this container grants {machine.quota:g} CPUs of {machine.physical_cores}, "
            f"and ONNX Runtime starts a thread for each core: pass --threads {threads}"
        )
    return found


def demo_state(path: Path) -> DemoState:
    """Look for the embedded demo bundle and verify its files."""
    if not (path / MANIFEST).is_file():
        return DemoState(path, False, False, "not part of this installation; make one with: var-export build")
    try:
        Bundle.open(path)
    except BundleError as error:
        return DemoState(path, True, False, str(error))
    return DemoState(path, True, True, None)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found here without running anything."""

    machine: Machine
    packages: dict[str, str | None]
    """Versions, None where a package is not installed."""
    providers: tuple[str, ...]
    """What ONNX Runtime can compute on, by its own names."""
    capabilities: list[Capability]
    arithmetic: str | None
    """What a probe of ONNX Runtime's integer kernels found; None where it is not installed."""
    warnings: list[str]
    demo: DemoState

    @property
    def can_draw(self) -> bool:
        """Whether a demo image can be drawn, to see that it works."""
        return self.demo.verified and any(c.usable for c in self.capabilities if c.what == RUN_ON_CPU)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain JSON types."""
        document = asdict(self) | {"providers": list(self.providers)}
        document["demo"]["path"] = str(self.demo.path)
        return document


def diagnose(demo: Path) -> Diagnosis:
    """Look at this machine, at what is installed, and at the demo bundle at `demo`."""
    here, packages = machine(), installed()
    available, problem = providers()
    return Diagnosis(
        machine=here,
        packages=packages,
        providers=tuple(available),
        capabilities=capabilities(packages, available, problem),
        arithmetic=arithmetic() if available else None,
        warnings=warnings(packages, here),
        demo=demo_state(demo),
    )


def self_test(path: Path, *, threads: int | None = None) -> SelfTest:
    """Draw the first golden image of a stepwise bundle again, and hold every stage against the golden run."""
    from engines.draw.pipeline import Pipeline
    from engines.fidelity.checks import verify

    start = time.perf_counter()
    failures: tuple[str, ...]
    try:
        with Pipeline.load(path, threads=threads, form="stepwise", max_batch=1) as pipeline:
            golden = {name: array[:1] for name, array in pipeline.bundle.golden.items()}
            failures = tuple(verify(pipeline, golden).failures)
    except VarExportError as error:
        failures = (str(error),)
    return SelfTest(not failures, time.perf_counter() - start, failures)


@dataclass(frozen=True)
class _Gpu:
    """The GPU that was found, or why there is none and which command helps where only a package is missing."""

    name: str | None
    problem: str
    fix: str | None = None

    @property
    def absent(self) -> bool:
        """Whether there is no GPU that CUDA can use; `problem` then says why."""
        return self.name is None and self.fix is None


def _onnxruntime_gpu(runtime: str, available: tuple[str, ...], problem: str | None, device: _Gpu) -> Capability:
    """Whether ONNX Runtime can use a GPU: its own providers for it, its libraries, and a GPU."""
    from engines.backends.onnxruntime import import_onnxruntime
    from engines.backends.onnxruntime.library import INSTALL_GPU, load_cuda_libraries
    from engines.backends.onnxruntime.providers import ON_CUDA, installed

    what = RUN_ON_GPU.format("ONNX Runtime")
    usable = [name for name in ON_CUDA if installed(name, available)]
    if device.absent:
        return Capability(what, False, device.problem)
    missing = [] if device.name else [(device.problem, device.fix)]
    if not usable:
        reason = problem or f"{runtime} has no provider for a GPU"
        missing.append((reason, install_command("gpu") if problem else INSTALL_GPU))
    else:
        try:
            load_cuda_libraries(import_onnxruntime())
        except BackendError as error:
            missing.append((str(error), None))
    return _lacking(what, missing) or Capability(what, True, f"{runtime} ({', '.join(usable)}), {device.name}")


def _tensorrt(name: str, device: _Gpu) -> Capability:
    """Whether plans of one of NVIDIA's two products can run here."""
    from engines.backends.tensorrt import library

    flavour = library.FLAVOURS[name]
    what = RUN_ON_GPU.format(flavour.title)
    if device.absent:
        return Capability(what, False, device.problem)
    missing = [] if device.name else [(device.problem, device.fix)]
    version = ""
    try:
        version = library.load(name).version
    except BackendError as error:
        missing.append((f"{flavour.title} is not installed ({error.__cause__})", flavour.install))
    return _lacking(what, missing) or Capability(what, True, f"{flavour.title} {version}, {device.name}")


def _lacking(what: str, missing: Sequence[tuple[str, str | None]]) -> Capability | None:
    """What cannot be done for all of these reasons, with the commands that help; None where there is no reason."""
    if not missing:
        return None
    fixes = dict.fromkeys(fix for _, fix in missing if fix)
    return Capability(what, False, ", ".join(reason for reason, _ in missing), ", then ".join(fixes) or None)


def _extra(what: str, extra: str, versions: dict[str, str | None], *, fallback: Iterable[str]) -> Capability:
    """A capability that an extra of this project brings, with the lowest versions from its metadata."""
    needed = _requirements(extra) or dict.fromkeys(fallback, "0")
    missing = []
    for name, lowest in needed.items():
        version = versions.get(name) or _version(name)
        if version is None:
            missing.append(f"{name} is not installed")
        elif _numbers(version) < _numbers(lowest):
            missing.append(f"{name} {version} is older than {lowest}")
    reason = ", ".join(missing or [f"{name} {versions.get(name) or _version(name)}" for name in needed])
    return Capability(what, not missing, reason, install_command(extra) if missing else None)


def _requirements(extra: str) -> dict[str, str]:
    """Names and lowest versions of an extra, as the installed project states them."""
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:  # run from a copied folder
        return {}
    found = {}
    for line in lines:
        match = re.match(rf"""([\w.-]+)>=([\w.]+)\s*;\s*extra\s*==\s*["']{extra}["']""", line)
        if match:
            found[match[1]] = match[2]
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version: `2.13.0+cpu` gives (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
