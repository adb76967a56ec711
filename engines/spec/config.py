"""What a VAR model is, in numbers: the frozen configuration that every other module reads.

Sizes follow the paper (arXiv 2404.02905) and `FoundationVision/VAR`: a multi-scale VQ-VAE and a
transformer over its token maps. Everything is validated on creation, so that a `ModelConfig` that
exists can be built, exported and run.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engines.errors import UsageError
from engines.words import quoted

HEAD_DIM = 64  # channels of a head in every official model: heads = width / 64

# Least and most, far above any model that exists: the largest official one has depth 36, width 2304, 10 scales.
_MAX_SIDE, _MAX_SCALES, _MAX_LEVELS = 512, 64, 10
_MAX_IMAGE = 1 << 14
_VAE_LIMITS: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 1 << 20),
    "z_channels": (1, 1 << 12),
    "ch": (1, 1 << 12),
    "ch_mult": (1, 64),
    "num_res_blocks": (1, 64),
    "quant_conv_ks": (1, 31),
    "quant_resi": (0, 1),
    "share_quant_resi": (0, 1 << 10),
    "norm_num_groups": (1, 1 << 12),
    "norm_eps": (1e-30, 1),
}
_TRANSFORMER_LIMITS: dict[str, tuple[float, float]] = {
    "depth": (1, 1 << 10),
    "width": (1, 1 << 16),
    "heads": (1, 1 << 10),
    "mlp_hidden": (1, 1 << 20),
    "num_classes": (1, 1 << 20),
    "norm_eps": (1e-30, 1),
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def check_types(values: Any, group: str) -> None:
    """Refuse a dataclass whose plain fields (numbers, strings, flags) have another type than they are annotated with.

    A number must be finite, and a bool is no number. Fields of other types are left to the caller. `group` comes before
    the field's name in the message. Raises `UsageError`.
    """
    for entry in dataclasses.fields(values):
        value = getattr(values, entry.name)
        if entry.type == "tuple[int, ...]":
            fits = isinstance(value, tuple) and all(type(item) is int for item in value)
        elif entry.type == "float":
            fits = type(value) in (int, float) and math.isfinite(value)
        elif entry.type in ("int", "bool", "str"):
            fits = type(value).__name__ == entry.type
        elif entry.type == "str | None":
            fits = value is None or type(value) is str
        else:
            continue
        _require(fits, f"{group}{entry.name} must be of type {entry.type}, got {quoted(value)}")


def _check_ranges(values: Any, group: str, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers that no model has, before memory is asked for such a model. Raises `UsageError`."""
    for name, (low, high) in limits.items():
        value = getattr(values, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:
                raise UsageError(f"{group}{name} must lie in {low} to {high}, got {quoted(number)}")


def _as_tuple(value: object) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Sizes of the multi-scale VQ-VAE (official `models/vqvae.py` and `models/basic_vae.py`)."""

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    quant_conv_ks: int = 3
    quant_resi: float = 0.5
    """phi(x) = quant_resi * conv(x) + (1 - quant_resi) * x; 0 stands for no phi at all."""
    share_quant_resi: int = 4
    """How many phis there are. 0: one per scale; 1: one for all scales; K: K of them spread over the scales."""
    using_znorm: bool = False
    using_sa: bool = True
    using_mid_sa: bool = True
    norm_num_groups: int = 32
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", _as_tuple(self.ch_mult))
        check_types(self, "vae.")
        _check_ranges(self, "vae.", _VAE_LIMITS)
        _require(1 <= len(self.ch_mult) <= _MAX_LEVELS, f"vae.ch_mult must be 1 to {_MAX_LEVELS} numbers")
        for mult in self.ch_mult:
            _require(
                (self.ch * mult) % self.norm_num_groups == 0,
                f"vae.ch * ch_mult = {self.ch * mult} is no multiple of {self.norm_num_groups} normalisation groups",
            )

    @property
    def downsample(self) -> int:
        """Pixels per latent cell, along one side."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer (`models/var.py` of the official code)."""

    depth: int = 16
    width: int = 1024
    heads: int = 16
    mlp_hidden: int = 4096
    num_classes: int = 1000
    norm_eps: float = 1e-6
    shared_aln: bool = False
    attn_l2_norm: bool = True

    def __post_init__(self) -> None:
        check_types(self, "transformer.")
        _check_ranges(self, "transformer.", _TRANSFORMER_LIMITS)
        _require(
            self.width % self.heads == 0,
            f"transformer.width {self.width} cannot be divided among {self.heads} heads",
        )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One VAR model: the scales, its VQ-VAE and its transformer."""

    name: str
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    vae: VaeConfig = field(default_factory=VaeConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", _as_tuple(self.patch_nums))
        check_types(self, "")
        scales = self.patch_nums
        _require(2 <= len(scales) <= _MAX_SCALES, f"patch_nums needs 2 to {_MAX_SCALES} scales, got {len(scales)}")
        _check_ranges(self, "", {"patch_nums": (1, _MAX_SIDE)})
        _require(
            all(scales[i] < scales[i + 1] for i in range(len(scales) - 1)),
            f"patch_nums must grow from scale to scale, got {scales}",
        )
        _require(
            self.image_size <= _MAX_IMAGE,
            f"patch_nums and vae.ch_mult give images of {self.image_size} pixels, more than {_MAX_IMAGE}",
        )

    @property
    def num_scales(self) -> int:
        """Number of scales, and of transformer steps per image."""
        return len(self.patch_nums)

    @property
    def latent_size(self) -> int:
        """Side S of the accumulated feature map."""
        return self.patch_nums[-1]

    @property
    def image_size(self) -> int:
        """Side of a finished image in pixels."""
        return self.latent_size * self.vae.downsample

    @cached_property
    def scale_lengths(self) -> tuple[int, ...]:
        """Tokens L of each scale."""
        return tuple(p * p for p in self.patch_nums)

    @cached_property
    def scale_offsets(self) -> tuple[int, ...]:
        """Tokens P that come before each scale."""
        return tuple(sum(self.scale_lengths[:i]) for i in range(self.num_scales))

    @property
    def num_tokens(self) -> int:
        """Tokens of one image, all scales together."""
        return sum(self.scale_lengths)

    @property
    def unconditional_class(self) -> int:
        """The label that stands for no class."""
        return self.transformer.num_classes

    def scale_slice(self, scale: int) -> slice:
        """Where the tokens of `scale` lie among all tokens of an image."""
        start = self.scale_offsets[scale]
        return slice(start, start + self.scale_lengths[scale])

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types; `from_dict` is the inverse."""
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModelConfig:
        """Build a configuration from `to_dict`'s output. Raises `UsageError` on unknown or missing keys."""
        try:
            return cls(
                name=value["name"],
                patch_nums=value["patch_nums"],
                vae=VaeConfig(**value["vae"]),
                transformer=TransformerConfig(**value["transformer"]),
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"the model configuration is not one this version knows: {error}") from error


def phi_index(config: ModelConfig, scale: int) -> int:
    """Which phi convolution serves `scale`; `models/quant.py`, PhiShared / PhiPartiallyShared / PhiNonShared.

    K phis sit at K ticks on [0, 1]; a scale takes the nearest to scale / (number of scales - 1).
    """
    count = num_phi(config)
    if count <= 1:
        return 0
    first = 1 / 3 / count if count == 4 else 1 / 2 / count
    last = 1 - first
    # Rounded as numpy.linspace rounds, which the official code uses: of ten scales, 2, 4 and 7 lie exactly between two
    # of four ticks, so the last bit decides.
    step = (last - first) / (count - 1)
    ticks = [i * step + first for i in range(count - 1)] + [last]
    at = scale / (config.num_scales - 1)
    return min(range(count), key=lambda i: abs(ticks[i] - at))


def mixing(config: ModelConfig, scale: int) -> tuple[float, float]:
    """Gain of the logits and temperature of smoothing at `scale`: `more_smooth` of the official code.

    Coarse scales mix entries of the codebook, fine ones hardly do.
    """
    ratio = scale / (config.num_scales - 1)
    return 1 + ratio, max(0.27 * (1 - ratio * 0.95), 0.005)


def num_phi(config: ModelConfig) -> int:
    """How many phi convolutions the VQ-VAE has; 0 where `quant_resi` is 0."""
    if abs(config.vae.quant_resi) <= 1e-6:
        return 0
    return config.vae.share_quant_resi or config.num_scales
