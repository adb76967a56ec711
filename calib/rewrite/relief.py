"""Quantised layers found again in a bundle's graphs, and computed in float on the weights that they have.

What an INT8 bundle alone can tell about its layers: it holds no float weights, but the rounding and clipping of each
layer's activations can be taken away.
"""

from __future__ import annotations

import onnx_ir as ir

from calib.graphs.layers import layer_name
from calib.rewrite.blocks import CONTRIB

FLOAT_ARITHMETIC = 1
"""`accuracy_level` of MatMulNBits."""


def find_quantized(model: ir.Model, graph: str) -> dict[str, ir.Node]:
    """The products of quantised layers by the name of the layer, in the order of their computation."""
    found = {}
    for node in model.graph:
        weight = _stored_weight(node)
        if weight is not None:
            found[layer_name(graph, weight)] = node
    return found


def _stored_weight(node: ir.Node) -> str | None:
    """The name of the float weight that a product's integers stand for."""
    if node.op_type == "MatMulNBits" and node.domain == CONTRIB:
        stored, suffix = node.inputs[1], ".blocks"
    elif node.op_type in ("Gemm", "MatMul", "Conv") and not node.domain:
        dequantize = _producer(node.inputs[1], "DequantizeLinear")
        stored, suffix = None if dequantize is None else dequantize.inputs[0], ".quantized"
    else:
        return None
    name = "" if stored is None else stored.name or ""
    return name.removesuffix(suffix) if name.endswith(f".weight{suffix}") else None


def relieve(node: ir.Node) -> None:
    """Take the 8 bits of a product's activations away, in place: of its input and, where it has them, its output."""
    if node.op_type == "MatMulNBits":
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", FLOAT_ARITHMETIC)
        return
    plain = _before_pair(node.inputs[0])
    if plain is not None:
        node.replace_input_with(0, plain)
    out = node.outputs[0]
    for use in list(out.uses()):
        if use.node.op_type != "QuantizeLinear" or node.op_type != "Conv":
            continue
        for after in list(use.node.outputs[0].uses()):
            if after.node.op_type == "DequantizeLinear":
                after.node.outputs[0].replace_all_uses_with(out, replace_graph_outputs=True)


def _before_pair(value: ir.Value | None) -> ir.Value | None:
    dequantize = _producer(value, "DequantizeLinear")
    quantize = None if dequantize is None else _producer(dequantize.inputs[0], "QuantizeLinear")
    return None if quantize is None else quantize.inputs[0]


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op and not node.domain else None
