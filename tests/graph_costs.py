"""Counts what an exported ONNX graph costs, by walking its nodes: the judge of `engines/sizing`.

Knows nothing of the model but the names of the graphs' dimensions: shapes come from ONNX shape inference with the
sizes of a call put in, weights from the initializers. Every MatMul, Gemm and Conv becomes a `Product`; biases are the
constants that are added to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, shape_inference

from engines.spec.contract import GRAPHS

SIZES = {
    TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.INT64: 8, TensorProto.BOOL: 1,
    TensorProto.UINT8: 1, TensorProto.INT32: 4,
}  # fmt: skip
TYPES = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
SCALE_CONSTANTS = {"up", "down"}  # constant matrices that the loop feeds to `step` as inputs


@dataclass(frozen=True, order=True)
class Product:
    """One node, with the fields of `engines.sizing.cost.Operation` that a graph can tell."""

    dtype: str
    flops: int
    weight_bytes: int
    read_bytes: int
    write_bytes: int


def load(source, **sizes):
    """A graph, from a file or in memory, with its varying dimensions fixed and all shapes inferred."""
    model = onnx.load(source, load_external_data=False) if isinstance(source, str | Path) else onnx.ModelProto()
    if not isinstance(source, str | Path):
        model.CopyFrom(source)
    del model.graph.value_info[:]
    dims = {spec.name.replace("{i}", ""): spec.dims for spec in GRAPHS[model.graph.name].inputs}
    for value in model.graph.input:  # the contract names the dimensions; a graph without phi has names of its own
        for dim, name in zip(value.type.tensor_type.shape.dim, dims[value.name.rstrip("0123456789")], strict=True):
            if dim.dim_param:
                dim.dim_value = sizes[name]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)


class Counter:
    """One graph at fixed sizes."""

    def __init__(self, model):
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.values = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            tensor = value.type.tensor_type
            self.values[value.name] = (tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim))
        for name, tensor in self.constants.items():
            self.values[name] = (tensor.data_type, tuple(tensor.dims))
        self.users = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def bytes_of(self, name):
        kind, shape = self.values[name]
        count = 1
        for size in shape:
            count *= size
        return count * SIZES[kind]

    def is_constant(self, name):
        return name in self.constants or (name in SCALE_CONSTANTS and name in self.inputs)

    def bias_bytes(self, node):
        """Of the constants in the Adds that follow a product."""
        adds = [user for user in self.users.get(node.output[0], []) if user.op_type == "Add"]
        return sum(self.bytes_of(name) for add in adds for name in add.input if name in self.constants)

    def product(self, node):
        kind, out = self.values[node.output[0]]
        assert all(out), f"{node.name}: no shape"
        if node.op_type == "Conv":
            _, (_, per_group, *kernel) = self.values[node.input[1]]
            terms = per_group
            for side in kernel:
                terms *= side
        else:
            terms = self.values[node.input[0]][1][-1]
        cells = 1
        for size in out:
            cells *= size
        constants = [name for name in node.input if self.is_constant(name)]
        moving = [name for name in node.input if not self.is_constant(name)]
        return Product(
            dtype=TYPES[kind],
            flops=2 * cells * terms,
            weight_bytes=sum(map(self.bytes_of, constants)) + (self.bias_bytes(node) if constants else 0),
            read_bytes=sum(map(self.bytes_of, moving)),
            write_bytes=self.bytes_of(node.output[0]),
        )

    def products(self):
        """Of every MatMul, Gemm and Conv, sorted."""
        return sorted(self.product(node) for node in self.nodes if node.op_type in ("MatMul", "Gemm", "Conv"))

    def constant_bytes(self, *, at_least=2):
        """Of the float initializers with at least so many elements, by name."""
        found = {}
        for name, tensor in self.constants.items():
            count = 1
            for size in tensor.dims:
                count *= size
            if tensor.data_type in TYPES and count >= at_least:
                found[name] = self.bytes_of(name)
        return found

    def most_alive(self):
        """The most bytes of intermediate tensors that are alive at once, one node after another, nothing fused.

        Views (Reshape, Transpose ...) are counted as copies, as a runtime without any optimisation would make.
        """
        last = {}
        for at, node in enumerate(self.nodes):
            for name in (*node.input, *node.output):
                last[name] = at
        alive, most = {}, 0
        for at, node in enumerate(self.nodes):
            for name in node.output:
                if name and name in self.values:
                    alive[name] = self.bytes_of(name)
            most = max(most, sum(alive.values()))
            alive = {name: size for name, size in alive.items() if last[name] > at}
        return most


def count(source, **sizes):
    """`Counter` of a graph at these sizes: B, N, L, M and P, as far as its inputs have them."""
    return Counter(load(source, **sizes))


def planned(operations):
    """The same list from `engines.sizing`, to compare with `Counter.products`."""
    return sorted(
        Product(op.dtype, op.flops, op.weight_bytes, op.read_bytes, op.write_bytes)
        for op in operations
        for _ in range(op.count)
    )
