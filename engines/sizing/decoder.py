"""What one call of `decode` costs, in closed form: its convolutions and attention products, in the order they run.

Follows `var_export/model/autoencoder.py` (official `models/basic_vae.py`) layer by layer; tests hold the list to the
exported graph. Convolutions are counted as the graph states them, k*k multiplications per output and input channel.
"""

from __future__ import annotations

from engines.sizing.cost import ATTENTION, BYTES, Operation, Weight, convolution
from engines.spec.config import ModelConfig

KERNEL = 3  # side of every convolution but the 1x1 ones and post_quant_conv


class _Layers:
    """Collects operations on square maps of B images; `norms` counts the channels of all normalisations."""

    def __init__(self, config: ModelConfig, precision: str, images: int) -> None:
        self.vae, self.precision, self.images = config.vae, precision, images
        self.size = BYTES[precision]
        self.operations: list[Operation] = []
        self.norms = 0

    def map_bytes(self, channels: int, side: int) -> int:
        return self.images * channels * side * side * self.size

    def conv(self, name: str, inside: int, outside: int, side: int, kernel: int = KERNEL, *, held: int = 0) -> None:
        weight = Weight((f"decode/{name}",), inside * kernel * kernel, outside)
        channels = (inside, outside)
        self.operations.append(
            convolution(name, self.precision, self.images, channels, side, kernel, held=held, weight=weight)
        )

    def resnet(self, name: str, inside: int, outside: int, side: int) -> None:
        """Two convolutions of normalised maps, added to the input, which stays in memory until then."""
        waiting = self.map_bytes(inside, side)
        self.norms += inside + outside
        self.conv(f"{name}.conv1", inside, outside, side, held=waiting)
        self.conv(f"{name}.conv2", outside, outside, side, held=waiting)
        if inside != outside:
            self.conv(f"{name}.nin_shortcut", inside, outside, side, 1, held=self.map_bytes(outside, side))

    def attention(self, name: str, channels: int, side: int) -> None:
        """One head over all cells, added to the input."""
        cells, one = side * side, self.map_bytes(channels, side)
        weights = self.images * cells * cells * self.size
        self.norms += channels

        def product(which: str, read: int, write: int, held: int) -> Operation:
            return Operation(
                name=f"{name}.{which}",
                kind=ATTENTION,
                dtype=self.precision,
                flops=2 * self.images * cells * cells * channels,
                read_bytes=read,
                write_bytes=write,
                held_bytes=held,
            )

        self.conv(f"{name}.qkv", channels, 3 * channels, side, 1, held=one)
        self.operations.append(product("scores", 2 * one, weights, 2 * one))  # the input and v wait
        self.operations.append(product("values", weights + one, one, one))
        self.conv(f"{name}.proj_out", channels, channels, side, 1, held=one)


def _layers(config: ModelConfig, precision: str, images: int) -> _Layers:
    vae, side = config.vae, config.latent_size
    layers = _Layers(config, precision, images)
    widths = [vae.ch * mult for mult in vae.ch_mult]
    coarsest = len(widths) - 1
    width = widths[coarsest]
    layers.conv("post_quant_conv", vae.z_channels, vae.z_channels, side, vae.quant_conv_ks)
    layers.conv("conv_in", vae.z_channels, width, side)
    layers.resnet("mid.block_1", width, width, side)
    if vae.using_mid_sa:
        layers.attention("mid.attn_1", width, side)
    layers.resnet("mid.block_2", width, width, side)
    for level in range(coarsest, -1, -1):
        for block in range(vae.num_res_blocks + 1):
            layers.resnet(f"up.{level}.block.{block}", width, widths[level], side)
            width = widths[level]
            if level == coarsest and vae.using_sa:
                layers.attention(f"up.{level}.attn.{block}", width, side)
        if level:
            side *= 2
            layers.conv(f"up.{level}.upsample.conv", width, width, side)
    layers.norms += width
    layers.conv("conv_out", width, 3, side)
    return layers


def decode_operations(config: ModelConfig, precision: str, images: int) -> list[Operation]:
    """The `decode` graph for B images."""
    return _layers(config, precision, images).operations


def decode_norm_bytes(config: ModelConfig) -> int:
    """Bytes of the scales and shifts of the decoder's normalisations, float32 in every precision."""
    return 2 * _layers(config, "fp32", 1).norms * BYTES["fp32"]
