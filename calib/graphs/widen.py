"""Half-precision graphs for a CPU: weights and KV cache stay in half precision, and everything computes in float32.

    shipped for GPUs                           widened for the CPU
      x  float32                                 x  float32
      |                                          |
    [Cast FP16]                                  |
      |  float16                                 |
    [MatMul] <-- W float16                     [MatMul] <-- [Cast FP32] <-- W float16
      |  float16                                 |  float32
    [Cast FP32]                                  |
      v                                          v

Without this, the processor decides: ONNX Runtime has FP16 kernels for ARM cores with FP16 arithmetic, which round every
sum (31 dB to the reference's image where float32 gives 79), and inserts Casts of its own everywhere else. The weights'
Casts are folded when the graph is loaded.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from calib.graphs.emulate import HALF


def widen(model: ir.Model, precision: str) -> None:
    """Rewrite a graph of `precision` in place so that it computes in float32; inputs and outputs stay what they are.

    A graph in FP32 is left as it is. Every value must have its type, as those of a bundle's graphs do.
    """
    half = HALF.get(precision)
    if half is not None:
        _Widening(model.graph, half).run()
        common.RemoveUnusedNodesPass()(model)


class _Widening:
    """One rewriting of a graph.

    What is stored stays in half precision: inputs, weights, and Concats, which join cached keys and values. All other
    half values become float32 ones, and a Cast that rounded them goes.
    """

    def __init__(self, graph: ir.Graph, half: ir.DataType) -> None:
        self._graph, self._half = graph, half
        self._wide: dict[ir.Value, ir.Value] = {}
        """For each value that was in half precision, what a computation takes in its place."""
        self._narrow: dict[ir.Value, ir.Value] = {}
        """For each value that was computed in half precision and is stored, what is stored."""

    def run(self) -> None:
        """Rewrite the nodes in their order, then the outputs."""
        graph, nodes = self._graph, list(self._graph)
        for stored in (*graph.inputs, *graph.initializers.values()):
            if stored.dtype == self._half:
                graph.insert_before(nodes[0], self._widened(stored))
        for node in nodes:
            if node.op_type == "Concat" and node.outputs[0].dtype == self._half:
                for index, value in enumerate(node.inputs):
                    node.replace_input_with(index, self._narrowed(value))
                graph.insert_after(node, self._widened(node.outputs[0]))
            else:
                self._compute(node)
        for index, value in enumerate(graph.outputs):
            if value in self._wide and value.dtype != self._half:
                name, value.name = value.name, f"{value.name}.wide"
                graph.outputs[index] = self._narrowed(value)
                graph.outputs[index].name = name

    def _compute(self, node: ir.Node) -> None:
        """Make a node take and give float32 where it had half precision."""
        for index, value in enumerate(node.inputs):
            if value in self._wide:
                node.replace_input_with(index, self._wide[value])
        for value in node.outputs:
            if value.dtype != self._half:
                continue
            source = node.inputs[0]
            if node.op_type == "Cast" and source is not None and source.dtype == ir.DataType.FLOAT:
                self._wide[value] = source  # the Cast is left for whoever stores its value
            else:
                value.type, self._wide[value] = ir.TensorType(ir.DataType.FLOAT), value

    def _widened(self, value: ir.Value) -> ir.Node:
        """A Cast of a stored value, which computations take from now on."""
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}.widen")
        self._wide[value] = _named(cast, f"{value.name}.widened", ir.DataType.FLOAT, value.shape)
        return cast

    def _narrowed(self, value: ir.Value | None) -> ir.Value:
        """A value in half precision, to be stored."""
        assert value is not None
        if value.dtype == self._half:
            return value
        if value not in self._narrow:
            cast = ir.node("Cast", [value], {"to": self._half}, name=f"{value.name}.narrow")
            producer = value.producer()
            assert producer is not None, value
            self._graph.insert_after(producer, cast)
            self._narrow[value] = _named(cast, f"{value.name}.narrowed", self._half, value.shape)
        return self._narrow[value]


def _named(node: ir.Node, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    """The output of a new node, which gets its name, type and shape."""
    (value,) = node.outputs
    value.name, value.dtype, value.shape = name, dtype, shape
    return value
