"""One workload on one device: does it fit, and what is the least time it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engines.errors import UsageError
from engines.sizing.devices import Device
from engines.sizing.memory import NOT_COUNTED, Memory, memory
from engines.sizing.quantised import FLOATS, Quantisation, of_level
from engines.sizing.roofline import Bound, bound, cond_work, decode_work, slower_side, step_work
from engines.spec.choices import DEFAULT_LEVEL, DEFAULT_MAX_TOP_K, FORMS, HIGH_PRECISIONS, INT8, LEVELS, PRECISIONS
from engines.spec.config import ModelConfig

_SMALLER = {"fp32": ("fp16", "int8"), "fp16": ("int8",), "bf16": ("int8",)}  # precisions that take less memory
MAX_BATCH = 4096  # images that a traced graph accepts (`var_export/graphs/trace.py`)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to run: a model, a batch, and the choices that decide its memory and time."""

    config: ModelConfig
    precision: str = "fp16"
    form: str = "stepwise"
    images: int = 1
    guidance: bool = True
    max_top_k: int = DEFAULT_MAX_TOP_K
    smooth: bool = False
    """Whether the bundle was built with smoothing, whose buffers it then has."""
    tokens_only: bool = False
    """Leave the decoder out, as published throughputs often do."""
    level: int = DEFAULT_LEVEL
    """How much is quantised in INT8: a level of `engines.spec.policy`."""
    ways: Mapping[str, str] | None = None
    """How each layer is computed, where an INT8 bundle says so; None: the level decides."""
    target: str = "tensorrt"
    """Which form of INT8 is meant: that of `tensorrt` for GPUs, or that of `onnxruntime` for the CPU."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; estimates know {', '.join(PRECISIONS)}")
        if self.form not in FORMS:
            raise UsageError(f"unknown form {self.form!r}; choose {' or '.join(FORMS)}")
        if not 1 <= self.images <= MAX_BATCH:
            raise UsageError(f"the batch must be 1 to {MAX_BATCH} images, got {self.images}")
        if self.level not in LEVELS:
            raise UsageError(f"the level must be 1 to {LEVELS[-1]}, got {self.level}")
        if self.max_top_k < 1:
            raise UsageError(f"max_top_k must be 1 or more, got {self.max_top_k}")

    @property
    def rows(self) -> int:
        """Rows N of the transformer: two per image with guidance."""
        return 2 * self.images if self.guidance else self.images

    @property
    def high(self) -> str:
        """Precision of what is not quantised: all of it, except in INT8."""
        return HIGH_PRECISIONS[self.target] if self.precision == INT8 else self.precision

    @cached_property
    def quantisation(self) -> Quantisation:
        """Which layers are in INT8, and how they are computed."""
        if self.precision != INT8:
            return FLOATS
        if self.ways is not None:
            return Quantisation(self.target, self.ways)
        return of_level(self.config, self.target, self.level)

    def on(self, device: Device) -> Workload:
        """This workload in the form that runs on `device`. Raises `UsageError` where a bundle has another."""
        target = "onnxruntime" if device.is_cpu else "tensorrt"
        if self.ways is not None and target != self.target:
            where = "NVIDIA GPUs: leave out" if device.is_cpu else "the CPU: estimate it with"
            raise UsageError(f"{self.config.name} is an INT8 bundle for {where} --device cpu")
        return dataclasses.replace(self, target=target)

    def memory(self) -> Memory:
        """The bytes that the workload needs on its device."""
        return memory(
            self.config,
            self.high,
            quantisation=self.quantisation,
            on_gpu=self.target != "onnxruntime",
            images=self.images,
            rows=self.rows,
            max_top_k=self.max_top_k,
            form=self.form,
            smooth=self.smooth,
            tokens_only=self.tokens_only,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "model": self.config.name,
            "image_size": self.config.image_size,
            "precision": self.precision,
            "level": self.level if self.precision == INT8 and self.ways is None else None,
            "form": self.form,
            "batch": self.images,
            "guidance": self.guidance,
            "rows": self.rows,
            "max_top_k": self.max_top_k,
            "smooth": self.smooth,
            "tokens_only": self.tokens_only,
        }


@dataclass(frozen=True)
class Estimate:
    """A workload on a device."""

    workload: Workload
    device: Device

    @cached_property
    def memory(self) -> Memory:
        """Bytes that must be in memory at once."""
        return self.workload.memory()

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
        return found + [f"--precision {name}" for name in smaller if self._fits(precision=name)]

    def _fits(self, **changes: Any) -> bool:
        return dataclasses.replace(self.workload, **changes).memory().total <= self.usable_bytes

    @cached_property
    def scales(self) -> list[Bound]:
        """The least time of each scale of the transformer."""
        load = self.workload
        return [
            bound(
                step_work(
                    load.config,
                    load.high,
                    scale,
                    quantisation=load.quantisation,
                    images=load.images,
                    rows=load.rows,
                    max_top_k=load.max_top_k,
                    smooth=load.smooth,
                    form=load.form,
                ),
                self.device,
            )
            for scale in range(load.config.num_scales)
        ]

    @cached_property
    def cond(self) -> Bound:
        """The least time of the conditioning. Only the fused form repeats it: stepwise keeps its results per class."""
        load = self.workload
        return bound(cond_work(load.config, load.high, load.rows, load.quantisation), self.device)

    @cached_property
    def decode(self) -> Bound | None:
        """The least time of the decoder; None where only tokens are wanted."""
        load = self.workload
        if load.tokens_only:
            return None
        return bound(decode_work(load.config, load.high, load.images, load.quantisation), self.device)

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
        timed: dict[str, Any] = {
            "bound_images_per_s": None,
            "bound_seconds": None,
            "bound_by": None,
            "scales": [],
            "decode": None,
            "cond": None,
        }
        if supported and not self.device.is_cpu:
            timed = {
                "bound_images_per_s": self.images_per_s,
                "bound_seconds": self.seconds,
                "bound_by": self.bound_by,
                "scales": [call.to_dict() for call in self.scales],
                "decode": None if self.decode is None else self.decode.to_dict(),
                "cond": self.cond.to_dict(),
            }
        return {
            "fits": self.fits and supported,
            "memory_bytes": self.memory.to_dict(),
            "usable_bytes": self.usable_bytes,
            "largest_batch": self.largest_batch,
            "remedies": self.remedies,
            "supported": supported,
            **timed,
            "not_counted": list(NOT_COUNTED),
            "device": self.device.to_dict(),
        }
