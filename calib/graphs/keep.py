"""Values of a half-precision graph kept in float32, in place: those that the half type cannot hold.

A node that takes or gives such a value computes in float32, on its weights as float32; what else it takes is widened,
what else it gives is narrowed.

    in half precision                        conv1's output kept
      x                                        x
      |  float16                               |  float16
    [Conv conv1] <-- W float16               [Cast FP32]
      |  float16                               |  float32
    [Cast FP32]                              [Conv conv1] <-- W float32
      |  float32                               |  float32
    [GroupNorm]                              [GroupNorm]
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from calib.graphs.emulate import HALF
from calib.graphs.layers import constant, read_weight


def keep_fp32(model: ir.Model, precision: str, kept: Container[str]) -> list[ir.Node]:
    """Rewrite a graph of `precision` so that the values with these names are float32; the nodes that compute so now.

    Inputs and outputs of the graph stay as they are: a kept value that is an output is narrowed on its way out.
    """
    graph, half = model.graph, HALF[precision]
    values = {value for node in graph for value in node.outputs if value.dtype == half and value.name in kept}
    touched = [node for node in graph if values & {*node.inputs, *node.outputs}]
    widening = _FloatInputs(graph, half, touched)
    for node in touched:
        widening.widen_inputs(node)
        for value in node.outputs:
            if value.dtype != half:
                continue
            value.dtype = ir.DataType.FLOAT
            if value not in values:
                _narrow(graph, value, half, everywhere=True)
            elif value.is_graph_output():
                _narrow(graph, value, half, everywhere=False)
        if node.op_type == "Cast":
            _drop_if_idle(graph, node)
    return touched


class _FloatInputs:
    """Half-precision inputs of nodes that compute in float32 now, as float32; each is widened once."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, nodes: list[ir.Node]) -> None:
        self._graph, self._half, self._nodes = graph, half, set(nodes)
        self._wide: dict[ir.Value, ir.Value] = {}

    def widen_inputs(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != self._half or node.op_type == "Cast":
                continue
            if value not in self._wide:
                self._wide[value] = self._widened(value, node)
            node.replace_input_with(index, self._wide[value])

    def _widened(self, value: ir.Value, node: ir.Node) -> ir.Value:
        if not value.is_initializer():
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}.to_fp32")
            wide = cast.outputs[0]
            wide.name, wide.dtype, wide.shape = f"{value.name}.wide", ir.DataType.FLOAT, value.shape
            self._graph.insert_before(node, cast)
            return wide
        array = np.asarray(read_weight(value), np.float32)
        if all(use.node in self._nodes for use in value.uses()):  # a weight keeps its name, which is its layer's
            value.const_value, value.dtype = ir.tensor(array, name=value.name), ir.DataType.FLOAT
            return value
        wide = self._graph.initializers[f"{value.name}.fp32"] = constant(f"{value.name}.fp32", array)
        return wide


def _narrow(graph: ir.Graph, value: ir.Value, half: ir.DataType, *, everywhere: bool) -> None:
    """Give `value` a half-precision copy under its name: for all that takes it, or for the graph's output alone."""
    name, producer = value.name or "", value.producer()
    assert producer is not None
    value.name = f"{name}.fp32"
    narrowed = ir.Value(name=name, type=ir.TensorType(half), shape=value.shape)
    if everywhere:
        value.replace_all_uses_with(narrowed, replace_graph_outputs=True)
    else:
        graph.outputs[graph.outputs.index(value)] = narrowed
    cast = ir.node("Cast", [value], {"to": half}, outputs=[narrowed], name=f"{name}.to_half")
    graph.insert_after(producer, cast)


def _drop_if_idle(graph: ir.Graph, cast: ir.Node) -> None:
    """Take out a Cast whose input has the type of its output now."""
    before, after = cast.inputs[0], cast.outputs[0]
    assert before is not None
    cast.attributes["to"] = ir.AttrInt64("to", after.dtype or ir.DataType.FLOAT)
    if before.dtype == after.dtype and not after.is_graph_output():
        after.replace_all_uses_with(before)
        graph.remove(cast, safe=True)
