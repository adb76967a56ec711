"""What a user decides about a TensorRT build, checked before the builder starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.backends.tensorrt.profiles import BatchRange
from engines.errors import UsageError
from engines.foreign import read_bytes, reading
from engines.spec.choices import HARDWARE_COMPATIBILITY

COMPATIBILITY_LEVELS = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same-sm": "SAME_COMPUTE_CAPABILITY"}
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
LEVELS = range(6)
DEFAULT_BATCH = BatchRange(1, 1, 8)
EXAMPLE = '[tensorrt]\nmax_aux_streams = 2\nflags = ["SPARSE_WEIGHTS"]'


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Settings of the builder; None leaves a choice to TensorRT."""

    batch: BatchRange = DEFAULT_BATCH
    workspace: int | None = None
    """MiB of scratch memory that a kernel may use."""
    optimization_level: int | None = None
    timing_cache: Path | None = None
    """File; kernels that were timed before are not timed again. Not of TensorRT-RTX, which times none."""
    compute_capabilities: tuple[str, ...] = ()
    """Of the cards that a TensorRT-RTX plan is for; empty: of the card here."""
    hardware_compatibility: str = "none"
    """One of `engines.spec.choices.HARDWARE_COMPATIBILITY`; TensorRT only."""
    weight_streaming: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    """Further settings of IBuilderConfig by their TensorRT names."""

    def __post_init__(self) -> None:
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"--workspace is in MiB and at least 1, got {self.workspace}")
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise UsageError(f"--optimization-level lies in 0 to {LEVELS[-1]}, got {self.optimization_level}")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise UsageError(
                f"--hardware-compatibility must be one of {', '.join(HARDWARE_COMPATIBILITY)}, "
                f"got {self.hardware_compatibility!r}"
            )
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise UsageError(f"--compute-capability is written as 8.6, got {capability!r}")

    def check_for(self, target: str) -> None:
        """Raise `UsageError` where an option is not one of this target."""
        if target == "tensorrt":
            if self.compute_capabilities:
                raise UsageError(
                    "--compute-capability is for tensorrt-rtx; a TensorRT plan is for the GPU that builds it"
                )
            return
        if self.timing_cache is not None:
            raise UsageError("--timing-cache is for tensorrt; TensorRT-RTX times no kernels while building")
        if self.hardware_compatibility != "none":
            raise UsageError("--hardware-compatibility is for tensorrt; tensorrt-rtx takes --compute-capability")
        unknown = set(self.compute_capabilities) - set(RTX_CAPABILITIES)
        if unknown:
            raise UsageError(
                f"TensorRT-RTX has no compute capability {', '.join(sorted(unknown))}; "
                f"it knows {', '.join(RTX_CAPABILITIES)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """What decides the plan, in plain JSON types."""
        return {
            "batch": list(self.batch.images),
            "workspace": self.workspace,
            "optimization_level": self.optimization_level,
            "compute_capabilities": list(self.compute_capabilities),
            "hardware_compatibility": self.hardware_compatibility,
            "weight_streaming": self.weight_streaming,
            "extra": self.extra,
        }


def read_options(file: Path) -> dict[str, Any]:
    """The `[tensorrt]` table of a TOML file. Raises `UsageError`."""
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise UsageError(
                f'--builder-config needs tomli on Python 3.10 ({error}): pip install "tomli>=2"'
            ) from error
    with reading(file, "TOML file"):
        table = tomllib.loads(read_bytes(file).decode())
    settings = table.pop("tensorrt", None)
    if table or not isinstance(settings, dict):
        raise UsageError(f"{file} must hold one table, [tensorrt], such as: {' / '.join(EXAMPLE.splitlines())}")
    return settings


def apply_extra(trt: Any, config: Any, settings: dict[str, Any]) -> None:
    """Set attributes, flags, memory pools and preview features of an IBuilderConfig by name. Raises `UsageError`."""
    for name, value in settings.items():
        if name == "flags":
            for flag in _names(name, value):
                config.set_flag(_member(trt, "BuilderFlag", flag))
        elif name == "preview_features":
            for feature in _names(name, value):
                config.set_preview_feature(_member(trt, "PreviewFeature", feature), True)
        elif name == "memory_pools":
            if not isinstance(value, dict):
                raise UsageError("memory_pools is a table of MiB by pool, such as {TACTIC_DRAM = 1024}")
            for pool, mebibytes in value.items():
                if type(mebibytes) is not int or mebibytes < 1:
                    raise UsageError(f"memory_pools.{pool} is a whole number of MiB, got {mebibytes!r}")
                config.set_memory_pool_limit(_member(trt, "MemoryPoolType", pool), mebibytes << 20)
        else:
            _set_attribute(trt, config, name, value)


def _set_attribute(trt: Any, config: Any, name: str, value: Any) -> None:
    if name.startswith("_") or not hasattr(config, name) or callable(getattr(config, name)):
        known = [n for n in dir(config) if not n.startswith("_") and not callable(getattr(config, n))]
        raise UsageError(f"TensorRT {trt.__version__} has no builder setting {name!r}; it has {', '.join(known)}")
    if isinstance(value, str):  # the name of an enum member: its type is that of the present value
        kind = type(getattr(config, name))
        if not hasattr(kind, value):
            raise UsageError(f"builder setting {name} has no value {value!r}")
        value = getattr(kind, value)
    try:
        setattr(config, name, value)
    except (TypeError, AttributeError) as error:
        raise UsageError(f"builder setting {name} does not take {value!r} ({str(error).splitlines()[0]})") from error
    if getattr(config, name) != value:  # some are ignored without a word
        raise UsageError(f"TensorRT {trt.__version__} leaves builder setting {name} at {getattr(config, name)}")


def _names(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f'{name} is a list of names, such as ["SPARSE_WEIGHTS"], got {value!r}')
    return value


def _member(trt: Any, enum: str, name: str) -> Any:
    kind = getattr(trt, enum)
    if name not in getattr(kind, "__members__", {}):
        raise UsageError(f"TensorRT {trt.__version__} has no {enum} {name!r}; it has {', '.join(kind.__members__)}")
    return kind.__members__[name]
