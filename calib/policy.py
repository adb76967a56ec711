"""Which layers are quantised, and how: levels as TensorRT's users know them, and patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from calib.layers import ADALN, CONVOLUTION, Layer
from engines.errors import UsageError

FLOAT, STATIC, PER_TOKEN = "float", "static", "per-token"
"""Ways to compute a layer.

    float      as it is
    static     8-bit activations with one range for all inputs, 8-bit weights per output channel: Q/DQ
    per-token  8-bit activations whose range is each token's own, block by block; 8-bit weights per block
"""
METHODS = (FLOAT, STATIC, PER_TOKEN)
LEVELS = (1, 2, 3)
EDGES = ("decode/post_quant_conv", "decode/conv_in", "encode/conv_out", "encode/quant_conv")
"""Small convolutions beside the codebook, whose errors everything after them sees: always in float."""
_ROLES = {1: (CONVOLUTION,), 2: ("qkv", "proj", "fc1"), 3: ("fc2", "head")}


def assign(
    layers: Iterable[Layer],
    target: str,
    level: int,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> dict[str, str]:
    """The way to compute each layer, by its name.

    Args:
        layers: of all graphs.
        target: `onnxruntime` (CPU) or `tensorrt`.
        level: 1 the decoder's and the encoder's convolutions; 2 also qkv, proj and fc1; 3 also fc2 and head.
        include: shell patterns over layer names (`step/blocks.?.fc2`) to quantise with static ranges.
        exclude: patterns to leave as they are; they win.

    On the CPU AdaLN and head have per-token ranges at every level, for the size of their weights; and the MLP,
    whose inputs no single range fits, has them at level 2, for a quarter more time. Level 3 is static: the fastest.
    Raises `UsageError` for a pattern that fits no layer, and for AdaLN with static ranges.

    """
    layers = list(layers)
    for pattern in (*include, *exclude):
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in layers):
            raise UsageError(f"no layer is called like {pattern!r}; docs/int8.md says what they are called")
    wanted = {role for at in LEVELS if at <= level for role in _ROLES[at]}
    ways = {}
    for layer in layers:
        way = STATIC if layer.role in wanted and layer.name not in EDGES else FLOAT
        if target == "onnxruntime":
            if layer.role in (ADALN, "head") and way == FLOAT:
                way = PER_TOKEN
            if layer.role in ("fc1", "fc2") and level == 2:
                way = PER_TOKEN
        if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in include):
            if layer.role == ADALN:
                raise UsageError(
                    f"{layer.name} depends on the class alone and runs once: there is nothing to calibrate"
                )
            way = STATIC
        if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in exclude):
            way = FLOAT
        ways[layer.name] = way
    return ways
