"""Which element types a traced graph computes in (DESIGN: types are decided when tracing, not by flags).

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
    """A policy resolved once, before export."""

    name: str
    compute: torch.dtype

    def low(self, x: Tensor) -> Tensor:
        """Into the compute type."""
        return x.to(self.compute)

    @staticmethod
    def high(x: Tensor) -> Tensor:
        """Into float32."""
        return x.to(torch.float32)


PRECISIONS = {
    "fp32": Precision("fp32", torch.float32),
    "fp16": Precision("fp16", torch.float16),
    "bf16": Precision("bf16", torch.bfloat16),
}


def frozen(x: Tensor) -> nn.Parameter:
    """A weight of a traced graph."""
    return nn.Parameter(x.detach().contiguous(), requires_grad=False)
