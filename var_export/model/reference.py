"""The PyTorch reference: builds the model from a checkpoint and runs the scale loop plainly.

`Reference.generate` is what every exported graph is held against: it follows
`autoregressive_infer_cfg` of FoundationVision/VAR, with the sampler of `model/sampling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engines.spec.config import ModelConfig, mixing
from var_export.model.sampling import mixture, sample
from var_export.model.transformer import KV, VAR
from var_export.model.vqvae import VQVAE

# Last part of the keys of the buffers that follow from the configuration, or serve training alone.
UNUSED_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


@dataclass
class Drawn:
    """What one run of the reference draws for B images."""

    tokens: Tensor
    """int64 (B, sum L); of a smoothed image, the entries that weigh most."""
    f_hat: Tensor
    """float32 (B, Z, S, S)."""
    image: Tensor
    """uint8 (B, h, w, 3)."""
    logits: list[Tensor]
    """Guided logits (B, L, V) per scale, before temperature; empty unless asked for."""


class Reference:
    """VQ-VAE and transformer in float32, on one device."""

    sample = staticmethod(sample)
    """The sampler; a rival in a race may have a faster one that draws the same."""

    def __init__(self, vae: VQVAE, var: VAR) -> None:
        self.vae, self.var, self.config = vae.eval(), var.eval(), var.config
        for parameter in [*vae.parameters(), *var.parameters()]:
            parameter.requires_grad_(False)

    @classmethod
    def from_state(
        cls, config: ModelConfig, var_state: Mapping[str, Tensor], vae_state: Mapping[str, Tensor]
    ) -> Reference:
        """Build from the state dicts of a checkpoint that was checked; float32 weights are used in place."""
        var, vae = blank(config)
        for module, state in ((var, var_state), (vae, vae_state)):
            weights = {key: w.float() for key, w in state.items() if key.rpartition(".")[2] not in UNUSED_BUFFERS}
            module.load_state_dict(weights, assign=True)
        return cls(vae, var)

    @classmethod
    def random(cls, config: ModelConfig, seed: int = 0) -> Reference:
        """Random weights at the scale of a trained model's, for tests of size and speed."""
        var, vae = blank(config)
        generator = torch.Generator().manual_seed(seed)
        for module in (vae, var):
            module.to_empty(device="cpu")
            _randomize(module, generator)
        return cls(vae, var)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Images uint8 (B, h, w, 3) -> tokens int64 (B, sum L)."""
        return self.vae.encode(pixels)

    @torch.inference_mode()
    def generate(
        self,
        labels: Tensor,
        uniforms: Tensor,
        *,
        cfg: Tensor,
        max_top_k: int,
        forced: Tensor | None = None,
        forced_mask: Tensor | None = None,
        noise: Tensor | None = None,
        cfg_scales: Tensor | None = None,
        keep_logits: bool = False,
        **sampling: Tensor,
    ) -> Drawn:
        """Draw images.

        Args:
            labels: int64 (B,).
            uniforms: float32 (B, sum L).
            cfg: float32 (B,), guidance; both halves run for every image, whatever its value.
            max_top_k: longest sorted list of the sampler.
            forced: int64 (B, sum L), tokens to take instead of the drawn ones.
            forced_mask: bool (B, sum L), where to take them; everywhere by default.
            noise: float32 (B, sum L, V) in (0, 1): smooths all images, by mixing codebook entries where none is forced.
            cfg_scales: int64 (B,), how many first scales are guided; 0, the default, is all.
            keep_logits: keep the guided logits of every scale.
            sampling: what else decides a draw, each (B,), as `var_export.model.sampling.sample` takes it.

        """
        config, B = self.config, labels.shape[0]
        guided = bool((cfg != 0).any())
        guided_scales = torch.full((B,), config.num_scales, device=labels.device)
        if cfg_scales is not None:
            guided_scales = torch.where(cfg_scales == 0, guided_scales, cfg_scales)
        halves = torch.cat((labels, torch.full_like(labels, config.unconditional_class))) if guided else labels
        cond = self.var.class_emb(halves)
        x = self.var.first_input(cond)
        f_hat = torch.zeros(B, config.vae.z_channels, config.latent_size, config.latent_size, device=labels.device)
        past: list[KV] | None = None
        tokens: list[Tensor] = []
        kept_logits: list[Tensor] = []
        codebook = self.vae.quantize.embedding.weight
        for scale in range(config.num_scales):
            here = config.scale_slice(scale)
            if guided and bool((scale >= guided_scales).all()):  # the unconditional half is not needed any more
                assert past is not None
                guided, x, cond, past = False, x[:B], cond[:B], [(k[:B], v[:B]) for k, v in past]
            logits, past = self.var(x, cond, past)
            if guided:
                t = cfg * scale / (config.num_scales - 1)
                t = torch.where(scale < guided_scales, t, 0).view(B, 1, 1)
                logits = (1 + t) * logits[:B] - t * logits[B:]
            if keep_logits:
                kept_logits.append(logits)
            if noise is None:
                drawn = self.sample(logits, uniforms[:, here], max_top_k=max_top_k, **sampling)
                features = codebook[drawn]
            else:
                gain, tau = mixing(config, scale)
                weights = mixture(logits, noise[:, here], gain=gain, tau=tau, max_top_k=max_top_k, **sampling)
                drawn, features = weights.argmax(-1), weights @ codebook
            if forced is not None:
                where = torch.ones_like(drawn, dtype=torch.bool) if forced_mask is None else forced_mask[:, here]
                drawn = drawn.where(~where, forced[:, here])
                features = features.where(~where.unsqueeze(-1), codebook[drawn])
            tokens.append(drawn)
            f_hat = f_hat + self.vae.quantize.spread(features, scale)
            if scale + 1 < config.num_scales:
                x = self.var.next_input(self.vae.quantize.next_input(f_hat, scale), scale + 1)
                x = x.repeat(2, 1, 1) if guided else x
        return Drawn(torch.cat(tokens, dim=1), f_hat, self.vae.decode(f_hat), kept_logits)


class _NoInitialValues(TorchFunctionMode):
    """Makes the functions of `torch.nn.init` do nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_init = getattr(func, "__module__", None) == "torch.nn.init"
        return None if is_init else func(*args, **kwargs or {})


def blank(config: ModelConfig) -> tuple[VAR, VQVAE]:
    """The transformer and the VQ-VAE on the meta device: every official key with its shape, and no memory."""
    # Without the mode, initial values of nothing make PyTorch import its compiler: 2.5 CPU seconds.
    with torch.device("meta"), _NoInitialValues():
        return VAR(config), VQVAE(config)


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Fill with weights of unit gain, norms near one, small biases: activations stay in a trained model's range."""
    for name, parameter in module.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        with torch.no_grad():
            if leaf == "scale_mul_1H11":
                parameter.fill_(2.0)
            elif leaf == "ada_gss" or (leaf == "bias" and "ada_lin" in name):
                parameter.normal_(0, 0.3, generator=generator)
            elif parameter.ndim >= 2 and "embedding" not in name:
                fan_in = parameter[0].numel() if leaf == "weight" else parameter.shape[-1]
                parameter.normal_(0, fan_in**-0.5, generator=generator)
            else:
                parameter.normal_(0, 0.02, generator=generator)
                if "norm" in name and leaf == "weight":
                    parameter.add_(1)
                elif "embedding" in name:
                    parameter.mul_(50)
