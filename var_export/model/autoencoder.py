"""Convolutional encoder and decoder of the VQ-VAE, as in taming-transformers and latent-diffusion.

Module names are those of the official checkpoints (`models/basic_vae.py` of FoundationVision/VAR), so
that a state dict loads strictly. Feature maps are (B, channels, height, width) throughout.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.spec.config import VaeConfig


class Norm(nn.GroupNorm):
    """Group normalisation with the group count and epsilon of the configuration."""

    def __init__(self, config: VaeConfig, channels: int) -> None:
        super().__init__(config.norm_num_groups, channels, eps=config.norm_eps)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and SiLU, added to the input."""

    def __init__(self, config: VaeConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = Norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = Norm(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        h = self.conv1(functional.silu(self.norm1(x), inplace=True))
        h = self.conv2(functional.silu(self.norm2(h), inplace=True))
        y: Tensor = self.nin_shortcut(x) + h
        return y


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells, added to the input."""

    def __init__(self, config: VaeConfig, channels: int) -> None:
        super().__init__()
        self.norm = Norm(config, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same; attention is over the h * w cells."""
        B, C, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, C, h * w).unbind(1)
        weights = (q.transpose(1, 2) @ k * C**-0.5).softmax(dim=2)  # (B, query, key)
        y: Tensor = self.proj_out((v @ weights.transpose(1, 2)).reshape(B, C, h, w))
        return x + y


class Downsample(nn.Module):
    """Halves both sides: 3x3 convolution of stride 2, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        y: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return y


def upsample(channels: int) -> nn.Sequential:
    """Doubles both sides, (B, C, h, w) -> (B, C, 2h, 2w): nearest neighbour, then a 3x3 convolution."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(OrderedDict(enlarge=nn.Upsample(scale_factor=2, mode="nearest"), conv=conv))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where `attention` says so, then the way to the next."""

    def __init__(self, config: VaeConfig, in_channels: int, out_channels: int, blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(config, a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(config, out_channels) for _ in range(blocks) if attention)
        self.downsample: nn.Module = nn.Identity()  # of the encoder, on all but the coarsest level
        self.upsample: nn.Module = nn.Identity()  # of the decoder, on all but the finest level

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h', w'), the sides of the next level."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        y: Tensor = self.upsample(self.downsample(x))
        return y


def middle(config: VaeConfig, channels: int) -> nn.Sequential:
    """Block, attention, block at the coarsest resolution: (B, C, h, w) -> same."""
    attention = AttnBlock(config, channels) if config.using_mid_sa else nn.Identity()
    first, last = ResnetBlock(config, channels, channels), ResnetBlock(config, channels, channels)
    return nn.Sequential(OrderedDict(block_1=first, attn_1=attention, block_2=last))


class Encoder(nn.Module):
    """From an image in [-1, 1] to features, before `quant_conv`: one level for each `ch_mult`, fine to coarse."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in (1, *config.ch_mult)]
        last = len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i in range(last + 1):
            level = Level(config, widths[i], widths[i + 1], config.num_res_blocks, i == last and config.using_sa)
            if i != last:
                level.downsample = Downsample(widths[i + 1])
            self.down.append(level)
        self.mid = middle(config, widths[-1])
        self.norm_out = Norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, Z, h/downsample, w/downsample)."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        y: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(h)), inplace=True))
        return y


class Decoder(nn.Module):
    """From features, after `post_quant_conv`, to an image in about [-1, 1]; levels run coarse to fine."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = middle(config, widths[-1])
        levels = []
        for i in range(last + 1):
            entering = widths[min(i + 1, last)]
            level = Level(config, entering, widths[i], config.num_res_blocks + 1, i == last and config.using_sa)
            if i != 0:
                level.upsample = upsample(widths[i])
            levels.append(level)
        self.up = nn.ModuleList(levels)  # index 0 is the finest level, as in the official key names
        self.norm_out = Norm(config, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z, S, S) -> (B, 3, S*downsample, S*downsample)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        y: Tensor = self.conv_out(functional.silu(self.norm_out(h), inplace=True))
        return y


def to_pixels(image: Tensor) -> Tensor:
    """(B, 3, h, w) about [-1, 1] -> uint8 (B, h, w, 3), rounded to nearest (halves to even)."""
    # Bytes come last: TensorRT has no UINT8 inside a graph, only a cast at its edge.
    return ((image.float().clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8)


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 (B, h, w, 3) -> float32 (B, 3, h, w) in [-1, 1]."""
    return pixels.float().permute(0, 3, 1, 2) / 127.5 - 1
