"""What is to run, as everything that an estimate counts takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engines.errors import UsageError
from engines.sizing import cost
from engines.sizing.cost import Operation
from engines.sizing.decoder import decode_operations
from engines.sizing.devices import Device
from engines.sizing.quantised import FLOATS, Quantisation, layer_names
from engines.spec.choices import DEFAULT_MAX_TOP_K, FORMS, HIGH_PRECISIONS, LEVELS, PRECISIONS, QUANTISED
from engines.spec.config import ModelConfig
from engines.spec.policy import adaln_way, assign, usual_level

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
    level: int | None = None
    """How much is quantised in INT8 or INT4: a level of `engines.spec.policy`, by default the usual one."""
    ways: Mapping[str, str] | None = None
    """How each layer is computed, where a quantised bundle says so; None: the level decides."""
    target: str = "tensorrt"
    """Which form of integers is meant: that of `tensorrt` for GPUs, or that of `onnxruntime` for the CPU."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; estimates know {', '.join(PRECISIONS)}")
        if self.form not in FORMS:
            raise UsageError(f"unknown form {self.form!r}; choose {' or '.join(FORMS)}")
        if not 1 <= self.images <= MAX_BATCH:
            raise UsageError(f"the batch must be 1 to {MAX_BATCH} images, got {self.images}")
        if self.level not in (None, *LEVELS):
            raise UsageError(f"the level must be 1 to {LEVELS[-1]}, got {self.level}")
        if self.max_top_k < 1:
            raise UsageError(f"max_top_k must be 1 or more, got {self.max_top_k}")

    @property
    def rows(self) -> int:
        """Rows N of the transformer: two per image with guidance."""
        return 2 * self.images if self.guidance else self.images

    @property
    def high(self) -> str:
        """Precision of what is not quantised: all of it, except in INT8 and INT4."""
        return HIGH_PRECISIONS[self.target] if self.precision in QUANTISED else self.precision

    @property
    def chosen_level(self) -> int:
        """The level that was asked for, or the usual one."""
        return self.level or usual_level(self.config, self.precision)

    @cached_property
    def quantisation(self) -> Quantisation:
        """Which layers are in integers, and how they are computed."""
        if self.precision not in QUANTISED:
            return FLOATS
        ways = self.ways
        if ways is None:
            adaln = adaln_way(self.config, self.target)
            names = layer_names(self.config)
            ways = assign(names, self.target, self.chosen_level, precision=self.precision, adaln=adaln)
        return Quantisation(self.target, ways, self.precision, self.config.transformer.num_classes + 1)

    def on(self, device: Device) -> Workload:
        """This workload in the form that runs on `device`. Raises `UsageError` where a bundle has another."""
        target = "onnxruntime" if device.is_cpu else "tensorrt"
        if self.ways is not None and target != self.target:
            where = "NVIDIA GPUs: leave out" if device.is_cpu else "the CPU: estimate it with"
            raise UsageError(f"{self.config.name} is an {self.precision.upper()} bundle for {where} --device cpu")
        return dataclasses.replace(self, target=target)

    def step_operations(self, scale: int) -> list[Operation]:
        """The products of one scale: of a call of `step`, or of that part of the fused call."""
        counted = cost.step_operations(
            self.config,
            self.high,
            scale,
            images=self.images,
            rows=self.rows,
            max_top_k=self.max_top_k,
            form=self.form,
            smooth=self.smooth,
        )
        return self.quantisation.apply(counted)

    def cond_operations(self, labels: int) -> list[Operation]:
        """The products of the conditioning of some labels."""
        return self.quantisation.apply(cost.cond_operations(self.config, self.high, labels))

    def decode_operations(self) -> list[Operation]:
        """The products of a call of `decode`; none where only tokens are wanted."""
        if self.tokens_only:
            return []
        return self.quantisation.apply(decode_operations(self.config, self.high, self.images))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "model": self.config.name,
            "image_size": self.config.image_size,
            "precision": self.precision,
            "level": self.chosen_level if self.precision in QUANTISED and self.ways is None else None,
            "form": self.form,
            "batch": self.images,
            "guidance": self.guidance,
            "rows": self.rows,
            "max_top_k": self.max_top_k,
            "smooth": self.smooth,
            "tokens_only": self.tokens_only,
        }
