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

HEAD_DIM = 64  # channels of a head in every official model: heads = width / 64


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
        _require(fits, f"{group}{entry.name} must be of type {entry.type}, got {value!r}")


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
        _require(self.norm_eps > 0, f"vae.norm_eps must be positive, got {self.norm_eps}")
        for name in ("vocab_size", "z_channels", "ch", "num_res_blocks", "quant_conv_ks", "norm_num_groups"):
            _require(getattr(self, name) > 0, f"vae.{name} must be positive, got {getattr(self, name)}")
        _require(
            len(self.ch_mult) > 0 and min(self.ch_mult) > 0, f"vae.ch_mult must be positive numbers, got {self.ch_mult}"
        )
        _require(0.0 <= self.quant_resi <= 1.0, f"vae.quant_resi must lie in [0, 1], got {self.quant_resi}")
        _require(self.share_quant_resi >= 0, f"vae.share_quant_resi must be 0 or more, got {self.share_quant_resi}")
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
        _require(self.norm_eps > 0, f"transformer.norm_eps must be positive, got {self.norm_eps}")
        for name in ("depth", "width", "heads", "mlp_hidden", "num_classes"):
            _require(getattr(self, name) > 0, f"transformer.{name} must be positive, got {getattr(self, name)}")
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
        _require(len(self.patch_nums) >= 2, f"patch_nums needs two scales or more, got {self.patch_nums}")
        _require(
            self.patch_nums[0] > 0 and all(a < b for a, b in zip(self.patch_nums, self.patch_nums[1:], strict=False)),
            f"patch_nums must grow from scale to scale, got {self.patch_nums}",
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
