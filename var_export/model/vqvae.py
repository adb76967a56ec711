"""The multi-scale VQ-VAE: images <-> token maps (paper section 3.2; `models/vqvae.py`)."""

from __future__ import annotations

from torch import Tensor, nn

from engines.spec.config import ModelConfig
from var_export.model.autoencoder import Decoder, Encoder, from_pixels, to_pixels
from var_export.model.quantizer import MultiScaleQuantizer


class VQVAE(nn.Module):
    """Encoder, quantiser and decoder under the official key names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vae = config.vae
        padding = vae.quant_conv_ks // 2
        self.config = config
        self.encoder = Encoder(vae)
        self.decoder = Decoder(vae)
        self.quantize = MultiScaleQuantizer(config)
        self.quant_conv = nn.Conv2d(vae.z_channels, vae.z_channels, vae.quant_conv_ks, padding=padding)
        self.post_quant_conv = nn.Conv2d(vae.z_channels, vae.z_channels, vae.quant_conv_ks, padding=padding)

    def decode(self, f_hat: Tensor) -> Tensor:
        """Feature map (B, Z, S, S) -> image uint8 (B, h, w, 3)."""
        return to_pixels(self.decoder(self.post_quant_conv(f_hat)))

    def encode(self, pixels: Tensor) -> Tensor:
        """Image uint8 (B, h, w, 3) -> tokens int64 (B, sum L)."""
        return self.quantize.tokens_of(self.quant_conv(self.encoder(from_pixels(pixels))))
