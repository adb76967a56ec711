"""Whether OpenVINO's integer kernels are exact on this processor, found out by running one.

On x86 without VNNI instructions they add pairs of products in 16 bits, as ONNX Runtime's do, which saturates. There is
no exact 8-bit kernel to take instead: where the probe finds saturation, 8-bit layers are computed in floating point.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

FLOAT_LAYERS = {"LP_TRANSFORMS_MODE": "OFF"}
"""Option of the CPU that leaves quantised layers in floating point: what they give is exact, and slower."""
_LARGEST, _WEIGHT, _PRODUCTS = 255, 127, 64


@functools.cache
def saturates(ov: Any) -> bool:
    """True where a product of 8-bit activations (unsigned) and weights (signed) gives another sum than it has."""
    ops = ov.opset13
    given = ops.parameter([4, _PRODUCTS], np.float32)
    low, high = np.float32(0), np.float32(_LARGEST)
    activations = ops.fake_quantize(given, low, high, low, high, _LARGEST + 1)
    stored = ops.convert(ops.constant(np.full((16, _PRODUCTS), _WEIGHT, np.int8)), np.float32)
    weights = ops.multiply(stored, ops.constant(np.ones((16, 1), np.float32)))
    model = ov.Model([ops.matmul(activations, weights, False, True)], [given])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    (sums,) = ov.Core().compile_model(model, "CPU", options)({0: np.full((4, _PRODUCTS), high)}).values()
    return not bool((sums == _PRODUCTS * _LARGEST * _WEIGHT).all())
