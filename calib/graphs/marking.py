"""Graphs that tell what is not finite, in place: see `engines.spec.marks`.

    decode   pixels before they are clipped (B, 3, h, w) --> [mean of each image finite?] --> image, or stripes
    step     guided logits (B, L, V)                     --> [mean of each token finite?] --> drawn, or -1
    encode   features (B, Z, S, S)                       --> [mean of each image finite?] --> tokens, or -1

A mean, since NaN and infinity pass through a sum on every runtime; a largest value may pass over NaN. Only the outputs
change: what the graph itself goes on with stays as it was. The fused graph has all of it from the graphs it is made of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from calib.graphs.layers import constant, find_layers
from engines.spec.marks import NO_TOKEN, stripes

_BOUND = np.float32(3e38)


def tell_not_finite(model: ir.Model, name: str) -> None:
    """Change a graph of the stepwise form by its name; those that have no such output stay as they are."""
    if name == "step":
        logits = next(value for value in model.graph.outputs if value.name == "logits")
        _Teller(model.graph).where_finite("drawn", logits, [([2], 0)], NO_TOKEN)
    elif name == "encode":
        (features,) = (layer.node.outputs[0] for layer in find_layers(model, name) if layer.name == "encode/quant_conv")
        for use in features.uses():
            if use.node.op_type == "Cast" and use.node.outputs[0].dtype == ir.DataType.FLOAT:
                features = use.node.outputs[0]
        _Teller(model.graph).where_finite("tokens", features, [([2, 3], 0), ([1], 1)], NO_TOKEN)
    elif name == "decode":
        (image,) = model.graph.outputs
        bytes_of = image.producer()
        assert bytes_of is not None and image.shape is not None
        row = stripes(int(image.shape[2])).reshape(1, 1, -1, 1).astype(np.float32)  # type: ignore[arg-type]
        teller = _Teller(model.graph)
        pixels = teller.before(bytes_of, "Clip")
        finite = teller.finite(pixels, [([1, 2, 3], 1)])
        teller.choose(bytes_of, finite, row)


class _Teller:
    """Nodes that look at a value, added to a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def where_finite(self, output: str, value: ir.Value, means: list[tuple[list[int], int]], otherwise: int) -> None:
        """Give `otherwise` at the places of an output where `value` is not finite."""
        index = next(i for i, out in enumerate(self._graph.outputs) if out.name == output)
        plain = self._graph.outputs[index]
        plain.name = f"{output}.plain"
        finite = self.finite(value, means)
        instead = self._constant("otherwise", np.array(otherwise))
        told = self._node("Where", [finite, plain, instead], plain, output)
        self._graph.outputs[index] = told

    def choose(self, node: ir.Node, finite: ir.Value, otherwise: Any) -> None:
        """Let `node` take `otherwise` in place of its input where that is not finite."""
        plain = node.inputs[0]
        assert plain is not None
        told = self._node("Where", [finite, plain, self._constant("otherwise", otherwise)], plain, "finite.pixels")
        node.replace_input_with(0, told)
        self._graph.remove(node)
        self._graph.append(node)

    def finite(self, value: ir.Value, means: list[tuple[list[int], int]]) -> ir.Value:
        """Whether the mean over these axes (and whether they stay, one after another) is finite."""
        assert value.dtype == ir.DataType.FLOAT, value
        for number, (axes, keep) in enumerate(means):
            over = self._constant(f"axes_{number}", np.array(axes))
            value = self._behind(value, "ReduceMean", [over], f"finite.mean_{number}", keepdims=keep)
        size = self._behind(value, "Abs", [], "finite.size")
        return self._behind(size, "Less", [self._constant("bound", _BOUND)], "finite.yes", dtype=ir.DataType.BOOL)

    @staticmethod
    def before(node: ir.Node, op: str) -> ir.Value:
        """What the nearest node of this kind on the way to `node` takes."""
        while node.op_type != op:
            value = node.inputs[0]
            above = None if value is None else value.producer()
            assert above is not None, f"nothing is {op} before {node.name}"
            node = above
        value = node.inputs[0]
        assert value is not None
        return value

    def _behind(self, value: ir.Value, op: str, more: list[ir.Value], name: str, **options: Any) -> ir.Value:
        """The result of a node that takes `value`, right behind it: so the value has to be kept no longer."""
        out, producer = self._node(op, [value, *more], None, name, **options), value.producer()
        node = out.producer()
        assert producer is not None and node is not None
        self._graph.remove(node)
        self._graph.insert_after(producer, node)
        return out

    def _constant(self, name: str, array: Any) -> ir.Value:
        value = self._graph.initializers[f"finite.{name}"] = constant(f"finite.{name}", np.asarray(array))
        return value

    def _node(self, op: str, inputs: list[ir.Value], like: ir.Value | None, name: str, **options: Any) -> ir.Value:
        dtype = options.pop("dtype", ir.DataType.FLOAT if like is None else like.dtype)
        out = ir.Value(name=name, type=ir.TensorType(dtype), shape=None if like is None else like.shape)
        self._graph.append(ir.node(op, inputs, options, outputs=[out], name=f"{name}.{op}"))
        return out
