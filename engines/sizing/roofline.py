"""Bytes and FLOPs of one graph call, and the least time a device needs for them.

A call takes at least as long as the slowest of three: moving its bytes at the full bandwidth, its low-precision
products at the peak of the tensor cores (INT8 and FP16 ones in turns: the cores are the same), its float32 ones at the
peak of the other cores (Williams, Waterman and Patterson, "Roofline", CACM 2009). Bytes are those that must cross the
memory bus: weights, the KV cache, inputs and outputs of the call. Activations inside a call may stay on the chip, so
they are not among them; and what the last-level cache can hold when a call begins or ends is taken off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.sizing import cost
from engines.sizing.cost import BYTES, next_tokens
from engines.sizing.decoder import decode_norm_bytes
from engines.sizing.devices import Device
from engines.sizing.workload import Workload
from engines.spec import contract
from engines.spec.config import ModelConfig
from engines.spec.policy import PER_CLASS

MEMORY, COMPUTE = "memory", "compute"


@dataclass(frozen=True)
class Work:
    """What one graph call does at least: operations, and bytes that cross the memory bus."""

    name: str
    flops: Mapping[str, int]
    """Operations by the type that they are computed in."""
    read: Mapping[str, int]
    """Bytes that come from memory, by what they are."""
    written: Mapping[str, int]


@dataclass(frozen=True)
class Bound:
    """The least seconds that a device needs for some work."""

    work: Work
    memory_seconds: float
    compute_seconds: Mapping[str, float]
    """Seconds by type. Tensor cores and other cores work side by side, the types of the tensor cores in turns."""

    @property
    def seconds(self) -> float:
        """The least seconds: the slowest of memory, tensor cores and other cores."""
        others = self.compute_seconds.get("fp32", 0.0)
        tensor_cores = sum(time for dtype, time in self.compute_seconds.items() if dtype != "fp32")
        return max(self.memory_seconds, others, tensor_cores)

    @property
    def bound_by(self) -> str:
        """`memory` or `compute`, whichever takes longer."""
        return MEMORY if self.memory_seconds >= self.seconds else COMPUTE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.work.name,
            "seconds": self.seconds,
            "bound_by": self.bound_by,
            "memory_seconds": self.memory_seconds,
            "compute_seconds": dict(self.compute_seconds),
            "flops": dict(self.work.flops),
            "read_bytes": dict(self.work.read),
            "written_bytes": dict(self.work.written),
        }


def bound(work: Work, device: Device) -> Bound:
    """The least time of `work` on `device`. Raises `UsageError` where the device lacks a type."""
    kept = device.cache_bytes
    moved = max(0, sum(work.read.values()) - kept) + max(0, sum(work.written.values()) - kept)
    compute = {dtype: flops / device.peak(dtype) for dtype, flops in work.flops.items()}
    return Bound(work, moved / device.bandwidth, compute)


def slower_side(bounds: Iterable[Bound]) -> str:
    """`memory` or `compute`: what binds the larger part of the time of calls that follow one another."""
    seconds = {MEMORY: 0.0, COMPUTE: 0.0}
    for each in bounds:
        seconds[each.bound_by] += each.seconds
    return max(seconds, key=lambda side: seconds[side])


def tensor_bytes(infos: Iterable[contract.TensorInfo], sizes: Mapping[str, int]) -> int:
    """Bytes of graph tensors whose varying dimensions have these `sizes`."""
    return sum(
        math.prod(sizes[dim] if isinstance(dim, str) else dim for dim in info.shape)
        * contract.storage(info.dtype).itemsize
        for info in infos
    )


def cache_bytes(config: ModelConfig, precision: str, tokens: int, rows: int) -> int:
    """Bytes of the keys and values of all blocks, for some tokens in some rows."""
    return 2 * config.transformer.depth * tokens * rows * config.transformer.width * BYTES[precision]


def modulation_bytes(config: ModelConfig, rows: int) -> int:
    """Bytes of the AdaLN vectors of all blocks and of the head, for some rows."""
    sizes = config.transformer
    return rows * (6 * sizes.depth + 2) * sizes.width * BYTES["fp32"]


def step_work(load: Workload, scale: int) -> Work:
    """One scale: a call of `step`, or that part of the fused call."""
    config, operations = load.config, load.step_operations(scale)
    length, cached = config.scale_lengths[scale], config.scale_offsets[scale]
    read = {"weights": cost.total_weights(operations), "cache": cache_bytes(config, load.high, cached, load.rows)}
    written = {"cache": cache_bytes(config, load.high, length, load.rows)}
    last = scale == config.num_scales - 1
    if load.form == "fused":
        read["modulation"] = modulation_bytes(config, load.rows)
        if last:  # nobody reads the last keys and values
            written = {}
    else:
        following = next_tokens(config, scale, load.form)
        sizes = {"B": load.images, "N": load.rows, "L": length, "M": following, "P": cached}
        # But for keys and values, of one type in every precision; the operations count the matrices.
        inputs, outputs = contract.resolve(contract.STEP, config, "fp32", smooth=load.smooth)
        apart = re.compile("past_|new_|(up|down)$")
        read["inputs"], written["outputs"] = (
            tensor_bytes([info for info in infos if not apart.match(info.name)], sizes) for infos in (inputs, outputs)
        )
        if last:  # all blocks write theirs to one place (`engines/draw/workspace.py`)
            written["cache"] //= config.transformer.depth
    return Work(f"scale {scale}", cost.total_flops(operations), read, written)


def cond_work(load: Workload) -> Work:
    """The conditioning of one label per row, as the fused graph does it in every call."""
    operations = load.cond_operations(load.rows)
    tables = [op for op in operations if op.weight is not None and op.weight.way == PER_CLASS]
    read = cost.total_weights([op for op in operations if op not in tables])
    read += sum(load.rows * op.weight.outside * op.count for op in tables if op.weight is not None)  # a row of each
    return Work("cond", cost.total_flops(operations), {"weights": read}, {})


def decode_work(load: Workload) -> Work:
    """A call of `decode` for all images."""
    operations = load.decode_operations()
    weights = cost.total_weights(operations) + decode_norm_bytes(load.config)
    inputs, outputs = contract.resolve(contract.DECODE, load.config, "fp32")
    sizes = {"B": load.images}
    return Work(
        "decode",
        cost.total_flops(operations),
        {"weights": weights, "inputs": tensor_bytes(inputs, sizes)},
        {"outputs": tensor_bytes(outputs, sizes)},
    )
