"""The one table of graph inputs and outputs. Exporter, manifest, backends and documentation read it.

Dimension names: B images, N rows in the transformer (an image with guidance owns two rows, one without
owns one), L tokens of this scale, M tokens of the next (L' in the text), P cached tokens, T tokens of all
scales, C width, H heads, d head size, D depth, V vocabulary, Z latent channels, S latent side, SS = S*S,
R image side in pixels. L, M, P, B and N vary from call to call; the rest is fixed by the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.spec import choices
from engines.spec.config import ModelConfig, num_phi
from engines.spec.sampling import IN_GRAPHS

CONTRACT_VERSION = 1
"""Changes when a bundle written before can no longer be run by this code."""

CACHE = "cache"  # stands for the element type of the KV cache, which the precision of a bundle decides
CACHE_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    dtype: str
    """Name of the element type in numpy, or `cache`."""
    dims: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its tensors, in the order of the ONNX file."""

    name: str
    meaning: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __iter__(self) -> Iterator[TensorSpec]:
        yield from self.inputs
        yield from self.outputs


@dataclass(frozen=True)
class TensorInfo:
    """A `TensorSpec` of one model and precision: numpy dtype name, and a number or a varying name per dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


def specs_of(text: str) -> tuple[TensorSpec, ...]:
    """Read tensors from text, a line `name dtype (dims) meaning` for each."""
    specs = []
    for line in filter(str.strip, text.splitlines()):
        head, _, rest = line.strip().partition("(")
        name, dtype = head.split()
        dims, _, meaning = rest.partition(")")
        specs.append(TensorSpec(name, dtype, tuple(dims.replace(",", " ").split()), meaning.strip()))
    return tuple(specs)


_ROWS = """
    cond_row      int64   (B)  row that holds the image's class-conditional half
    uncond_row    int64   (B)  row that holds its unconditional half; cond_row again where guidance is 0
    image_row     int64   (N)  image that each row belongs to
"""


def _sampling(*, opt_in: bool) -> str:
    """The lines of the options that a step takes as they are."""
    options = [option for option in IN_GRAPHS if option.opt_in == opt_in and not option.per_scale]
    return "".join(f"{option.name} {option.dtype} (B) {option.meaning}\n" for option in options)


_FORCED = """
    forced_tokens int64   (B, *)        tokens to take where forced_mask says so
    forced_mask   bool    (B, *)        true where the token is given
"""
_SMOOTHING = (
    _sampling(opt_in=True)
    + """
    noise         float32 (B, *, V)     in (0, 1): what Gumbel noise is made of; in bundles built for it
"""
)
_MODULATION = """
    adaln         float32 (N, D, 6, C)  per block: gamma1, gamma2, 1+scale1, 1+scale2, shift1, shift2
    head_adaln    float32 (N, 2, C)     1+scale, shift of the norm before the head
"""

COND = GraphSpec(
    "cond",
    "what depends on the class alone: AdaLN vectors and the first input",
    specs_of("labels int64 (N)  class of each row; the number of classes stands for no class"),
    specs_of(_MODULATION + "x float32 (N, L0, C)  input of the first scale"),
)
STEP = GraphSpec(
    "step",
    "one scale: transformer, sampler, quantiser, and the input of the next scale",
    specs_of(
        "x float32 (N, L, C)  input of this scale"
        + _MODULATION
        + """
    past_k_{i}    cache   (P, N, H, d)  keys of the coarser scales, per block
    past_v_{i}    cache   (P, N, H, d)  values of the coarser scales, per block
    f_hat         float32 (B, Z, S, S)  feature map accumulated so far
    uniforms      float32 (B, L)        one number in [0, 1) decides each draw
    guidance      float32 (B)           t = cfg * scale / (number of scales - 1)
    """
        + _sampling(opt_in=False)
        + _ROWS
        + _FORCED.replace("*", "L")
        + _SMOOTHING.replace("*", "L")
        + """
    up            float32 (SS, L)       bicubic enlargement from this scale, as a matrix
    down          float32 (M, SS)       area reduction to the next scale, as a matrix
    phi_index     int64   (1)           which phi convolution serves this scale
    mixing        float32 (2)           gain of the logits and temperature of the mixing; in bundles built for it
    pos_next      float32 (1, M, C)     position and level embedding of the next scale
    """
    ),
    specs_of("""
    tokens        int64   (B, L)        the token map of this scale: drawn, or forced
    drawn         int64   (B, L)        what the sampler drew, forced or not
    f_hat_out     float32 (B, Z, S, S)  feature map with this scale added
    x_next        float32 (N, M, C)     input of the next scale
    new_k_{i}     cache   (L, N, H, d)  keys of this scale, per block
    new_v_{i}     cache   (L, N, H, d)  values of this scale, per block
    logits        float32 (B, L, V)     guided logits before temperature
    mixed         float32 (B, L, Z)     codebook entries mixed, forced or not; in bundles built for it
    """),
)
DECODE = GraphSpec(
    "decode",
    "feature map to pixels",
    specs_of("f_hat float32 (B, Z, S, S)  feature map"),
    specs_of("image uint8 (B, R, R, 3)  RGB, rounded to nearest"),
)
ENCODE = GraphSpec(
    "encode",
    "pixels to token maps",
    specs_of("image uint8 (B, R, R, 3)  RGB"),
    specs_of("tokens int64 (B, T)  token maps of all scales, coarse to fine"),
)
ACCUMULATE = GraphSpec(
    "accumulate",
    "token maps to feature map, without the transformer",
    specs_of("tokens int64 (B, T)  token maps of all scales, coarse to fine"),
    specs_of("f_hat float32 (B, Z, S, S)  feature map"),
)
FUSED = GraphSpec(
    "fused",
    "class to image in one call: every scale, sampling and the decoder",
    specs_of(
        """
    labels        int64   (N)     class of each row
    uniforms      float32 (B, T)  one number in [0, 1) decides each draw
    """
        + "".join(f"{option.name} {option.dtype} (B) {option.meaning}\n" for option in IN_GRAPHS if option.per_scale)
        + _sampling(opt_in=False)
        + _ROWS
        + _FORCED.replace("*", "T")
        + _SMOOTHING.replace("*", "T")
    ),
    specs_of("""
    tokens        int64   (B, T)        token maps of all scales, coarse to fine: drawn, or forced
    drawn         int64   (B, T)        what the sampler drew, forced or not
    image         uint8   (B, R, R, 3)  RGB, rounded to nearest
    """),
)
GRAPHS = {graph.name: graph for graph in (COND, STEP, DECODE, ENCODE, ACCUMULATE, FUSED)}
_GRAPHS_OF = {choices.STEPWISE: ("cond", "step"), choices.FUSED: ("fused",)}
COMMON_GRAPHS = ("decode", "encode", "accumulate")
PARTS = TRANSFORMER, DECODER, ENCODER = ("transformer", "decoder", "encoder")
PART_OF = {"cond": TRANSFORMER, "step": TRANSFORMER, "decode": DECODER, "encode": ENCODER}
"""Which part of the model a graph with trained layers belongs to."""
SMOOTHING = (*(option.name for option in IN_GRAPHS if option.opt_in), "noise", "mixing", "mixed")
"""Inputs and outputs that only the graphs of a bundle that was built with smoothing have."""


def storage(dtype: str) -> np.dtype[Any]:
    """How numpy holds a tensor of this type: bfloat16, which it does not know, as the 16 bits of uint16.

    Only the KV cache of a BF16 bundle has that type, and no host reads it.
    """
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def graphs_of(form: str) -> tuple[str, ...]:
    """Names of the graphs in a bundle of this form, one of `engines.spec.choices.BUNDLE_FORMS`."""
    forms = choices.FORMS if form == choices.BOTH else (form,)
    return (*(graph for name in forms for graph in _GRAPHS_OF[name]), *COMMON_GRAPHS)


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """The dimensions that are fixed for one model, by their names in this table."""
    return {
        "T": config.num_tokens,
        "L0": config.scale_lengths[0],
        "C": config.transformer.width,
        "H": config.transformer.heads,
        "d": config.transformer.head_dim,
        "D": config.transformer.depth,
        "V": config.vae.vocab_size,
        "Z": config.vae.z_channels,
        "S": config.latent_size,
        "SS": config.latent_size**2,
        "R": config.image_size,
    }


def resolve(
    graph: GraphSpec, config: ModelConfig, precision: str, *, smooth: bool = False
) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of `graph` for one model, built with smoothing or not: one per block where a name has {i}."""
    sizes = sizes_of(config)
    absent = (*(() if num_phi(config) else ("phi_index",)), *(() if smooth else SMOOTHING))

    def expand(specs: tuple[TensorSpec, ...]) -> tuple[TensorInfo, ...]:
        infos = []
        for spec in (spec for spec in specs if spec.name not in absent):
            blocks = range(config.transformer.depth if "{i}" in spec.name else 1)
            dtype = CACHE_DTYPES[precision] if spec.dtype == CACHE else spec.dtype
            shape = tuple(int(dim) if dim.isdigit() else sizes.get(dim, dim) for dim in spec.dims)
            infos += [TensorInfo(spec.name.format(i=i), dtype, shape, spec.meaning) for i in blocks]
        return tuple(infos)

    return expand(graph.inputs), expand(graph.outputs)


def scale_constant_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Arrays of float32 that the loop feeds to `step`: up_s, down_s, pos_s of each scale s, by name."""
    area, C = config.latent_size**2, config.transformer.width
    shapes: dict[str, tuple[int, ...]] = {}
    for scale, length in enumerate(config.scale_lengths):
        shapes |= {f"up_{scale}": (area, length), f"down_{scale}": (length, area), f"pos_{scale}": (1, length, C)}
    return shapes
