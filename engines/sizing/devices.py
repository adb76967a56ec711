"""Devices by name, from `engines/data/devices.json`: memory, bandwidth and dense peaks, each figure with its source.

A peak is SM count x rated boost clock x FLOP a clock and SM, as vendors state theirs. A card that clocks higher than
rated has a higher peak by as much. `cpu` is the machine at hand: its memory is known, its peaks are not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from engines.errors import UsageError
from engines.foreign import read_json
from engines.machine import machine
from engines.spec.choices import INT8, QUANTISED

CPU = "cpu"
CPU_PRECISIONS = ("fp32", INT8)  # ONNX Runtime computes the others in fp32 there
FILE = Path(__file__).parent.parent / "data" / "devices.json"
MIB = 2**20
SUGGESTED = 4  # names in the message about an unknown one


@dataclass(frozen=True)
class Source:
    """Where a figure comes from."""

    name: str
    says: str
    url: str | None
    date: str
    """Date of the page, or of the day when it was read."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device in one power mode."""

    name: str
    title: str
    mode: str | None = None
    """Power mode of a Jetson; None for other devices."""
    compute_capability: str = ""
    memory_bytes: int
    """Memory as the vendor states it."""
    reported_bytes: int
    """Memory as the operating system or the driver shows it."""
    system_bytes: int
    """What a headless operating system takes of the memory, where GPU and host share it; else 0."""
    shared_memory: bool
    bandwidth: float = 0.0
    """Bytes per second between memory and chip."""
    cache_bytes: int = 0
    """Size of the GPU's last-level cache."""
    peaks: Mapping[str, float] = field(default_factory=dict)
    """Dense FLOP or OP per second: fp32 (no TF32), fp16 and bf16 accumulated in FP32, fp16_fast in FP16, int8.
    Empty for the CPU at hand.
    """
    targets: tuple[str, ...]
    """Targets of `var-export build` that run on the device."""
    page: str | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Where each figure comes from; keys: units, clock, bandwidth, cache, memory, reported, rates 0 ..., system."""

    @property
    def usable_bytes(self) -> int:
        """Bytes of memory that are left for a program."""
        return self.reported_bytes - self.system_bytes

    @property
    def is_cpu(self) -> bool:
        """Whether this is the machine at hand, without a GPU."""
        return self.name == CPU

    def check(self, precision: str) -> None:
        """Raise `UsageError` where the device computes nothing in this precision."""
        if self.is_cpu and not self.supports(precision):
            raise UsageError(f"a CPU computes {precision} graphs in fp32: ask for --precision fp32, int8 or int4 there")
        if not self.supports(precision):
            raise UsageError(
                f"{self.title} has no {precision.upper()} tensor cores; ask for --precision fp16, or another device"
            )

    def peak(self, precision: str) -> float:
        """FLOP per second that no kernel exceeds. Raises `UsageError` where the device has no unit for the type.

        FP16 is taken with the faster accumulator: GeForce cards run twice as fast with an FP16 accumulator, and a
        runtime may choose it.
        """
        self.check(precision)
        return max(self.peaks[precision], self.peaks.get(f"{precision}_fast", 0.0))

    def supports(self, precision: str) -> bool:
        """Whether the device computes in this precision."""
        kind = INT8 if precision in QUANTISED else precision
        return kind in (CPU_PRECISIONS if self.is_cpu else self.peaks)

    def to_dict(self) -> dict[str, Any]:
        """The device as plain JSON types, every figure with its source."""
        document = asdict(self)
        named = {"bandwidth_bytes_per_s": document.pop("bandwidth"), "peak_flops": document.pop("peaks")}
        return document | named | {"usable_bytes": self.usable_bytes, "targets": list(self.targets)}


@cache
def devices() -> Mapping[str, Device]:
    """All devices by name, in the order of the file: Jetson, servers, GeForce."""
    data = read_json(FILE)
    sources = {name: Source(name, **entry) for name, entry in data["sources"].items()}
    return {
        entry["name"]: _device(entry, data["architectures"][entry["architecture"]], data["jetson_system"], sources)
        for entry in data["devices"]
    }


def find(name: str) -> Device:
    """The device of this name; case, spaces and underscores do not matter. Raises `UsageError` naming the nearest."""
    known = devices()
    wanted = "-".join(name.strip().lower().replace("_", " ").split())
    if wanted == CPU:
        return this_cpu()
    if wanted in known:
        return known[wanted]
    near = [key for key in known if wanted and key.startswith(wanted)]
    near = near or difflib.get_close_matches(wanted, known, SUGGESTED, 0.5)
    hint = f"did you mean {' or '.join(near[:SUGGESTED])}? " if near else ""
    raise UsageError(f"unknown device {name!r}; {hint}--list-devices shows all")


def this_cpu() -> Device:
    """The machine at hand. Raises `UsageError` where the system does not say how much memory it has."""
    here = machine()
    if not here.memory:
        raise UsageError(
            f"{here.system} does not say how much memory this machine has; estimates for --device cpu need it"
        )
    return Device(
        name=CPU,
        title=here.cpu,
        memory_bytes=here.memory,
        reported_bytes=here.memory,
        system_bytes=here.memory - (here.available or here.memory),
        shared_memory=True,
        targets=("onnxruntime",),
    )


def _device(
    entry: Mapping[str, Any], architecture: Mapping[str, Any], system: Mapping[str, Any], sources: Mapping[str, Source]
) -> Device:
    shared = entry["shared_memory"]
    clocks = {"fp32": entry["clock_mhz"]}
    tensor_clock = entry.get("tensor_clock_mhz", entry["clock_mhz"])
    peaks = {
        kind: entry["sm"] * clocks.get(kind, tensor_clock) * 1e6 * rate for kind, rate in architecture["rates"].items()
    }
    named = dict(entry["sources"]) | {f"rates {i}": source for i, source in enumerate(architecture["sources"])}
    if shared:
        named["system"] = system["source"]
    return Device(
        name=entry["name"],
        title=entry["title"],
        mode=entry.get("mode"),
        compute_capability=entry["compute_capability"],
        memory_bytes=entry["memory_mib"] * MIB,
        reported_bytes=entry["reported_mib"] * MIB,
        system_bytes=system["mib"] * MIB if shared else 0,
        shared_memory=shared,
        bandwidth=entry["bandwidth_gb_s"] * 1e9,
        cache_bytes=entry["cache_mib"] * MIB,
        peaks=peaks,
        targets=tuple(entry["targets"]),
        page=entry.get("page"),
        sources={figure: sources[source] for figure, source in named.items()},
    )
