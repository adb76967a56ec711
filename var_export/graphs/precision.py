"""Which element types a traced graph computes in: decided when tracing, since TensorRT 11 has no flags for it.

GEMMs, convolutions and the KV cache take the compute type; the residual stream, normalisations,
softmax, the quantiser and sampling stay float32. BF16 is for TensorRT: its parser takes BF16 convolutions at opset 20,
where the ONNX standard has them from 22 on, and ONNX Runtime refuses them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Precision:
    """The name of a precision and its compute type, the element type of products and of the KV cache."""

    name: str
    compute: torch.dtype

    def low(self, x: Tensor) -> Tensor:
        """Cast `x` to the compute type."""
        return x.to(self.compute)

    @staticmethod
    def high(x: Tensor) -> Tensor:
        """Cast `x` to float32, the type of everything that is no product."""
        return x.to(torch.float32)


PRECISIONS = {
    "fp32": Precision("fp32", torch.float32),
    "fp16": Precision("fp16", torch.float16),
    "bf16": Precision("bf16", torch.bfloat16),
}


def frozen(x: Tensor) -> nn.Parameter:
    """`x` as a weight that a traced graph stores: contiguous, in its own type, without gradient."""
    return nn.Parameter(x.detach().contiguous(), requires_grad=False)
