"""The `step` graph (one scale) and the `fused` graph (all scales and the decoder in one)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engines.config import ModelConfig
from var_export.graphs.precision import Precision, frozen
from var_export.graphs.quantize import Quantizer
from var_export.graphs.sampler import Sampler
from var_export.graphs.transformer import KV, Cond, Linear, Trunk
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
        up: Tensor,
        down: Tensor,
        phi_index: Tensor | None,
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


class Fused(nn.Module):
    """Class to image in one call; the cache lives inside, and every scale has its own constants."""

    def __init__(self, cond: Cond, step: Step, reference: VAR, decoder: nn.Module) -> None:
        super().__init__()
        self.config: ModelConfig = reference.config
        self.cond, self.step, self.decoder = cond, step, decoder
        self.positions = nn.ParameterList(frozen(reference.positions(s)) for s in range(self.config.num_scales))

    def forward(
        self,
        labels: Tensor,
        uniforms: Tensor,
        cfg: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        cond_row: Tensor,
        uncond_row: Tensor,
        image_row: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `engines/contract.py`."""
        config, step = self.config, self.step
        adaln, head_adaln, x = self.cond(labels)
        past: list[KV] | None = None
        f_hat = torch.zeros(())
        tokens = []
        for scale in range(config.num_scales):
            t = cfg * (scale / (config.num_scales - 1))
            logits, new = step.trunk(x, adaln, head_adaln, past, t, cond_row, uncond_row)
            past = [
                (k, v) if past is None else (torch.cat((past[i][0], k)), torch.cat((past[i][1], v)))
                for i, (k, v) in enumerate(new)
            ]
            here = uniforms[:, config.scale_slice(scale)]
            tokens.append(step.sampler(logits, here, temperature, top_k, top_p))
            f_hat = f_hat + step.quantizer.fixed_contribution(tokens[-1], scale)
            if scale + 1 < config.num_scales:
                features = step.quantizer.reduce(f_hat, step.quantizer.down[scale + 1])
                x = embedded(step.word_embed, features, self.positions[scale + 1]).index_select(0, image_row)
        return torch.cat(tokens, dim=1), self.decoder(f_hat)


def embedded(word_embed: Linear, features: Tensor, positions: Tensor) -> Tensor:
    """Features (B, L, Z), positions (1, L, C) -> transformer input (B, L, C) float32."""
    return Precision.high(word_embed(features)) + positions


def make_step(var: VAR, quantizer: Quantizer, precision: Precision, max_top_k: int) -> Step:
    """Assemble `Step` from the reference."""
    word_embed = Linear(var.word_embed.weight, var.word_embed.bias, precision)
    return Step(Trunk(var, precision), Sampler(max_top_k, var.config.vae.vocab_size), quantizer, word_embed)
