"""Resampling between scales as constant matrices, made from the reference interpolation itself.

Bicubic enlargement and area reduction are linear, so applying `torch.nn.functional.interpolate` to
the unit vectors gives the exact matrix. ONNX has no area mode, and cubic Resize differs between
runtimes; a matrix product does not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engines.spec.config import ModelConfig


def _matrix(source: int, target: int, mode: str) -> Tensor:
    """What takes a flat square map of side `source` to one of side `target`, float32 (target^2, source^2)."""
    if source == target:
        return torch.eye(target * target)
    units = torch.eye(source * source).reshape(source * source, 1, source, source)
    return functional.interpolate(units, size=(target, target), mode=mode).reshape(source * source, -1).T.contiguous()


def up_matrix(config: ModelConfig, scale: int) -> Tensor:
    """Bicubic enlargement of the token map of `scale` to the latent size, float32 (S*S, L)."""
    return _matrix(config.patch_nums[scale], config.latent_size, "bicubic")


def down_matrix(config: ModelConfig, scale: int) -> Tensor:
    """Area reduction of the latent size to the token map of `scale`, float32 (L, S*S)."""
    return _matrix(config.latent_size, config.patch_nums[scale], "area")
