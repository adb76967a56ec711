"""Which layers of an INT8 bundle are quantised, and how: levels as TensorRT's users know them, and patterns.

Layers are names here (`step/blocks.3.fc1`, see `calib.graphs.layers`). Calibration, sizing and inspection read this
table.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from engines.errors import UsageError
from engines.spec.choices import LEVELS, ONNXRUNTIME

LINEAR_ROLES = ("qkv", "proj", "fc1", "fc2", "head", "word_embed")
"""What the transformer's layers do, which is the last part of their names."""
CONVOLUTION, ADALN, OTHER = "conv", "adaln", "other"
FLOAT, STATIC, PER_TOKEN, PER_BLOCK = "float", "static", "per-token", "per-block"
"""Ways to compute a layer.

    float      as it is
    static     8-bit activations with one range for all inputs, 8-bit weights per output channel: Q/DQ
    per-token  8-bit activations with a range for each token, found as it comes; 8-bit weights per output channel
    per-block  8-bit activations with a range for each block of a token's channels; 8-bit weights per block
"""
METHODS = (FLOAT, STATIC, PER_TOKEN, PER_BLOCK)
BLOCK = 32
"""Channels that share a scale in a per-block layer."""
EDGES = ("decode/post_quant_conv", "decode/conv_in", "encode/conv_out", "encode/quant_conv")
"""Small convolutions beside the codebook, whose errors everything after them sees: always in float."""
_ROLES = {1: (CONVOLUTION,), 2: ("qkv", "proj", "fc1"), 3: ("fc2", "head")}


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


def assign(
    layers: Iterable[str],
    target: str,
    level: int,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> dict[str, str]:
    """The way to compute each layer, by its name.

    Args:
        layers: names, of all graphs.
        target: `onnxruntime` (CPU) or `tensorrt`.
        level: 1 the decoder's and the encoder's convolutions; 2 also qkv, proj and fc1; 3 also fc2 and head.
        include: shell patterns over layer names (`step/blocks.?.fc2`) to quantise with static ranges.
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
        if matches(layer, include):
            if role == ADALN:
                raise UsageError(f"{layer} depends on the class alone and runs once: there is nothing to calibrate")
            way = STATIC
        if matches(layer, exclude):
            way = FLOAT
        ways[layer] = way
    return ways
