"""The VAR transformer: AdaLN blocks over one token map at a time, with a KV cache.

Formulas: `models/basic_var.py` and `models/var.py` of FoundationVision/VAR; module names are those of
the official checkpoints. In inference a scale attends to everything cached and to all of itself, so
no mask appears anywhere. N rows, L tokens, C width, H heads, d = C / H.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.spec.config import ModelConfig, TransformerConfig

MAX_LOG_SCALE = math.log(100)  # the official clamp on the learnt attention scale
KV = tuple[Tensor, Tensor]  # keys and values of one block: here (N, H, P, d) each, in the traced graphs (P, N, H, d)


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """norm(x) * (1 + scale) + shift, in place where nobody sees it: 8 % of the time of d16 on a CPU."""
    return functional.layer_norm(x, x.shape[-1:], eps=eps).mul_(1 + scale).add_(shift)


class SelfAttention(nn.Module):
    """Multi-head attention, with l2-normalised queries and keys or with a fixed scale."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        C, H = config.width, config.heads
        self.heads, self.head_dim, self.l2_norm = H, config.head_dim, config.attn_l2_norm
        self.mat_qkv = nn.Linear(C, 3 * C, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(C))
        self.v_bias = nn.Parameter(torch.zeros(C))
        self.proj = nn.Linear(C, C)
        if self.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, H, 1, 1), math.log(4)))

    @property
    def logit_scale(self) -> float:
        """What queries times keys are multiplied with; 1 where the scale is learnt."""
        return 1.0 if self.l2_norm else 0.25 / math.sqrt(self.head_dim)

    def forward(self, x: Tensor, past: KV | None) -> tuple[Tensor, KV]:
        """(N, L, C) and the cached (N, H, P, d) pair -> (N, L, C) and the pair of length P + L."""
        N, L, C = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = functional.linear(x, self.mat_qkv.weight, bias).view(N, L, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, H, L, d) each
        if self.l2_norm:
            q = functional.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
            k = functional.normalize(k, dim=-1)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        y = functional.scaled_dot_product_attention(q, k, v, scale=self.logit_scale)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(N, L, C))
        return out, (k, v)


class FeedForward(nn.Module):
    """Linear, tanh-approximated GELU, linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_hidden)
        self.fc2 = nn.Linear(config.mlp_hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> same."""
        y: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return y


class AdaLNBlock(nn.Module):
    """Attention and feed-forward, each modulated by the class: x + gamma * f(norm(x) * (1 + scale) + shift)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        C = config.width
        self.eps = config.norm_eps
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(config)
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, C))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(C, 6 * C))

    def modulation(self, cond: Tensor, shared: Tensor | None) -> Tensor:
        """Class embedding (N, C) -> (N, 6, C): gamma1, gamma2, scale1, scale2, shift1, shift2."""
        if shared is not None:
            return self.ada_gss[0] + shared
        y: Tensor = self.ada_lin(cond)
        return y.view(cond.shape[0], 6, -1)

    def forward(self, x: Tensor, modulation: Tensor, past: KV | None) -> tuple[Tensor, KV]:
        """(N, L, C), (N, 6, C) and the cached pair -> (N, L, C) and the longer pair."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
        attended, past = self.attn(modulated(x, scale1, shift1, self.eps), past)
        x = x + attended.mul_(gamma1)
        x = x + self.ffn(modulated(x, scale2, shift2, self.eps)).mul_(gamma2)
        return x, past


class AdaLNBeforeHead(nn.Module):
    """Class-modulated norm in front of the classifier."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def modulation(self, cond: Tensor) -> Tensor:
        """Class embedding (N, C) -> (N, 2, C): scale, shift."""
        y: Tensor = self.ada_lin(cond)
        return y.view(cond.shape[0], 2, -1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """(N, L, C), (N, C) -> (N, L, C)."""
        scale, shift = self.modulation(cond).unsqueeze(2).unbind(1)
        return modulated(x, scale, shift, self.eps)


class VAR(nn.Module):
    """Next-scale transformer: class and coarser scales in, logits of one scale out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes, C = config.transformer, config.transformer.width
        self.config = config
        self.word_embed = nn.Linear(config.vae.z_channels, C)
        self.class_emb = nn.Embedding(sizes.num_classes + 1, C)
        self.pos_start = nn.Parameter(torch.zeros(1, config.scale_lengths[0], C))
        self.pos_1LC = nn.Parameter(torch.zeros(1, config.num_tokens, C))
        self.lvl_embed = nn.Embedding(config.num_scales, C)
        if sizes.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(C, 6 * C))
        self.blocks = nn.ModuleList(AdaLNBlock(sizes) for _ in range(sizes.depth))
        self.head_nm = AdaLNBeforeHead(sizes)
        self.head = nn.Linear(C, config.vae.vocab_size)

    @property
    def block_list(self) -> list[AdaLNBlock]:
        """The blocks with their own type, which `nn.ModuleList` does not say."""
        return [cast(AdaLNBlock, block) for block in self.blocks]

    def shared_modulation(self, cond: Tensor) -> Tensor | None:
        """Class embedding (N, C) -> (N, 6, C) for all blocks, or None where each block has its own."""
        if not self.config.transformer.shared_aln:
            return None
        y: Tensor = self.shared_ada_lin(cond)
        return y.view(cond.shape[0], 6, -1)

    def positions(self, scale: int) -> Tensor:
        """Position plus level embedding of one scale, (1, L, C)."""
        return self.pos_1LC[:, self.config.scale_slice(scale)] + self.lvl_embed.weight[scale]

    def first_input(self, cond: Tensor) -> Tensor:
        """Class embedding (N, C) -> input of the first scale (N, L, C)."""
        return cond.unsqueeze(1) + self.pos_start + self.positions(0)

    def next_input(self, features: Tensor, scale: int) -> Tensor:
        """Features (B, L, Z) at the size of `scale` -> its input (B, L, C)."""
        y: Tensor = self.word_embed(features)
        return y + self.positions(scale)

    def forward(self, x: Tensor, cond: Tensor, past: list[KV] | None) -> tuple[Tensor, list[KV]]:
        """One scale. x (N, L, C), class embedding (N, C), a pair per block -> logits (N, L, V), pairs."""
        shared = self.shared_modulation(cond)
        cache = []
        for i, block in enumerate(self.block_list):
            x, pair = block(x, block.modulation(cond, shared), past[i] if past else None)
            cache.append(pair)
        logits: Tensor = self.head(self.head_nm(x, cond))
        return logits, cache
