"""Half-precision graphs as float32 graphs that round where they round, so that any machine can run their numerics.

ONNX Runtime's CPU has no BF16 arithmetic at all, and computes FP16 graphs in float32 on FP16 weights, mostly without
rounding in between. A tensor core multiplies half-precision inputs, accumulates in float32 and rounds the result.
That is what the rewritten graph does, for every operator: values are float32, and each one that the shipped
graph holds in half precision passes a Cast to that type and back (to nearest, ties to even).

    shipped                                    emulated
      x                                          x
      |  float32                                 |
    [Cast BF16]                                [Cast BF16] -> [Cast FP32]
      |  bfloat16                                |  float32, on the BF16 grid
    [MatMul] <-- W bfloat16                    [MatMul] <-- [Cast FP32] <-- W bfloat16
      |  bfloat16                                |  float32
      v                                        [Cast BF16] -> [Cast FP32]
                                                 |  float32, on the BF16 grid
                                                 v

The weights stay in the bundle's file as they are: ONNX Runtime folds their Casts when it loads the graph. A fused
kernel that adds the bias before it rounds is more exact than this, one that accumulates in half precision less.
"""

from __future__ import annotations

import onnx_ir as ir

HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""The type that graphs of a precision compute in, where that is not float32."""

# Operators that only pass values on: on the grid before, on the grid after.
_MOVING = frozenset(
    ("Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)


def emulate(model: ir.Model, precision: str, *, rounded: bool = True) -> None:
    """Rewrite a graph of `precision` in place: float32 throughout, rounded wherever the graph rounds.

    Without `rounded`, only weights are: what passes is what float32 computes, however far beyond the half type.

    Inputs and outputs of the half type become float32 of the same names and shapes; the rewritten graph expects of such
    an input (the KV cache) that its values are on the half type's grid, and gives outputs that are. A
    graph in FP32 is left as it is. Every value must have its type, as those of a bundle's graphs do.
    """
    half = HALF.get(precision)
    if half is None:
        return
    graph = model.graph
    for value in graph.inputs:
        if value.dtype == half:
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        for value in node.outputs:
            assert value.dtype is not None, f"{value.name} has no type"
            if value.dtype != half:
                continue
            if node.op_type != "Cast" or not rounded:
                value.dtype = ir.DataType.FLOAT
            if not rounded and node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            elif rounded and node.op_type not in _MOVING:
                graph.insert_after(node, _rounding(value, half))
    weights = [value for value in graph.initializers.values() if value.dtype == half]
    graph.insert_before(graph[0], [cast for value in weights for cast in _rounding(value, half)])
    _part_integers(graph)


def _part_integers(graph: ir.Graph) -> None:
    """Give each node that reads an 8-bit constant a name of its own for it; the stored bytes stay the same.

    All scales of a fused graph for TensorRT share theirs. ONNX Runtime refuses that on processors where it replaces
    8-bit weights by exact ones (engines/backends/onnxruntime/arithmetic.py), once per node that reads them.
    """
    for value in [value for value in graph.initializers.values() if value.dtype == ir.DataType.INT8]:
        for number, (node, index) in enumerate(list(value.uses())[1:], 1):
            own = ir.Value(
                name=f"{value.name}.{number}", const_value=value.const_value, type=value.type, shape=value.shape
            )
            graph.register_initializer(own)
            node.replace_input_with(index, own)


def _rounding(value: ir.Value, half: ir.DataType) -> list[ir.Node]:
    """Casts to `half` and back, whose result everything takes that took `value`; one where it is `half` already."""
    name = value.name or ""
    rounded = ir.Value(name=f"{name}.rounded", type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
    if value.is_graph_output():
        value.name, rounded.name = f"{name}.exact", name
    value.replace_all_uses_with(rounded, replace_graph_outputs=True)
    casts = []
    if value.dtype != half:
        casts.append(ir.node("Cast", [value], {"to": half}, name=f"{name}.narrow"))
        value = casts[0].outputs[0]
        value.name, value.dtype, value.shape = f"{name}.narrowed", half, rounded.shape
    casts.append(ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, outputs=[rounded], name=f"{name}.widen"))
    return casts
