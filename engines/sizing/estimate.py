"""One workload on one device: does it fit, and what is the least time it takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engines.sizing.devices import Device
from engines.sizing.memory import NOT_COUNTED, Memory, memory
from engines.sizing.roofline import Bound, bound, cond_work, decode_work, slower_side, step_work
from engines.sizing.workload import MAX_BATCH, Workload
from engines.spec.choices import INT4, INT8, QUANTISED

_SMALLER = {
    "fp32": ("fp16", *QUANTISED),
    "fp16": QUANTISED,
    "bf16": QUANTISED,
    INT8: (INT4,),
}  # precisions that take less memory


@dataclass(frozen=True)
class Estimate:
    """A workload on a device."""

    workload: Workload
    device: Device

    @cached_property
    def memory(self) -> Memory:
        """Bytes that must be in memory at once."""
        return memory(self.workload)

    @property
    def usable_bytes(self) -> int:
        """Bytes of the device's memory that a program can use."""
        return self.device.usable_bytes

    @property
    def fits(self) -> bool:
        """Whether the bytes that are counted, with the allowance for the runtime, fit the device."""
        return self.memory.total <= self.usable_bytes

    @cached_property
    def largest_batch(self) -> int:
        """The largest number of images at once that fits; 0 where none does."""
        low, high = 0, MAX_BATCH
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits(images=middle):
                low = middle
            else:
                high = middle - 1
        return low

    @cached_property
    def remedies(self) -> list[str]:
        """Options of `var-export estimate` that make it fit, each by itself."""
        if self.fits:
            return []
        found = [f"--batch {self.largest_batch}"] if self.largest_batch else []
        if self.workload.guidance and self._fits(guidance=False):
            found.append("--no-guidance")
        smaller = _SMALLER.get(self.workload.precision, ())
        enough = [name for name in smaller if self._fits(precision=name, ways=None, level=None)]
        if INT8 in enough:  # then fewer bits are not needed
            enough = [name for name in enough if name != INT4]
        return found + [f"--precision {name}" for name in enough]

    def _fits(self, **changes: Any) -> bool:
        return memory(dataclasses.replace(self.workload, **changes)).total <= self.usable_bytes

    @cached_property
    def scales(self) -> list[Bound]:
        """The least time of each scale of the transformer."""
        load = self.workload
        return [bound(step_work(load, scale), self.device) for scale in range(load.config.num_scales)]

    @cached_property
    def cond(self) -> Bound:
        """The least time of the conditioning. Only the fused form repeats it: stepwise keeps its results per class."""
        return bound(cond_work(self.workload), self.device)

    @cached_property
    def decode(self) -> Bound | None:
        """The least time of the decoder; None where only tokens are wanted."""
        return None if self.workload.tokens_only else bound(decode_work(self.workload), self.device)

    @property
    def calls(self) -> list[Bound]:
        """The calls of each batch, in the order in which they follow one another."""
        first = [self.cond] if self.workload.form == "fused" else []
        last = [] if self.decode is None else [self.decode]
        return [*first, *self.scales, *last]

    @property
    def seconds(self) -> float:
        """The least seconds that one batch takes."""
        return sum(call.seconds for call in self.calls)

    @property
    def images_per_s(self) -> float:
        """The most images per second, one batch after another."""
        return self.workload.images / self.seconds

    @property
    def bound_by(self) -> str:
        """`memory` or `compute`: what binds the larger part of a batch's time."""
        return slower_side(self.calls)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the workload. No bound on a CPU, nor where the device lacks a unit for it."""
        supported = self.device.supports(self.workload.precision)
        timed = supported and not self.device.is_cpu
        return {
            "fits": self.fits and supported,
            "memory_bytes": self.memory.to_dict(),
            "usable_bytes": self.usable_bytes,
            "largest_batch": self.largest_batch,
            "remedies": self.remedies,
            "supported": supported,
            "bound_images_per_s": self.images_per_s if timed else None,
            "bound_seconds": self.seconds if timed else None,
            "bound_by": self.bound_by if timed else None,
            "scales": [call.to_dict() for call in self.scales] if timed else [],
            "decode": self.decode.to_dict() if timed and self.decode else None,
            "cond": self.cond.to_dict() if timed else None,
            "not_counted": list(NOT_COUNTED),
            "device": self.device.to_dict(),
        }
