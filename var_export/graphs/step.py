"""The `step` graph: one scale, from its input to the input of the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from var_export.graphs.precision import Precision
from var_export.graphs.quantize import Quantizer
from var_export.graphs.sampler import Mixer, Sampler
from var_export.graphs.transformer import Linear, Trunk
from var_export.model.transformer import VAR


class StepGraph(nn.Module):
    """The `step` graph: one scale, whose constants are inputs, so that one set of weights serves all scales.

    With `smooth`, codebook entries are mixed where the input of this name says so and no token is forced.
    """

    def __init__(
        self, reference: VAR, quantizer: Quantizer, precision: Precision, max_top_k: int, *, smooth: bool
    ) -> None:
        super().__init__()
        self.trunk = Trunk(reference, precision)
        self.sampler = Sampler(max_top_k, reference.config.vae.vocab_size)
        self.quantizer = quantizer
        self.word_embed = Linear(reference.word_embed.weight, reference.word_embed.bias, precision)
        self.mixer = Mixer(quantizer.codebook) if smooth else None

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
        smooth: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        up: Tensor,
        down: Tensor,
        phi_index: Tensor | None = None,
        mixing: Tensor | None = None,
        pos_next: Tensor,
    ) -> tuple[Tensor, ...]:
        """Inputs and outputs are those that `engines.spec.contract.GRAPHS["step"]` lists, in its order."""
        past = list(zip(past_k, past_v, strict=True))
        logits, new = self.trunk(x, adaln, head_adaln, past, guidance, cond_row, uncond_row)
        z = logits / temperature[:, None, None]
        drawn, least = self.sampler(z, uniforms, top_k, top_p)
        mixed, seen = None, []
        if self.mixer is not None:
            assert smooth is not None and noise is not None and mixing is not None
            mixed, heaviest = self.mixer(z, least, noise, *mixing.chunk(2))
            seen.append(mixed)
            drawn = torch.where(smooth[:, None], heaviest, drawn)
        tokens = torch.where(forced_mask, forced_tokens, drawn)
        features = self.quantizer.lookup(tokens)
        if mixed is not None and smooth is not None:
            features = torch.where((smooth[:, None] & ~forced_mask).unsqueeze(-1), mixed, features)
        f_hat = f_hat + self.quantizer.spread(features, up, phi_index)
        embedded = Precision.high(self.word_embed(self.quantizer.reduce(f_hat, down))) + pos_next  # (B, L', C)
        x_next = embedded.index_select(0, image_row)
        return tokens, drawn, f_hat, x_next, *(k for k, _ in new), *(v for _, v in new), logits, *seen
