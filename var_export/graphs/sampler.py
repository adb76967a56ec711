"""Traced sampler: temperature, top-k, top-p and inverse CDF from one uniform number per token.

Prefix sums are products with triangular matrices, since TensorRT 10.3 has no cumulative layer; they run in
two levels (inside blocks, then over the blocks), so the constants stay tiny at any length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from var_export.graphs.precision import frozen

LOWEST = torch.finfo(torch.float32).min  # stands for minus infinity
TINY = 2.0**-25  # less than any -log of a noise below 1, so that its own logarithm is finite


class PrefixSum(nn.Module):
    """Inclusive running sum of (B, L, length) float32 along the last axis."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.side = length, math.isqrt(length - 1) + 1
        self.inside = frozen(torch.ones(self.side, self.side).triu())
        self.across = frozen(torch.ones(self.side, self.side).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, length) -> same."""
        side = self.side
        blocks = functional.pad(x, (0, side * side - self.length)).reshape(x.shape[0], -1, side, side)
        inner = torch.matmul(blocks, self.inside)
        before = torch.matmul(inner[..., -1], self.across)
        return (inner + before.unsqueeze(-1)).reshape(x.shape[0], -1, side * side)[..., : self.length]


def count(mask: Tensor) -> Tensor:
    """Number of true entries along the last axis, float32 (exact up to 2^24)."""
    return mask.float().sum(-1)


class Sampler(nn.Module):
    """The sampler of `var_export.model.sampling.sample`, without branches, so that all images share one batch."""

    def __init__(self, max_top_k: int, vocab_size: int) -> None:
        super().__init__()
        self.listed = min(max_top_k, vocab_size)
        self.rank = frozen(torch.arange(self.listed))
        self.list_sum, self.whole_sum = PrefixSum(self.listed), PrefixSum(vocab_size)

    def forward(self, z: Tensor, uniforms: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
        """Logits by temperature (B, L, V), uniforms (B, L), the rest (B,) -> tokens int64 (B, L), and the least z of
        those that top-k and top-p keep (B, L, 1).
        """
        V = z.shape[-1]
        K, rank = self.listed, self.rank
        top_k, top_p = top_k[:, None, None], top_p[:, None, None]
        u = uniforms.unsqueeze(-1)
        values, indices = torch.topk(z, K, dim=-1, sorted=True)
        top = values[..., :1]

        weights = (values - top).exp() * (rank < torch.where(top_k == 0, K, top_k))
        cdf = self.list_sum(weights)
        mass = torch.where((top_p > 0) & (top_p < 1), top_p, 2.0) * cdf[..., -1:]
        kept = ((cdf - weights < mass) | (rank == 0)) & (weights > 0)
        total = (cdf * kept).amax(-1, keepdim=True)
        below = count(kept & (cdf <= u * total))
        place = torch.minimum(below, count(kept) - 1).long()
        listed = indices.gather(-1, place.unsqueeze(-1)).squeeze(-1)

        whole = self.whole_sum((z - top).exp())
        anywhere = count(whole <= u * whole[..., -1:]).clamp_max(V - 1).long()
        everything = (top_k == 0) & ((top_p == 0) | (top_p >= 1))
        least = torch.where(kept, values, top).amin(-1, keepdim=True)
        return torch.where(everything.squeeze(-1), anywhere, listed), torch.where(everything, LOWEST, least)


class Mixer(nn.Module):
    """The Gumbel-softmax of `var_export.model.sampling.mixture`, and the codebook entries that it mixes."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.codebook = codebook

    def forward(self, z: Tensor, least: Tensor, noise: Tensor, gain: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Logits by temperature and noise (B, L, V), least (B, L, 1), gain and tau (1,) -> features (B, L, Z), and the
        entries that weigh most, int64 (B, L).
        """
        rates = (-noise.log()).clamp_min(TINY)  # below all that can be: for logarithms that round to 0 next to 1
        scores = (z * gain - rates.log()) / tau
        scores = torch.where(z < least, LOWEST, scores)
        return torch.matmul(scores.softmax(-1), self.codebook), scores.argmax(-1)
