"""The products with constant weights in a bundle's graphs: what can be quantised.

A layer is named by its graph and its weight (`step/blocks.3.fc1`), which every precision and form of a
model shares; the names of activations change from trace to trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.errors import BundleError
from engines.foreign import reading
from engines.spec.contract import PART_OF
from engines.spec.policy import role_of


@dataclass(frozen=True)
class Layer:
    """One MatMul or Conv with a constant weight, in one graph."""

    graph: str
    name: str
    """Unique in a bundle: `step/blocks.3.fc1`, `decode/up.0.block.2.conv2`."""
    node: ir.Node

    @property
    def role(self) -> str:
        """See `engines.spec.policy.role_of`."""
        return role_of(self.name)

    @property
    def weight(self) -> ir.Value:
        """(K, N) of a MatMul, (out, in, kh, kw) of a Conv."""
        weight = self.node.inputs[1]
        assert weight is not None
        return weight

    @property
    def input(self) -> ir.Value:
        """The activation."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def is_conv(self) -> bool:
        """A convolution, whose channels are axis 1; a MatMul's are the last."""
        return bool(self.node.op_type == "Conv")

    @property
    def bias(self) -> ir.Node | None:
        """The Add behind a MatMul that adds a constant vector, if there is one."""
        if self.is_conv:
            return None
        uses = list(self.node.outputs[0].uses())
        if len(uses) == 1 and uses[0].node.op_type == "Add":
            other = uses[0].node.inputs[1 - uses[0].idx]
            if other is not None and other.const_value is not None and len(other.const_value.shape) == 1:
                return uses[0].node
        return None

    @property
    def bias_vector(self) -> ir.Value | None:
        """The constant (N,) that is added to the product; None where there is none: the exporter drops zeros."""
        node = self.node if self.is_conv else self.bias
        added = () if node is None else node.inputs[2:] if self.is_conv else node.inputs
        return next((value for value in added if value is not None and value.const_value is not None), None)


def constant(name: str, array: NDArray[Any]) -> ir.Value:
    """An initializer for a graph, which holds `array`."""
    return initializer(name, ir.tensor(array, name=name))


def four_bit_constant(name: str, array: NDArray[Any]) -> ir.Value:
    """An initializer for a graph, which holds integers of -8 to 7 in 4 bits each."""
    return initializer(name, ir.Tensor(array.astype(ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4, name=name))


def initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer for a graph with the values of a tensor."""
    return ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )


def find_layers(model: ir.Model, graph: str) -> list[Layer]:
    """The layers of one graph, in the order of their computation. Graphs without any give an empty list.

    Small constant matrices (interpolation, prefix sums, codebook) are no layers: they have no trained weight that is
    stored as `*.weight`.
    """
    if graph not in PART_OF:
        return []
    found = []
    for node in model.graph:
        if node.op_type not in ("MatMul", "Conv") or node.domain:
            continue
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or not (weight.name or "").endswith(".weight"):
            continue
        found.append(Layer(graph, layer_name(graph, weight.name or ""), node))
    return found


def load_graph(path: Path) -> ir.Model:
    """A graph of a bundle; its weights stay in their file. Raises `BundleError` where it is none."""
    with reading(path, "ONNX graph", error=BundleError, remedy="build the bundle again"):
        return ir.load(path)


def layer_name(graph: str, weight: str) -> str:
    """`step` and `trunk.blocks.3.fc1.weight` -> `step/blocks.3.fc1`: without the exporter's wrappers."""
    parts = weight.removesuffix(".weight").split(".")
    if parts[0] in ("trunk", "layers"):
        parts = parts[1:]
    if graph in ("decode", "encode") and parts[0].isdigit():
        parts = parts[1:] or ["post_quant_conv" if graph == "decode" else "quant_conv"]
    return f"{graph}/{'.'.join(parts)}"


def layer_of(node: ir.Node, file: str) -> str | None:
    """The name of the layer whose product a node of any graph is, the fused one's and in INT8 too; None for others."""
    stored = node.inputs[1] if node.op_type in ("MatMul", "Conv", "Gemm") and not node.domain else None
    made_by = None if stored is None else stored.producer()
    if made_by is not None and made_by.op_type == "DequantizeLinear":
        stored = made_by.inputs[0]
    name = (stored.name or "").removesuffix(".quantized") if stored is not None and stored.is_initializer() else ""
    if not name.endswith(".weight"):
        return None
    part, name = (file, name) if file in PART_OF else name.split(".", 1)  # stitched: `step.trunk.blocks.3.fc1.weight`
    return layer_name(part, name) if part in PART_OF else None


def read_weight(value: ir.Value) -> NDArray[Any]:
    """A constant of a graph; mapped where it lies in a file."""
    tensor = value.const_value
    assert tensor is not None, value.name
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    # Not tensor.numpy(): that refuses files with a second hard link, which package managers make.
    shape = tensor.shape.numpy()
    dtype = tensor.dtype.numpy()
    return np.memmap(tensor.path, dtype, "r", tensor.offset or 0, shape)
