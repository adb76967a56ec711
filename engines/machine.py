"""The machine that a figure was taken on: no figure is reported without it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What decides speed on a CPU."""

    cpu: str
    cores: int
    """Logical cores that this process may use."""
    physical_cores: int
    """Physical ones among them: what ONNX Runtime and PyTorch use by default."""
    quota: float | None
    """CPUs' worth of time that a container grants; None where there is no limit."""
    memory: int
    """Bytes."""
    available: int
    """Bytes free for a new process; 0 where the system does not say."""
    system: str
    python: str
    load: float
    """Processes that ran in the last minute, this one among them; a timing on a busy machine says little."""

    def __str__(self) -> str:
        cores = f"{self.physical_cores} physical of {self.cores} logical cores"
        if self.physical_cores == self.cores:
            cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        quota = "" if self.quota is None else f", limited to {self.quota:g} CPUs"
        return f"{self.cpu}, {cores}{quota}, {self.memory / 2**30:.0f} GiB, {self.system}"


def machine() -> Machine:
    """This machine, from what Linux says about it; plainer elsewhere."""
    processors = _processors(system_file("/proc/cpuinfo"))
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", system_file("/proc/meminfo"), re.MULTILINE))
    places = {
        (p.get("physical id"), p.get("core id")) for n, p in processors.items() if n in allowed and "core id" in p
    }
    return Machine(
        cpu=_cpu_name(processors),
        cores=len(allowed),
        physical_cores=len(places) or len(allowed),
        quota=_quota(system_file("/sys/fs/cgroup/cpu.max")),
        memory=int(memory.get("MemTotal", 0)) * 1024,
        available=int(memory.get("MemAvailable", 0)) * 1024,
        system=system(),
        python=platform.python_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def system() -> str:
    """Operating system and architecture, as `Linux x86_64`."""
    return f"{platform.system()} {platform.machine()}"


def _processors(cpuinfo: str) -> dict[int, dict[str, str]]:
    """`/proc/cpuinfo`, by processor number."""
    found: dict[int, dict[str, str]] = {}
    for block in cpuinfo.split("\n\n"):
        fields = dict(re.findall(r"^([\w ]+?)\s*: *(.*)$", block, re.MULTILINE))
        if fields.get("processor", "").isdigit():
            found[int(fields["processor"])] = fields
    return found


def _cpu_name(processors: dict[int, dict[str, str]]) -> str:
    """The model; a Jetson's cores have none, but the board has."""
    for processor in processors.values():
        if "model name" in processor:
            return " ".join(processor["model name"].split())
    board = system_file("/proc/device-tree/model").strip("\0\n ")
    return board or platform.processor() or platform.machine() or "unknown CPU"


def _quota(cpu_max: str) -> float | None:
    """CPUs that cgroup v2 grants: `QUOTA PERIOD`, or `max PERIOD`."""
    match = re.match(r"(\d+) (\d+)", cpu_max)
    return int(match[1]) / int(match[2]) if match and int(match[2]) else None


def system_file(path: str) -> str:
    """The text of a file of `/proc`, `/sys` or `/etc`; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
