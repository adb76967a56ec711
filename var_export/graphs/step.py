"""The `step` graph: one scale, from its input to the input of the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from var_export.graphs.precision import Precision
from var_export.graphs.quantize import Quantizer
from var_export.graphs.sampler import Sampler
from var_export.graphs.transformer import Linear, Trunk
from var_export.model.transformer import VAR


class Step(nn.Module):
    """One scale. The scale's constants are inputs, so that one set of weights serves all scales."""

    def __init__(self, trunk: Trunk, sampler: Sampler, quantizer: Quantizer, word_embed: Linear) -> None:
        super().__init__()
        self.trunk, self.sampler, self.quantizer, self.word_embed = trunk, sampler, quantizer, word_embed

    def forward(
        self,
        x: Tensor,
        adaln: Tensor,
        head_adaln: Tensor,
        past_k: list[Tensor],
        past_v: list[Tensor],
        f_hat: Tensor,
        uniforms: Tensor,
        guidance: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        cond_row: Tensor,
        uncond_row: Tensor,
        image_row: Tensor,
        forced_tokens: Tensor,
        forced_mask: Tensor,
        *,
        up: Tensor,
        down: Tensor,
        phi_index: Tensor | None = None,
        pos_next: Tensor,
    ) -> tuple[Tensor, ...]:
        """See `engines/contract.py`."""
        past = list(zip(past_k, past_v, strict=True))
        logits, new = self.trunk(x, adaln, head_adaln, past, guidance, cond_row, uncond_row)
        drawn = self.sampler(logits, uniforms, temperature, top_k, top_p)
        tokens = torch.where(forced_mask, forced_tokens, drawn)
        f_hat = f_hat + self.quantizer.contribution(tokens, up, phi_index)
        x_next = embedded(self.word_embed, self.quantizer.reduce(f_hat, down), pos_next).index_select(0, image_row)
        return tokens, drawn, f_hat, x_next, *(k for k, _ in new), *(v for _, v in new), logits


def embedded(word_embed: Linear, features: Tensor, positions: Tensor) -> Tensor:
    """Features (B, L, Z), positions (1, L, C) -> transformer input (B, L, C) float32."""
    return Precision.high(word_embed(features)) + positions


def make_step(var: VAR, quantizer: Quantizer, precision: Precision, max_top_k: int) -> Step:
    """Assemble `Step` from the reference."""
    word_embed = Linear(var.word_embed.weight, var.word_embed.bias, precision)
    return Step(Trunk(var, precision), Sampler(max_top_k, var.config.vae.vocab_size), quantizer, word_embed)
