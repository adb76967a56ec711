"""A graph whose nodes are replaced, one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from calib.graphs.layers import Layer, constant


class Editor:
    """A graph that is changed in place."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph

    def constant(self, name: str, array: Any) -> ir.Value:
        """A new initializer of the graph."""
        value = self.graph.initializers[name] = constant(name, np.asarray(array))
        return value

    def node(self, op: str, inputs: list[ir.Value | None], like: ir.Value, name: str, **options: Any) -> ir.Node:
        """A node whose one output has the shape of `like`, and its type unless `dtype` is given."""
        dtype, domain = options.pop("dtype", like.dtype), options.pop("domain", "")
        out = ir.Value(name=name, type=ir.TensorType(dtype), shape=like.shape)
        return ir.node(op, inputs, options, domain=domain, outputs=[out], name=f"{name}.{op}")

    def replace(self, old: ir.Node, new: ir.Node) -> None:
        """`new` stands where `old` stood, its output under the same name."""
        before, after = old.outputs[0], new.outputs[0]
        name = before.name
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)
        after.name = name

    def put(self, layer: Layer, nodes: list[ir.Node]) -> None:
        """`nodes`, of which the last gives what the layer gave with its bias, stand where both stood."""
        last = layer.bias or layer.node
        self.graph.insert_before(last, nodes)
        self.replace(last, nodes[-1])
        if last is not layer.node:
            self.graph.remove(layer.node, safe=True)

    def finish(self) -> None:
        """Drop the nodes and initializers that nothing uses any more."""
        common.RemoveUnusedNodesPass()(self.model)  # what AdaLN was computed from
        used = {value for node in self.graph for value in node.inputs if value is not None}
        for name, value in list(self.graph.initializers.items()):
            if value not in used and not value.is_graph_output():
                del self.graph.initializers[name]
