"""INT8 and INT4 in an estimate: what they change of the operations that are counted in floating point.

    weights      integers with scales, in the forms that `calib/rewrite/integers.py` writes
    products     INT8 arithmetic, at the rate of the INT8 tensor cores; on GPUs FP16 where weights have 4 bits
    the rest     as it was: attention, activations between layers, KV cache, sampler, in the high precision

A product reads activations in the high precision and writes them so, as NVIDIA's INT8 kernels between Q/DQ pairs do;
where a runtime keeps 8 bits between two convolutions it moves less inside a call, which is not counted anyway.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engines.sizing import cost
from engines.sizing.cost import BYTES, Operation, Weight
from engines.sizing.decoder import decode_operations
from engines.spec.choices import HIGH_PRECISIONS, INT8, ONNXRUNTIME
from engines.spec.config import ModelConfig
from engines.spec.policy import FLOAT, FOUR_BITS, PER_BLOCK, PER_CLASS, PER_TOKEN, block_size

_SCALE, _BIAS = BYTES["fp32"], 4  # float32 scales, an int32 bias


@dataclass(frozen=True)
class Quantisation:
    """How the layers of a workload are computed; the default is none of them in integers."""

    target: str = ONNXRUNTIME
    """Which form quantised weights have: `onnxruntime` (CPU) or `tensorrt`."""
    ways: Mapping[str, str] = field(default_factory=dict)
    """How each layer is computed (`engines.spec.policy.METHODS`); a layer that is not here is in floating point."""
    precision: str = INT8
    """`int8` or `int4`."""
    classes: int = 0
    """Rows of a table of classes, the unconditional one among them."""

    def apply(self, operations: Iterable[Operation]) -> list[Operation]:
        """The operations with integers where the ways say so: one that stands for several layers becomes one a way."""
        applied = []
        for op in operations:
            if op.weight is None:
                applied.append(op)
                continue
            layers: dict[str, list[str]] = {}
            for layer in op.weight.layers:
                layers.setdefault(self.ways.get(layer, FLOAT), []).append(layer)
            for way, names in layers.items():
                weight = dataclasses.replace(op.weight, layers=tuple(names), way=way)
                part = dataclasses.replace(op, count=len(names), weight=weight)
                if way != FLOAT:
                    floating = way == FOUR_BITS and self.target != ONNXRUNTIME
                    dtype = op.dtype if floating else INT8
                    part = dataclasses.replace(part, dtype=dtype, weight_bytes=self.weight_bytes(weight))
                if way == PER_CLASS:
                    part = dataclasses.replace(part, flops=0)
                applied.append(part)
        return applied

    def weight_bytes(self, weight: Weight) -> int:
        """Bytes of one layer in integers: these, scales, zero points and bias."""
        K, N = weight.inside, weight.outside
        if weight.way == PER_TOKEN:
            return N * (K + _SCALE + 1 + _SCALE)  # the last: a bias in float32
        if weight.way == PER_BLOCK:
            block = block_size(K, self.precision)
            return N * (-(-K // block) * (block + _SCALE) + _SCALE)  # and that bias
        if weight.way == PER_CLASS:
            size = BYTES[HIGH_PRECISIONS[self.target]]
            zero = self.target != ONNXRUNTIME
            return N * (self.classes + 2 * size + zero)  # a step and the lowest value, which the bias is added to
        if weight.way == FOUR_BITS:
            return self._four_bits(K, N)
        if self.target == ONNXRUNTIME:
            return N * (K + _SCALE + 1 + _BIAS + _SCALE + _BIAS)  # the bias too has scales and zero points
        half = BYTES[HIGH_PRECISIONS[self.target]]
        return N * (K + half + 1 + half)

    def _four_bits(self, K: int, N: int) -> int:
        block = block_size(K, self.precision)
        blocks = -(-K // block)
        if self.target != ONNXRUNTIME:
            half = BYTES[HIGH_PRECISIONS[self.target]]
            return N * (blocks * (block // 2 + half) + half)
        zeros = N * blocks // 2 if blocks % 2 == 0 else 0
        return N * (blocks * (block // 2 + BYTES["fp16"]) + _SCALE) + zeros


FLOATS = Quantisation()


def layer_names(config: ModelConfig) -> list[str]:
    """Names of the layers of `cond`, `step` and `decode`, the graphs that an estimate counts."""
    operations = [
        *cost.cond_operations(config, "fp32", 1),
        *cost.step_operations(config, "fp32", 0, images=1, rows=1, max_top_k=1),
        *decode_operations(config, "fp32", 1),
    ]
    return [layer for op in operations if op.weight is not None for layer in op.weight.layers]


def weights_by_way(operations: Iterable[Operation]) -> dict[str, int]:
    """Bytes of the layers' weights by the way they are computed."""
    sizes: Counter[str] = Counter()
    for op in operations:
        if op.weight is not None:
            sizes[op.weight.way] += op.weight_bytes * op.count
    return dict(sizes)
