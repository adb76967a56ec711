"""Multi-scale residual quantiser: token maps <-> accumulated feature map.

Formulas: paper section 3.2, algorithms 1 and 2; `models/quant.py` of FoundationVision/VAR. A token map of
scale k is looked up in the codebook, enlarged bicubically to the latent size, passed through phi_k
and added to the feature map f_hat.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.spec.config import ModelConfig, num_phi, phi_index


class Phi(nn.Conv2d):
    """phi(h) = ratio * conv3x3(h) + (1 - ratio) * h."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        """(B, Z, S, S) -> same."""
        return h * (1 - self.ratio) + super().forward(h) * self.ratio


class MultiScaleQuantizer(nn.Module):
    """Codebook, phi convolutions and the resampling between scales."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vae = config.vae
        self.config = config
        self.embedding = nn.Embedding(vae.vocab_size, vae.z_channels)
        phis = nn.ModuleList(Phi(vae.z_channels, vae.quant_resi) for _ in range(num_phi(config)))
        self.quant_resi: nn.Module  # under the official keys, which differ with how the phis are shared
        if not phis:
            self.quant_resi = nn.Identity()
        elif vae.share_quant_resi == 1:
            self.quant_resi = nn.ModuleDict({"qresi": phis[0]})
        elif vae.share_quant_resi == 0:
            self.quant_resi = phis
        else:
            self.quant_resi = nn.ModuleDict({"qresi_ls": phis})

    def phis(self) -> list[Phi]:
        """All phi convolutions, in the order that `phi_index` counts; empty where there is none."""
        return [module for module in self.quant_resi.modules() if isinstance(module, Phi)]

    def contribution(self, tokens: Tensor, scale: int) -> Tensor:
        """Tokens int64 (B, L) of one scale -> what they add to f_hat, (B, Z, S, S)."""
        return self.spread(self.embedding(tokens), scale)

    def spread(self, features: Tensor, scale: int) -> Tensor:
        """Features (B, L, Z) of one scale -> what they add to f_hat, (B, Z, S, S)."""
        side, size = self.config.patch_nums[scale], self.config.latent_size
        h = features.transpose(1, 2).reshape(features.shape[0], -1, side, side)
        if scale != self.config.num_scales - 1:
            h = functional.interpolate(h, size=(size, size), mode="bicubic")
        phis = self.phis()
        if phis:
            h = phis[phi_index(self.config, scale)](h)
        return h

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """f_hat (B, Z, S, S) -> features (B, L', Z) at the size of the scale after `scale`."""
        side = self.config.patch_nums[scale + 1]
        return functional.interpolate(f_hat, size=(side, side), mode="area").flatten(2).transpose(1, 2)

    def nearest(self, z: Tensor) -> Tensor:
        """Features (M, Z) -> int64 (M,), the nearest codebook entries."""
        table = self.embedding.weight
        if self.config.vae.using_znorm:
            return (functional.normalize(z, dim=-1) @ functional.normalize(table, dim=-1).T).argmax(dim=1)
        distance = z.square().sum(1, keepdim=True) + table.square().sum(1)
        return torch.addmm(distance, z, table.T, alpha=-2).argmin(dim=1)

    def tokens_of(self, features: Tensor) -> Tensor:
        """Encoder features (B, Z, S, S) -> tokens int64 (B, sum L), coarse to fine (algorithm 1)."""
        B, Z = features.shape[:2]
        rest = features
        tokens = []
        for scale, side in enumerate(self.config.patch_nums):
            last = scale == self.config.num_scales - 1
            z = rest if last else functional.interpolate(rest, size=(side, side), mode="area")
            tokens.append(self.nearest(z.permute(0, 2, 3, 1).reshape(-1, Z)).reshape(B, -1))
            rest = rest - self.contribution(tokens[-1], scale)
        return torch.cat(tokens, dim=1)
