"""Products whose weights have a scale for each block of channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.layers import Layer, four_bit_constant, read_weight
from calib.rewrite.editor import Editor
from calib.rewrite.weights import quantize_blocks, quantize_four_bits, quantize_symmetric
from engines.spec.policy import block_size

CONTRIB = "com.microsoft"
INT4_OPSET = 21
"""The first of ONNX's operator sets with integers of 4 bits, and scales for blocks."""
INT8_ARITHMETIC = 4
"""`accuracy_level` of MatMulNBits. At 1, in FP32, one row gives other sums alone than among several: tokens would
depend on the batch."""


def put_blocks(editor: Editor, layer: Layer, precision: str, *, bits: int = 8) -> None:
    """A product of ONNX Runtime's with weights in blocks, 8 or 4 bits each, in place of a layer and its bias."""
    weight, bias, array = layer.weight, layer.bias_vector, read_weight(layer.weight)
    K, N = array.shape
    block, zero_points = block_size(K, precision), None
    if bits == 4:
        stored, scales, zero_points = quantize_four_bits(array, block)
    else:
        stored, scales = quantize_blocks(array, block)
    inputs: list[ir.Value | None] = [
        layer.input,
        editor.constant(f"{weight.name}.blocks", stored),
        _scales(editor, layer, bits, scales),
    ]
    if zero_points is not None:
        inputs.append(editor.constant(f"{weight.name}.block_zeros", zero_points))
    if bias is not None:
        inputs += [*[None] * (5 - len(inputs)), bias]
    out = (layer.bias or layer.node).outputs[0]
    product = editor.node(
        "MatMulNBits", inputs, out, f"{layer.name}.product", domain=CONTRIB,
        K=K, N=N, bits=bits, block_size=block, accuracy_level=INT8_ARITHMETIC,
    )  # fmt: skip
    editor.model.opset_imports[CONTRIB] = 1
    editor.put(layer, [product])


def put_four_bit_weight(editor: Editor, layer: Layer, precision: str) -> None:
    """4-bit weights behind a DequantizeLinear, which TensorRT keeps so; the product stays in its type."""
    weight = layer.weight
    assert weight.dtype is not None
    block, name = block_size(len(read_weight(weight)), precision), weight.name or ""
    array, scales = quantize_symmetric(read_weight(weight), block)
    stored = editor.graph.initializers[f"{name}.quantized"] = four_bit_constant(f"{name}.quantized", array)
    steps = editor.constant(f"{name}.scale", scales.astype(weight.dtype.numpy()))
    dequantized = editor.node(
        "DequantizeLinear", [stored, steps], weight, f"{name}.dequantized", axis=0, block_size=block
    )
    editor.model.opset_imports[""] = max(editor.model.opset_imports[""], INT4_OPSET)
    editor.graph.insert_before(layer.node, dequantized)
    layer.node.replace_input_with(1, dequantized.outputs[0])


def _scales(editor: Editor, layer: Layer, bits: int, scales: NDArray[np.float32]) -> ir.Value:
    """The scales of a layer's blocks. Those of 4-bit weights, a sixteenth of the bytes as float32, are stored in FP16
    and widened when the graph is loaded.
    """
    name = f"{layer.weight.name}.block_scales"
    if bits > 4:
        return editor.constant(name, scales)
    narrow = editor.constant(name, scales.astype(np.float16))
    wide = editor.node("Cast", [narrow], narrow, f"{name}.wide", dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT)
    editor.graph.insert_before(layer.node, wide)
    return wide.outputs[0]
