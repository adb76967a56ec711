"""Traced quantiser: codebook lookup, enlargement, phi, and the reduction to the next scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.spec.config import ModelConfig, phi_index
from var_export.graphs.precision import frozen
from var_export.graphs.resample import down_matrix, up_matrix
from var_export.model.quantizer import MultiScaleQuantizer


class Quantizer(nn.Module):
    """`MultiScaleQuantizer` with interpolation as matrices and all phis in one convolution, in float32.

    phi(h) = ratio * conv(h) + (1 - ratio) * h is itself a 3x3 convolution: the identity goes into the
    centre of its kernel. The K phis share one convolution of K * Z output channels, of which a scale
    takes its Z: K times a tiny cost, and no weight that depends on an input.
    """

    def __init__(self, reference: MultiScaleQuantizer) -> None:
        super().__init__()
        self.config: ModelConfig = reference.config
        self.codebook = frozen(reference.embedding.weight)
        phis = reference.phis()
        self.count = len(phis)
        if phis:
            Z = self.config.vae.z_channels
            centre = torch.zeros(Z, Z, 3, 3)
            centre[range(Z), range(Z), 1, 1] = 1
            weight = torch.cat([phi.weight * phi.ratio + centre * (1 - phi.ratio) for phi in phis])
            bias = torch.cat([phi.bias * phi.ratio for phi in phis if phi.bias is not None])
            self.phi_weight = frozen(weight)
            self.phi_bias = frozen(bias)
        scales = range(self.config.num_scales)
        self.up = nn.ParameterList(frozen(up_matrix(self.config, scale)) for scale in scales)
        self.down = nn.ParameterList(frozen(down_matrix(self.config, scale)) for scale in scales)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) -> their codebook entries (B, L, Z)."""
        return functional.embedding(tokens, self.codebook)

    def spread(self, features: Tensor, up: Tensor, phi_index: Tensor | None) -> Tensor:
        """Features (B, L, Z), up (S*S, L), phi_index (1,) -> what they add to f_hat, (B, Z, S, S)."""
        Z, S = self.config.vae.z_channels, self.config.latent_size
        h = torch.matmul(up, features).transpose(1, 2).reshape(-1, Z, S, S)
        if phi_index is None:
            return h
        mixed = functional.conv2d(h, self.phi_weight, self.phi_bias, padding=1).reshape(-1, self.count, Z * S * S)
        return mixed.index_select(1, phi_index).reshape(-1, Z, S, S)

    def fixed_contribution(self, tokens: Tensor, scale: int) -> Tensor:
        """Tokens (B, L) of a scale that is known when tracing -> what they add to f_hat, (B, Z, S, S)."""
        Z, S = self.config.vae.z_channels, self.config.latent_size
        h = self.lookup(tokens)
        if scale != self.config.num_scales - 1:
            h = torch.matmul(self.up[scale], h)
        h = h.transpose(1, 2).reshape(-1, Z, S, S)
        if not self.count:
            return h
        at = phi_index(self.config, scale) * Z
        return functional.conv2d(h, self.phi_weight[at : at + Z], self.phi_bias[at : at + Z], padding=1)

    @staticmethod
    def reduce(f_hat: Tensor, down: Tensor) -> Tensor:
        """f_hat (B, Z, S, S) and the area matrix `down` (L', S*S) -> features (B, L', Z) of the next scale."""
        return torch.matmul(down, f_hat.flatten(2).transpose(1, 2))

    def nearest(self, z: Tensor) -> Tensor:
        """Features (B, L, Z) -> int64 (B, L), the nearest codebook entries."""
        if self.config.vae.using_znorm:
            return (functional.normalize(z, dim=-1) @ functional.normalize(self.codebook, dim=-1).T).argmax(-1)
        # |z|^2 is the same for every entry and left out.
        return (self.codebook.square().sum(1) - 2 * torch.matmul(z, self.codebook.T)).argmin(-1)


class Accumulate(nn.Module):
    """The `accumulate` graph: the token maps of all scales -> f_hat."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (B, sum L) -> f_hat float32 (B, Z, S, S) (algorithm 2 of the paper)."""
        config = self.quantizer.config
        f_hat = torch.zeros(())
        for scale in range(config.num_scales):
            f_hat = f_hat + self.quantizer.fixed_contribution(tokens[:, config.scale_slice(scale)], scale)
        return f_hat


class EncodeTokens(nn.Module):
    """Algorithm 1 of the paper, traced: each scale takes what the coarser ones left of the features."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, features: Tensor) -> Tensor:
        """Features float32 (B, Z, S, S) -> tokens int64 (B, sum L)."""
        config, rest, tokens = self.quantizer.config, features, []
        for scale in range(config.num_scales):
            flat = rest.flatten(2).transpose(1, 2)
            last = scale == config.num_scales - 1
            z = flat if last else torch.matmul(self.quantizer.down[scale], flat)
            tokens.append(self.quantizer.nearest(z))
            if not last:
                rest = rest - self.quantizer.fixed_contribution(tokens[-1], scale)
        return torch.cat(tokens, dim=1)
