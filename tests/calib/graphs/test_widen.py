"""FP16 bundles on a CPU: half-precision weights and cache, float32 arithmetic."""

import numpy as np
import onnx_ir as ir
import pytest

from calib.graphs.widen import widen
from engines.bundle.bundle import Bundle
from tests.bundles import shared_bundle

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
STORES = {"Cast", "Concat"}
"""Operators that may have half values in a graph for a CPU: what becomes of stored values."""


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(shared_bundle("demo-both"))


def halves(graph):
    """The operators that take or give half-precision values."""
    values = ((node.op_type, value) for node in graph for value in (*node.inputs, *node.outputs))
    return {op for op, value in values if value is not None and value.dtype == HALF}


@pytest.mark.parametrize("name", ["cond", "step", "decode", "encode", "fused"])
def test_nothing_computes_in_half_precision(bundle, name):
    ours, shipped = (ir.load(bundle.graph_path(name, cpu=cpu)).graph for cpu in (True, False))
    assert halves(ours) <= STORES
    assert halves(shipped) & {"MatMul", "Conv"}
    for mine, theirs in ((ours.inputs, shipped.inputs), (ours.outputs, shipped.outputs)):
        assert [(v.name, v.dtype, v.shape) for v in mine] == [(v.name, v.dtype, v.shape) for v in theirs]
    stored = {value.name: value.const_value for value in shipped.initializers.values() if value.dtype == HALF}
    large = {name: tensor.offset for name, tensor in stored.items() if isinstance(tensor, ir.ExternalTensor)}
    assert large
    kept = {value.name: value for value in ours.initializers.values() if value.name in stored}
    assert kept.keys() == stored.keys()
    assert {value.dtype for value in kept.values()} == {HALF}
    assert {name: kept[name].const_value.offset for name in large} == large, "one weight file, each weight once"


def test_graphs_without_half_precision_are_one_file_for_both(bundle):
    assert bundle.graph_path("accumulate").read_bytes() == bundle.graph_path("accumulate", cpu=True).read_bytes()
    full = Bundle.open(shared_bundle("demo-fp32"))
    assert full.graph_path("step") == full.graph_path("step", cpu=True)
    model = ir.load(full.graph_path("step"))
    before = [node.op_type for node in model.graph]
    widen(model, "fp32")
    assert [node.op_type for node in model.graph] == before


def test_a_value_that_is_stored_and_computed_with():
    """By hand: x -> half -> product -> output and cache in half; a Cast that only rounded is gone."""
    x = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape((2, 2)))
    past = ir.Value(name="past", type=ir.TensorType(HALF), shape=ir.Shape((2, 2)))
    weight = ir.Value(name="w", type=ir.TensorType(HALF), shape=ir.Shape((2, 2)))
    weight.const_value = ir.tensor(np.full((2, 2), 0.1, np.float16), name="w")

    def node(op, inputs, name, dtype, **attributes):
        made = ir.node(op, inputs, attributes, name=name)
        made.outputs[0].name, made.outputs[0].type = name, ir.TensorType(dtype)
        return made

    low = node("Cast", [x], "low", HALF, to=HALF)
    product = node("MatMul", [low.outputs[0], weight], "product", HALF)
    cache = node("Concat", [past, product.outputs[0]], "cache", HALF, axis=0)
    total = node("ReduceSum", [cache.outputs[0]], "total", HALF)
    high = node("Cast", [total.outputs[0]], "high", FLOAT, to=FLOAT)
    graph = ir.Graph(
        [x, past],
        [high.outputs[0], product.outputs[0]],
        nodes=[low, product, cache, total, high],
        initializers=[weight],
        opset_imports={"": 20},
    )
    model = ir.Model(graph, ir_version=10)
    widen(model, "fp16")
    assert sorted(node.op_type for node in graph) == sorted(
        ["Cast", "MatMul", "Cast", "Concat", "Cast", "ReduceSum", "Cast"]
    )
    assert [(value.name, value.dtype) for value in graph.outputs] == [("high", FLOAT), ("product", HALF)]
    assert halves(graph) == STORES

    import onnxruntime

    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    given = {"x": np.array([[1.0001, 2], [3, 4]], np.float32), "past": np.ones((2, 2), np.float16)}
    total, product = session.run(None, given)
    wanted = given["x"] @ weight.const_value.numpy().astype(np.float32)
    np.testing.assert_array_equal(product, wanted.astype(np.float16))
    np.testing.assert_allclose(total, 4 + wanted.astype(np.float16).astype(np.float32).sum(), rtol=1e-6)
