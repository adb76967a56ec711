"""The GPU: whether what the check needs is here, and what the system tells of driver, clocks and power."""

from __future__ import annotations

import contextlib
import re
import subprocess
from typing import Any

from engines import backends
from engines.backends.cuda import Cuda
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError
from engines.machine import system_file
from engines.progress import Progress
from engines.spec.choices import ONNXRUNTIME
from var_export.gpu_check.cases import StepJob

FIELDS = (
    *("name", "driver_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu"),
    *("power.draw", "power.limit", "utilization.gpu", "memory.used", "memory.total"),
)
"""Of nvidia-smi; one that it does not know makes the whole query fail, so these are old ones."""
PATIENCE = 20  # seconds
WARMUP = 3  # runs: the first is direct, the second recorded as a CUDA graph, the third the first launch of that


def probe(job: StepJob, tell: Progress) -> dict[str, Any]:
    """Whether something that the check needs is here, and which version. Raises `BackendError` where it is not."""
    what = job.step.backend
    tell(f"looking for {what}")
    if what == "torch":
        return _probe_torch(job.device)
    if what == "gpu":
        with contextlib.closing(Cuda(job.device)) as cuda:
            return cuda.describe() | {"free_memory": cuda.free_memory()} | system()
    with backend(what, job.device) as found:
        return found.describe()


def _probe_torch(device: int) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise BackendError(f"PyTorch is not installed ({error})") from error
    version = f"PyTorch {torch.__version__}"
    if torch.version.cuda is None:
        raise BackendError(f"{version} was built without CUDA; install a build that has it, see https://pytorch.org")
    try:
        torch.zeros(1, device=f"cuda:{device}").add_(1).cpu()
    except Exception as error:  # RuntimeError, AssertionError and torch's own: whatever CUDA has to say
        raise BackendError(f"{version} (CUDA {torch.version.cuda}) does not run on GPU {device}: {error}") from error
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "gpu": torch.cuda.get_device_name(device),
    }


def backend(name: str, device: int) -> backends.Backend:
    """A backend by its name here, on the GPU and on nothing else. Raises `BackendError`."""
    return backends.create(name, provider="cuda" if name == ONNXRUNTIME else "cpu", device=device)


def open_pipeline(job: StepJob, *, max_batch: int) -> Pipeline:
    """The engines of a step, on the GPU and on nothing else."""
    assert job.folder is not None
    opened = Bundle.open(job.folder)
    return Pipeline(opened, backend(job.step.backend, job.device), form=job.step.form, max_batch=max_batch)


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU, with its units; empty where there is no nvidia-smi."""
    said = _run("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader")
    rows = [[part.strip() for part in line.split(",")] for line in said.splitlines()]
    return [dict(zip(FIELDS, row, strict=True)) for row in rows if len(row) == len(FIELDS)]


def system() -> dict[str, Any]:
    """Driver, GPUs, and of a Jetson its release and power mode."""
    found = gpus()
    return {
        "driver": found[0]["driver_version"] if found else _kernel_module(),
        "nvidia_smi": found,
        "jetson": _first_line(system_file("/etc/nv_tegra_release")),
        "power_mode": _first_line(_run("nvpmodel", "-q")),
    }


def _kernel_module() -> str | None:
    match = re.search(r"Kernel Module\s.*?(\d+\.\d+(\.\d+)?)", system_file("/proc/driver/nvidia/version"))
    return match[1] if match else None


def _first_line(text: str) -> str | None:
    return text.strip().partition("\n")[0] or None


def _run(*command: str) -> str:
    """What a command prints; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout
