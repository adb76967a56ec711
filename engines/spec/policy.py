"""Which layers of an INT8 or INT4 bundle are quantised, and how: levels as TensorRT's users know them, and patterns.

Layers are names here (`step/blocks.3.fc1`, see `calib.graphs.layers`). Calibration, sizing and inspection read this
table.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from engines.errors import UsageError
from engines.spec.choices import DEFAULT_LEVEL, INT4, INT8, LEVELS, ONNXRUNTIME
from engines.spec.config import ModelConfig

LINEAR_ROLES = ("qkv", "proj", "fc1", "fc2", "head", "word_embed")
"""What the transformer's layers do, which is the last part of their names."""
CONVOLUTION, ADALN, OTHER = "conv", "adaln", "other"
FLOAT, STATIC, PER_TOKEN, PER_BLOCK = "float", "static", "per-token", "per-block"
FOUR_BITS, PER_CLASS = "4-bit", "per-class"
"""Ways to compute a layer.

    float      as it is
    static     8-bit activations with one range for all inputs, 8-bit weights per output channel: Q/DQ
    per-token  8-bit activations with a range for each token, found as it comes; 8-bit weights per output channel
    per-block  8-bit activations with a range for each block of a token's channels; 8-bit weights per block
    4-bit      4-bit weights per block; activations as per-block on the CPU, as they are on GPUs
    per-class  no product: what it gives for each class is looked up in a table of 8 bits
"""
METHODS = (FLOAT, STATIC, PER_TOKEN, PER_BLOCK, FOUR_BITS, PER_CLASS)
BLOCK = 32
"""Channels that share a scale in a per-block layer of an INT8 bundle."""
LARGE_BLOCK = 128
"""Channels that share a scale in an INT4 bundle."""
EDGES = ("decode/post_quant_conv", "decode/conv_in", "encode/conv_out", "encode/quant_conv")
"""Small convolutions beside the codebook, whose errors everything after them sees: always in float."""
_NARROW = 1024
"""Width of the smallest official model."""
_ROLES = {1: (CONVOLUTION,), 2: ("qkv", "proj", "fc1"), 3: ("fc2", "head")}
_FOUR_BIT_ROLES = {1: ("qkv", "proj"), 2: ("fc2",), 3: ("fc1",)}


def role_of(name: str) -> str:
    """The role of a layer: one of `LINEAR_ROLES`, `CONVOLUTION` (decoder, encoder), `ADALN` (`cond`), or `OTHER`."""
    graph, _, path = name.partition("/")
    if graph == "cond":
        return ADALN
    if graph in ("decode", "encode"):
        return CONVOLUTION
    role = path.rpartition(".")[2]
    return role if role in LINEAR_ROLES else OTHER


def matches(layer: str, patterns: Iterable[str]) -> bool:
    """Whether one of these shell patterns fits a layer's name."""
    return any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)


def block_size(K: int, precision: str) -> int:
    """How many of K channels share a scale in a bundle of this precision: of INT4 the most that K is a multiple of."""
    sizes = (LARGE_BLOCK, LARGE_BLOCK // 2) if precision == INT4 else ()
    return next((size for size in sizes if K % size == 0), BLOCK)


def adaln_way(config: ModelConfig, target: str) -> str:
    """How INT4 holds AdaLN: as a table where that is smaller than its weights in 8 bits, there being fewer classes than
    rows of weights.
    """
    few = config.transformer.num_classes < config.transformer.width
    return PER_CLASS if few else PER_BLOCK if target == ONNXRUNTIME else FOUR_BITS


def usual_level(config: ModelConfig, precision: str) -> int:
    """The level where none is asked for: 2, and of INT4 1 for a narrow model.

    Every weight of those counts for more, and most of their bytes are the VQ-VAE's: with the demo (width 256) level 2
    of INT4 multiplies the KL by 5, for 5 % of the bytes.
    """
    return LEVELS[0] if precision == INT4 and config.transformer.width < _NARROW else DEFAULT_LEVEL


def assign(
    layers: Iterable[str],
    target: str,
    level: int,
    *,
    precision: str = INT8,
    adaln: str = PER_CLASS,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> dict[str, str]:
    """The way to compute each layer of a quantised bundle, by its name.

    Args:
        layers: names, of all graphs.
        target: `onnxruntime` (CPU) or `tensorrt`.
        level: of INT8: 1 the decoder's and the encoder's convolutions; 2 also qkv, proj and fc1; 3 also fc2 and head.
            Of INT4, what has 4-bit weights: 1 qkv and proj; 2 also fc2; 3 also fc1; the rest is as INT8's level 2.
        precision: `int8` or `int4`.
        adaln: how INT4 holds AdaLN, as `adaln_way` tells.
        include: shell patterns over layer names (`step/blocks.?.fc2`) to quantise with static ranges; in INT4 products
            of the transformer get 4-bit weights.
        exclude: patterns to leave as they are; they win.

    On the CPU, fc1 and fc2 have ranges per token at level 2, since no range fits their inputs for all tokens. AdaLN,
    and the head where it is not static, are per block: that takes the most time and loses the least, and it makes
    their weights small. Level 3 is static and the fastest.

    Raises `UsageError` for a pattern that fits no layer, and for AdaLN with static ranges.

    """
    layers = list(layers)
    for pattern in (*include, *exclude):
        if not any(matches(layer, (pattern,)) for layer in layers):
            raise UsageError(f"no layer is called like {pattern!r}; docs/int8.md says what they are called")
    four_bits = {role for at in LEVELS if at <= level for role in _FOUR_BIT_ROLES[at]} if precision == INT4 else set()
    level = DEFAULT_LEVEL if precision == INT4 else level
    wanted = {role for at in LEVELS if at <= level for role in _ROLES[at]}
    ways = {}
    for layer in layers:
        role = role_of(layer)
        way = STATIC if role in wanted and layer not in EDGES else FLOAT
        if target == ONNXRUNTIME:
            if role in (ADALN, "head") and way == FLOAT:
                way = PER_BLOCK
            if role in ("fc1", "fc2") and level == 2:
                way = PER_TOKEN
        if precision == INT4 and role == ADALN:
            way = adaln
        if role in four_bits:
            way = FOUR_BITS
        if matches(layer, include):
            if precision == INT8 and role == ADALN:
                raise UsageError(f"{layer} depends on the class alone and runs once: there is nothing to calibrate")
            if way != PER_CLASS:  # which is as small, and closer
                way = FOUR_BITS if precision == INT4 and role != CONVOLUTION else STATIC
        if matches(layer, exclude):
            way = FLOAT
        ways[layer] = way
    return ways
