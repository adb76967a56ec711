"""What one call of `cond` and of `step` costs, in closed form: every matrix product with its FLOPs and bytes.

Counted from the graphs: `tests/graph_costs.py` walks the exported ONNX files, and tests hold these numbers to what it
finds, node by node. One multiplication and one addition are two FLOPs. Element-wise operators, normalisations,
softmax and the sort of the sampler are not counted: a runtime fuses most of them into their neighbours, and leaving
them out keeps the sum below what any run does.

Letters as in `engines/spec/contract.py`: B images, N rows, L tokens of this scale, M of the next, P cached, C width,
H heads, d head size, D depth, V vocabulary, Z latent channels, S latent side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engines.spec.config import ModelConfig, num_phi
from engines.spec.policy import FLOAT

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of a number of the compute type, by precision of a bundle: GEMMs, convolutions, attention and KV cache."""

GEMM = "gemm"  # weights on one side
ATTENTION = "attention"  # a product of two activations
CONVOLUTION = "convolution"
RESAMPLE = "resample"  # constant matrices between scales, float32
PREFIX_SUM = "prefix-sum"  # triangular matrices of the sampler, float32
MIXTURE = "mixture"  # codebook entries, weighed, where a bundle was built with smoothing; float32

PHI_KERNEL = 3  # side of the phi convolutions (`models/quant.py`)


@dataclass(frozen=True)
class Weight:
    """A trained matrix or kernel with its bias, of one layer or of several that are alike."""

    layers: tuple[str, ...]
    """Names of the layers, as `engines.spec.policy` knows them."""
    inside: int
    """Terms that each output sums: input channels, times the cells of a kernel."""
    outside: int
    """Number of output channels."""
    way: str = FLOAT
    """How the layers are computed: one of `engines.spec.policy.METHODS`."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One product of matrices, or one convolution. Bytes count each operand once."""

    name: str
    kind: str
    dtype: str
    """The type that the product is computed in: `fp32`, `fp16`, `bf16` or `int8`."""
    flops: int
    weight_bytes: int = 0
    """Bytes of the constants: the matrix or kernel, and the bias that is added to the product."""
    read_bytes: int
    """Bytes of the operands that are activations."""
    write_bytes: int
    """Bytes of the result."""
    held_bytes: int = 0
    """Bytes of other activations that a later operation needs, so that they stay in memory meanwhile."""
    count: int = 1
    """How many times the operation runs in the call, each time with weights of its own."""
    weight: Weight | None = None
    """The weight, where a quantised bundle may hold it in integers (`engines.sizing.quantised`)."""

    @property
    def live_bytes(self) -> int:
        """Bytes of activations in memory while the operation runs."""
        return self.read_bytes + self.write_bytes + self.held_bytes


def total_flops(operations: Iterable[Operation]) -> dict[str, int]:
    """FLOPs of all operations, by the type that they are computed in."""
    flops: dict[str, int] = {}
    for op in operations:
        flops[op.dtype] = flops.get(op.dtype, 0) + op.flops * op.count
    return flops


def total_weights(operations: Iterable[Operation], *kinds: str) -> int:
    """Bytes of the constants of all operations, or of those of some kinds."""
    return sum(op.weight_bytes * op.count for op in operations if not kinds or op.kind in kinds)


def gemm(
    name: str, precision: str, rows: int, inside: int, outside: int, layers: Sequence[str], *, held: int = 0
) -> Operation:
    """(rows, inside) @ (inside, outside) + (outside,) with everything in the compute type, once for each layer."""
    size = BYTES[precision]
    return Operation(
        name=name,
        kind=GEMM,
        dtype=precision,
        flops=2 * rows * inside * outside,
        weight_bytes=(inside + 1) * outside * size,
        read_bytes=rows * inside * size,
        write_bytes=rows * outside * size,
        held_bytes=held,
        count=len(layers),
        weight=Weight(tuple(layers), inside, outside),
    )


def constant_product(name: str, kind: str, rows: int, inside: int, outside: int, *, held: int = 0) -> Operation:
    """(rows, inside) @ a constant (inside, outside), in float32."""
    size = BYTES["fp32"]
    return Operation(
        name=name,
        kind=kind,
        dtype="fp32",
        flops=2 * rows * inside * outside,
        weight_bytes=inside * outside * size,
        read_bytes=rows * inside * size,
        write_bytes=rows * outside * size,
        held_bytes=held,
    )


def convolution(
    name: str,
    precision: str,
    images: int,
    channels: tuple[int, int],
    side: int,
    kernel: int,
    *,
    held: int = 0,
    weight: Weight | None = None,
) -> Operation:
    """A convolution with bias from so many channels to so many, of square maps that keep their side."""
    inside, outside = channels
    cells, taps, size = images * side * side, inside * kernel * kernel, BYTES[precision]
    return Operation(
        name=name,
        kind=CONVOLUTION,
        dtype=precision,
        flops=2 * cells * outside * taps,
        weight_bytes=(taps + 1) * outside * size,
        read_bytes=cells * inside * size,
        write_bytes=cells * outside * size,
        held_bytes=held,
        weight=weight,
    )


def cond_operations(config: ModelConfig, precision: str, labels: int) -> list[Operation]:
    """The `cond` graph for some labels: AdaLN vectors of all blocks and of the head."""
    sizes = config.transformer
    layers = ["cond/shared"] if sizes.shared_aln else [f"cond/linears.{block}" for block in range(sizes.depth)]
    return [
        gemm("adaln", precision, labels, sizes.width, 6 * sizes.width, layers),
        gemm("head_adaln", precision, labels, sizes.width, 2 * sizes.width, ["cond/head"]),
    ]


def next_tokens(config: ModelConfig, scale: int, form: str) -> int:
    """Number of tokens M that the step at `scale` prepares: those of the next scale.

    Nothing follows the last scale. The loop then asks for one token, which nobody reads; the fused graph leaves the
    preparation out.
    """
    if scale + 1 < config.num_scales:
        return config.scale_lengths[scale + 1]
    return 1 if form == "stepwise" else 0


def step_operations(
    config: ModelConfig,
    precision: str,
    scale: int,
    *,
    images: int,
    rows: int,
    max_top_k: int,
    form: str = "stepwise",
    smooth: bool = False,
) -> list[Operation]:
    """The `step` graph at one scale, or that scale inside the fused graph, for B images in N rows.

    `smooth`: as the bundle was built; the graph mixes codebook entries then, whoever asked for it.
    """
    L, V, Z = config.scale_lengths[scale], config.vae.vocab_size, config.vae.z_channels
    # Weights of all codebook entries @ the codebook, which the lookup of tokens has too.
    mixture = [constant_product("mixture", MIXTURE, images * L, V, Z)] if smooth else []
    return [
        *_blocks(config, precision, scale, rows),
        *_head_and_sampler(config, precision, images * L, max_top_k),
        *mixture,
        *_quantizer(config, precision, images, L, next_tokens(config, scale, form)),
    ]


def _blocks(config: ModelConfig, precision: str, scale: int, rows: int) -> list[Operation]:
    sizes, size = config.transformer, BYTES[precision]
    L, P, C, F = config.scale_lengths[scale], config.scale_offsets[scale], sizes.width, sizes.mlp_hidden
    tokens, seen = rows * L, rows * (P + L)
    residual = tokens * C * BYTES["fp32"]  # the stream that every block adds to
    scores = rows * sizes.heads * L * (P + L)

    def part(name: str, inside: int, outside: int) -> Operation:
        layers = [f"step/blocks.{block}.{name}" for block in range(sizes.depth)]
        return gemm(f"block.{name.rpartition('.')[2]}", precision, tokens, inside, outside, layers, held=residual)

    def attention(name: str, read: int, write: int) -> Operation:
        return Operation(
            name=f"block.attention.{name}",
            kind=ATTENTION,
            dtype=precision,
            flops=2 * scores * sizes.head_dim,
            read_bytes=read * size,
            write_bytes=write * size,
            held_bytes=residual,
            count=sizes.depth,
        )

    return [
        part("attention.qkv", C, 3 * C),
        attention("scores", tokens * C + seen * C, scores),
        attention("values", scores + seen * C, tokens * C),
        part("attention.proj", C, C),
        part("fc1", C, F),
        part("fc2", F, C),
    ]


def _head_and_sampler(config: ModelConfig, precision: str, tokens: int, max_top_k: int) -> list[Operation]:
    V = config.vae.vocab_size
    scaled = tokens * V * BYTES["fp32"]  # logits over temperature: the listed draw and the whole one both read them
    return [
        gemm("head", precision, tokens, config.transformer.width, V, ["step/head"]),
        *_prefix_sum("sampler.listed", tokens, min(max_top_k, V), scaled),
        *_prefix_sum("sampler.whole", tokens, V, 0),
    ]


def _prefix_sum(name: str, tokens: int, length: int, held: int) -> list[Operation]:
    """Running sums of `length` numbers per token, in blocks of `side`: inside the blocks, then over their sums."""
    side = math.isqrt(length - 1) + 1
    return [
        constant_product(f"{name}.inside", PREFIX_SUM, tokens * side, side, side, held=held),
        constant_product(f"{name}.across", PREFIX_SUM, tokens, side, side, held=held),
    ]


def _quantizer(config: ModelConfig, precision: str, images: int, L: int, M: int) -> list[Operation]:
    Z, side, cells = config.vae.z_channels, config.latent_size, config.latent_size**2
    operations = [constant_product("up", RESAMPLE, images * Z, L, cells)]
    if channels := num_phi(config) * Z:  # all phis in one convolution, of which a scale takes its own
        operations.append(convolution("phi", "fp32", images, (Z, channels), side, PHI_KERNEL))
    if M:
        operations += [
            constant_product("down", RESAMPLE, images * Z, cells, M),
            gemm("word_embed", precision, images * M, Z, config.transformer.width, ["step/word_embed"]),
        ]
    return operations
