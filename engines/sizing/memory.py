"""Bytes that a workload needs on the device: weights, KV cache, buffers of the loop, activations inside a call.

Weights, cache and buffers are what the runtime really allocates (`engines/draw/workspace.py`; tests compare them).
Activations are the most that the products of a graph need at one time: operands, result, and what a later product
waits for, with element-wise operators fused into their neighbours and attention scores stored once in the compute
type. A runtime takes more. Two parts of that are known well enough for an allowance, the rest is in `NOT_COUNTED`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engines.backends.host_buffer import images_at_once
from engines.sizing import cost
from engines.sizing.cost import BYTES, CONVOLUTION, GEMM, PREFIX_SUM
from engines.sizing.decoder import decode_norm_bytes
from engines.sizing.quantised import FLOATS, Quantisation, weights_by_way
from engines.sizing.roofline import cache_bytes, modulation_bytes, tensor_bytes
from engines.sizing.workload import Workload
from engines.spec import contract
from engines.spec.config import ModelConfig, num_phi

CONTEXT_BYTES = 300_000_000
"""What a CUDA context takes whose kernels are loaded when used: github.com/pytorch/pytorch/issues/107667 (2023)."""
PLAN_OVERHEAD = 0.2
"""What a TensorRT plan with a static profile per scale takes beyond the weights of `step`, as a share of them: d16 in
FP16 took 496 MB for 411 MB of weights (TensorRT-RTX 1.7.1; one dynamic profile took 433 MB). These are kernels, which
do not shrink with the weights (docs/performance-plans.md): in INT8 the share is of the weights in high precision."""
NOT_COUNTED = (
    "scratch memory of the kernels that a runtime chooses, beyond the activations counted",
    "the host's side of the program, where it shares the memory; the encoder; other programs",
)
_FLOAT, _LONG = BYTES["fp32"], 8


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a workload takes on a device, part by part."""

    transformer: int
    """Weights of `step`, with those of sampler and quantiser."""
    conditioning: int
    """Weights of `cond`."""
    decoder: int
    """Weights of `decode`."""
    scale_constants: int
    """Resampling matrices and position embeddings."""
    kv_cache: int
    loop_buffers: int
    """All else that the scale loop allocates: inputs, outputs, feature maps."""
    step_activations: int
    decoder_activations: int
    """Activations of `decode`, which are never needed at the same time as those of `step`."""
    by_way: Mapping[str, int]
    """Bytes of the layers' weights, by the way the layers are computed (`engines.spec.policy.METHODS`)."""
    allowance: int
    """Estimate for the CUDA context and for what a plan holds beside its weights; 0 on the CPU."""

    @property
    def weights(self) -> int:
        """Bytes of all constants of a bundle that the workload uses."""
        return self.transformer + self.conditioning + self.decoder + self.scale_constants

    @property
    def counted(self) -> int:
        """Bytes that no run does without: `step` and `decode` share one scratch area."""
        scratch = max(self.step_activations, self.decoder_activations)
        return self.weights + self.kv_cache + self.loop_buffers + scratch

    @property
    def total(self) -> int:
        """Bytes that a device should have: what is counted and the allowance."""
        return self.counted + self.allowance

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `counted` is the sum of weights, kv_cache, loop_buffers and the larger of the last two."""
        return {
            "total": self.total,
            "counted": self.counted,
            "runtime_allowance": self.allowance,
            "weights": self.weights,
            "kv_cache": self.kv_cache,
            "loop_buffers": self.loop_buffers,
            "activations": self.step_activations,
            "decoder": self.decoder_activations,
            "weights_by_graph": {
                "transformer": self.transformer,
                "conditioning": self.conditioning,
                "decoder": self.decoder,
                "scale_constants": self.scale_constants,
            },
            "layer_weights_by_way": dict(self.by_way),
        }


def memory(load: Workload) -> Memory:
    """Count the bytes that a workload needs; of a GPU, with what a CUDA context and a plan take."""
    config, precision, fused = load.config, load.high, load.form == "fused"
    decode, cond = load.decode_operations(), load.cond_operations(1)
    steps = [load.step_operations(scale) for scale in range(config.num_scales)]
    # What the fused call keeps between its scales lies in buffers of the loop otherwise.
    feature_map = load.images * config.vae.z_channels * config.latent_size**2 * _FLOAT
    kept = modulation_bytes(config, load.rows) + feature_map if fused else 0
    cached = cache_bytes(config, precision, config.scale_offsets[-1], load.rows)
    if not fused:  # keys and values of the last scale, which all blocks write to one place
        cached += cache_bytes(config, precision, config.scale_lengths[-1], load.rows) // config.transformer.depth
    most = None if fused or load.target != "onnxruntime" else images_at_once("decode", config.image_size)
    at_once = load if most is None else replace(load, images=min(load.images, most))
    allowance = CONTEXT_BYTES + round(PLAN_OVERHEAD * step_weights(config, precision, load.max_top_k))
    return Memory(
        transformer=step_weights(config, precision, load.max_top_k, load.quantisation),
        conditioning=cond_weights(config, precision, load.quantisation),
        decoder=cost.total_weights(decode) + decode_norm_bytes(config) if decode else 0,
        scale_constants=constant_bytes(config, smooth=load.smooth),
        kv_cache=cached,
        loop_buffers=_fused_buffers(load) if fused else _stepwise_buffers(load),
        step_activations=kept + max(op.live_bytes for operations in steps for op in operations),
        decoder_activations=max((op.live_bytes for op in at_once.decode_operations()), default=0),
        by_way=weights_by_way([*cond, *steps[0], *decode]),
        allowance=0 if load.target == "onnxruntime" else allowance,
    )


def step_weights(config: ModelConfig, precision: str, max_top_k: int, quantisation: Quantisation = FLOATS) -> int:
    """Bytes of the constants of `step`."""
    sizes, vae = config.transformer, config.vae
    operations = quantisation.apply(cost.step_operations(config, precision, 0, images=1, rows=1, max_top_k=max_top_k))
    products = cost.total_weights(operations, GEMM, CONVOLUTION, PREFIX_SUM)
    query_scales = sizes.depth * sizes.heads * _FLOAT if sizes.attn_l2_norm else 0
    codebook = vae.vocab_size * vae.z_channels * _FLOAT
    ranks = min(max_top_k, vae.vocab_size) * _LONG
    return products + query_scales + codebook + ranks


def cond_weights(config: ModelConfig, precision: str, quantisation: Quantisation = FLOATS) -> int:
    """Bytes of the constants of `cond`."""
    sizes = config.transformer
    classes = (sizes.num_classes + 1) * sizes.width
    start = config.scale_lengths[0] * sizes.width
    offsets = 6 * sizes.width * (sizes.depth if sizes.shared_aln else 1)  # what is added to the vectors
    head_offsets = 2 * sizes.width
    products = cost.total_weights(quantisation.apply(cost.cond_operations(config, precision, 1)))
    return products + (classes + start + offsets + head_offsets) * _FLOAT


def constant_bytes(config: ModelConfig, *, smooth: bool = False) -> int:
    """Bytes of `draw.workspace.Constants`: enlargements of all scales, reductions and positions but the first."""
    shapes = contract.scale_constant_shapes(config)
    unused = ("down_0", "pos_0")
    stored = sum(math.prod(shape) for name, shape in shapes.items() if name not in unused) * _FLOAT
    nothing_follows = (config.latent_size**2 + config.transformer.width) * _FLOAT
    phis = config.num_scales * _LONG if num_phi(config) else 0
    mixing = 2 * config.num_scales * _FLOAT if smooth else 0
    return stored + nothing_follows + phis + mixing


def _stepwise_buffers(load: Workload) -> int:
    """Bytes of `draw.workspace.Workspace` without the cache, and of `cond`'s tensors for classes not drawn before."""
    config, images, rows = load.config, load.images, load.rows
    inputs, _ = contract.resolve(contract.STEP, config, "fp32", smooth=load.smooth)
    noise_and_mixed = config.num_tokens * (config.vae.vocab_size + config.vae.z_channels) * _FLOAT
    per_image = (
        3 * config.vae.z_channels * config.latent_size**2 * _FLOAT  # zeros, and two feature maps in turns
        + config.num_tokens * (3 * _LONG + _FLOAT + 1)  # tokens, drawn, forced tokens; uniforms; mask
        + config.scale_lengths[-1] * config.vae.vocab_size * _FLOAT  # logits
        + config.num_scales * _FLOAT  # guidance
        + tensor_bytes([info for info in inputs if info.shape == ("B",) and info.name != "guidance"], {"B": 1})
        + (0 if load.tokens_only else 3 * config.image_size**2)
        + (noise_and_mixed if load.smooth else 0)
    )  # fmt: skip
    x = (config.num_tokens + 1) * config.transformer.width * _FLOAT
    labels = images + (rows > images)  # one per image at most, and the unconditional one
    first = config.scale_lengths[0] * config.transformer.width * _FLOAT
    cond = labels * (_LONG + first) + modulation_bytes(config, labels)
    return images * per_image + rows * (x + _LONG) + modulation_bytes(config, rows) + cond


def _fused_buffers(load: Workload) -> int:
    """Bytes of the `engines.draw.workspace.GraphWorkspace` of the fused graph."""
    inputs, outputs = contract.resolve(contract.FUSED, load.config, "fp32", smooth=load.smooth)  # no cache among them
    tensors = [info for info in (*inputs, *outputs) if not (load.tokens_only and info.name == "image")]
    return tensor_bytes(tensors, {"B": load.images, "N": load.rows})
