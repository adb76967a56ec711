"""Traced transformer: AdaLN vectors hoisted into `cond`, the cache explicit, rows flattened for the GEMMs.

Inside, a scale is sequence-first: (L*N, C) for the GEMMs and (L, N, H, d) for keys and values, so that new
keys leave the graph as they are appended, and AdaLN vectors (N, C) broadcast over (L, N, C).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.spec.config import ModelConfig
from var_export.graphs.precision import Precision, frozen
from var_export.model.transformer import KV, MAX_LOG_SCALE, VAR, AdaLNBlock, SelfAttention


class Linear(nn.Module):
    """x @ weight + bias in the compute type, with the weight stored (in, out): MatMul and Add in ONNX,
    which ONNX Runtime fuses to Gemm and quantisers know best.
    """

    def __init__(self, weight: Tensor, bias: Tensor, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.weight = frozen(precision.low(weight.T))
        self.bias = frozen(precision.low(bias))

    def forward(self, x: Tensor) -> Tensor:
        """(M, in) of any float type -> (M, out) in the compute type."""
        return torch.matmul(self.precision.low(x), self.weight) + self.bias


def affine(silu_linear: nn.Sequential, precision: Precision) -> Linear:
    """The linear layer of an official SiLU and Linear pair, for a caller that applies the SiLU itself."""
    linear = cast(nn.Linear, silu_linear[1])
    return Linear(linear.weight, linear.bias, precision)


class Attention(nn.Module):
    """Attention over the cache and all of this scale, decomposed: MatMul, Softmax, MatMul."""

    def __init__(self, reference: SelfAttention, precision: Precision) -> None:
        super().__init__()
        self.precision, self.heads, self.head_dim = precision, reference.heads, reference.head_dim
        self.l2_norm = reference.l2_norm
        weight: Tensor = reference.mat_qkv.weight
        q_bias: Tensor = reference.q_bias
        if self.l2_norm:
            scale = reference.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
            self.query_scale = frozen(scale.reshape(1, 1, -1, 1))
        else:  # the fixed scale goes into the query weights
            C = weight.shape[1]
            factor = torch.ones(3 * C, 1)
            factor[:C] = reference.logit_scale
            weight, q_bias = weight * factor, q_bias * reference.logit_scale
        bias = torch.cat((q_bias, torch.zeros_like(q_bias), reference.v_bias))
        self.qkv = Linear(weight, bias, precision)
        self.proj = Linear(reference.proj.weight, reference.proj.bias, precision)

    def forward(self, x: Tensor, rows: int, past: KV | None) -> tuple[Tensor, KV]:
        """Input (L*N, C), rows N, past (P, N, H, d) pair -> (L*N, C), new (L, N, H, d) pair."""
        shape = (-1, rows, self.heads, self.head_dim)
        q, k, v = (part.reshape(shape) for part in self.qkv(x).chunk(3, dim=-1))
        if self.l2_norm:
            q, k = self._unit(q, self.query_scale), self._unit(k, 1.0)
        new = (k, v)
        if past is not None:
            k, v = torch.cat((past[0], k)), torch.cat((past[1], v))
        logits = torch.matmul(q.permute(1, 2, 0, 3), k.permute(1, 2, 3, 0))  # (N, H, L, P+L)
        weights = self.precision.low(self.precision.high(logits).softmax(-1))
        y = torch.matmul(weights, v.permute(1, 2, 0, 3))  # (N, H, L, d)
        return self.proj(y.permute(2, 0, 1, 3).reshape(x.shape)), new

    def _unit(self, x: Tensor, scale: Tensor | float) -> Tensor:
        """Rows of unit length times `scale`, normalised in float32 (1e-12: `functional.normalize`)."""
        x = self.precision.high(x)
        return self.precision.low(x * (scale / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)))


class Block(nn.Module):
    """One AdaLN block; gamma, 1+scale and shift come from `cond`."""

    def __init__(self, reference: AdaLNBlock, precision: Precision) -> None:
        super().__init__()
        self.precision, self.eps = precision, reference.eps
        self.attention = Attention(reference.attn, precision)
        self.fc1 = Linear(reference.ffn.fc1.weight, reference.ffn.fc1.bias, precision)
        self.fc2 = Linear(reference.ffn.fc2.weight, reference.ffn.fc2.bias, precision)

    def forward(self, x: Tensor, adaln: Tensor, past: KV | None) -> tuple[Tensor, KV]:
        """Input (L, N, C) float32, adaln (N, 6, C), past pair -> (L, N, C), new pair."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = adaln.unbind(1)
        rows, C = x.shape[1], x.shape[2]
        y, new = self.attention(modulated(x, scale1, shift1, self.eps).reshape(-1, C), rows, past)
        x = x + self.precision.high(y).reshape(-1, rows, C) * gamma1
        h = functional.gelu(self.fc1(modulated(x, scale2, shift2, self.eps).reshape(-1, C)), approximate="tanh")
        x = x + self.precision.high(self.fc2(h)).reshape(-1, rows, C) * gamma2
        return x, new


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """norm(x) * scale + shift; unlike the reference's, `scale` comes with the 1 of (1 + scale) in it."""
    return functional.layer_norm(x, x.shape[-1:], eps=eps) * scale + shift


class Trunk(nn.Module):
    """All blocks, guidance and the head: the input of one scale -> guided logits."""

    def __init__(self, reference: VAR, precision: Precision) -> None:
        super().__init__()
        self.eps = reference.config.transformer.norm_eps
        self.precision = precision
        self.blocks = nn.ModuleList(Block(block, precision) for block in reference.block_list)
        self.head = Linear(reference.head.weight, reference.head.bias, precision)

    def forward(
        self,
        x: Tensor,
        adaln: Tensor,
        head_adaln: Tensor,
        past: list[KV] | None,
        guidance: Tensor,
        cond_row: Tensor,
        uncond_row: Tensor,
    ) -> tuple[Tensor, list[KV]]:
        """Input (N, L, C), adaln (N, D, 6, C), head_adaln (N, 2, C) -> guided logits (B, L, V), new pairs."""
        x = x.transpose(0, 1)
        new = []
        for i, block in enumerate(self.blocks):
            x, pair = block(x, adaln[:, i], past[i] if past else None)
            new.append(pair)
        x = modulated(x, head_adaln[:, 0], head_adaln[:, 1], self.eps).transpose(0, 1)  # (N, L, C)
        # The head is affine and the guidance weights sum to 1: guiding its input guides its output, in half the GEMM.
        t = guidance[:, None, None]
        x = (1 + t) * x.index_select(0, cond_row) - t * x.index_select(0, uncond_row)  # (B, L, C)
        logits = self.precision.high(self.head(x.reshape(-1, x.shape[-1])))
        return logits.reshape(x.shape[0], x.shape[1], -1), new


class Cond(nn.Module):
    """The `cond` graph: labels -> AdaLN vectors of all blocks, of the head, and the first input."""

    def __init__(self, reference: VAR, precision: Precision) -> None:
        super().__init__()
        self.config: ModelConfig = reference.config
        self.precision = precision
        self.class_emb = frozen(reference.class_emb.weight)
        self.start = frozen(reference.pos_start + reference.positions(0))
        ones = torch.zeros(6, self.config.transformer.width)
        ones[2:4] = 1  # scale1 and scale2 leave with the 1 of (1 + scale) in them
        if self.config.transformer.shared_aln:
            self.shared = affine(reference.shared_ada_lin, precision)
            offsets = torch.stack([block.ada_gss[0, 0] + ones for block in reference.block_list])
            self.offsets = frozen(offsets.unsqueeze(0))  # (1, D, 6, C)
        else:
            self.ones = frozen(ones)
            self.linears = nn.ModuleList(affine(block.ada_lin, precision) for block in reference.block_list)
        self.head = affine(reference.head_nm.ada_lin, precision)
        self.head_ones = frozen(torch.stack((torch.ones(ones.shape[1]), torch.zeros(ones.shape[1]))))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels int64 (N,) -> adaln (N, D, 6, C), head_adaln (N, 2, C) and x (N, L, C) of the first scale, float32."""
        C = self.config.transformer.width
        cond = functional.embedding(labels, self.class_emb)
        act = functional.silu(cond)
        if self.config.transformer.shared_aln:
            adaln = self.precision.high(self.shared(act)).reshape(-1, 1, 6, C) + self.offsets
        else:
            vectors = [self.precision.high(linear(act)).reshape(-1, 6, C) + self.ones for linear in self.linears]
            adaln = torch.stack(vectors, dim=1)
        head_adaln = self.precision.high(self.head(act)).reshape(-1, 2, C) + self.head_ones
        return adaln, head_adaln, cond.unsqueeze(1) + self.start
