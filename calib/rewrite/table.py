"""AdaLN as a table: what depends on the class alone is looked up, and there is no product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.layers import Layer, read_weight
from calib.rewrite.editor import Editor
from calib.rewrite.weights import quantize_table

_SIGNED = 128
"""By how much signed integers are lower than unsigned ones."""


def put_table(editor: Editor, layer: Layer, *, signed: bool) -> None:
    """What a layer of AdaLN and its bias give for each class, in 8 bits, in place of both.

    `signed`: as TensorRT takes it, a DequantizeLinear of int8 before the Gather; else uint8 behind it.
    """
    name, bias, out, weight = layer.name, layer.bias_vector, layer.node.outputs[0], layer.weight
    labels, given = _classes(layer)
    assert weight.dtype is not None
    dtype = weight.dtype.numpy()
    array, step, low = quantize_table(given @ np.asarray(read_weight(weight), np.float32))
    steps = editor.constant(f"{weight.name}.class_steps", step.astype(dtype))
    if signed:
        low = low + _SIGNED * step
        table = editor.constant(f"{weight.name}.quantized", (array.astype(np.int16) - _SIGNED).astype(np.int8))
        zeros = editor.constant(f"{weight.name}.class_zeros", np.zeros(len(step), np.int8))
        values = editor.node("DequantizeLinear", [table, steps, zeros], weight, f"{name}.classes", axis=1)
        values.outputs[0].shape = ir.Shape(array.shape)
        nodes = [values, editor.node("Gather", [values.outputs[0], labels], out, f"{name}.row")]
    else:
        table = editor.constant(f"{weight.name}.classes", array)
        row = editor.node("Gather", [table, labels], out, f"{name}.row", dtype=ir.DataType.UINT8)
        wide = editor.node("Cast", [row.outputs[0]], out, f"{name}.wide", to=ir.DataType.FLOAT)
        nodes = [row, wide, editor.node("Mul", [wide.outputs[0], steps], out, f"{name}.scaled")]
    if bias is not None:
        low = low + np.asarray(read_weight(bias), np.float32)
    lowest = editor.constant(f"{weight.name}.class_lowest", low.astype(dtype))
    editor.put(layer, [*nodes, editor.node("Add", [nodes[-1].outputs[0], lowest], out, f"{name}.raised")])


def _producer(node: ir.Node) -> ir.Node | None:
    """What makes the first input of a node."""
    value = node.inputs[0]
    return None if value is None else value.producer()


def _classes(layer: Layer) -> tuple[ir.Value, NDArray[np.float32]]:
    """The graph's input of classes, and what a layer of AdaLN gets for each of them, float32 (classes, K)."""
    product = layer.input.producer()  # SiLU of the embedding: x * Sigmoid(x)
    if product is not None and product.op_type == "Cast":
        product = _producer(product)
    assert product is not None and product.op_type == "Mul", layer.name
    gather = next(
        node
        for node in (value.producer() for value in product.inputs if value is not None)
        if node is not None and node.op_type == "Gather"
    )
    embedding, labels = gather.inputs
    assert embedding is not None and labels is not None
    x = np.asarray(read_weight(embedding), np.float32)
    return labels, x / (1 + np.exp(-x))
