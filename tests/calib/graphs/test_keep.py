"""Values of half-precision graphs kept in float32: what is computed where, and what comes out."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from calib.graphs.emulate import emulate
from calib.graphs.keep import keep_fp32

NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ONNX = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
WEIGHT = np.array([[1.5, -0.25], [2.0, 0.75]], np.float32)
BIAS = np.array([0.5, -1.0], np.float32)


def small_graph(precision):
    """Two products with a weight each, the first's output widened, moved, added and returned."""
    half = ONNX[precision]
    weights = [
        helper.make_tensor(name, half, array.shape, array.astype(NUMPY[precision]).tobytes(), raw=True)
        for name, array in {"a.weight": WEIGHT * 1000, "a.bias": BIAS, "b.weight": WEIGHT, "one": np.ones(1)}.items()
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=half),
        helper.make_node("MatMul", ["low", "a.weight"], ["product"]),
        helper.make_node("Add", ["product", "a.bias"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["high"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["high", "small"], ["y"]),
        helper.make_node("Add", ["low", "one"], ["raised"]),
        helper.make_node("MatMul", ["raised", "b.weight"], ["other"]),
        helper.make_node("Mul", ["other", "one"], ["out"]),
    ]
    weights.append(helper.make_tensor("small", TensorProto.FLOAT, [1], [1e-5]))
    value = helper.make_tensor_value_info
    outputs = [value("y", TensorProto.FLOAT, ["n", 2]), value("out", half, ["n", 2])]
    graph = helper.make_graph(nodes, "small", [value("x", TensorProto.FLOAT, ["n", 2])], outputs, weights)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


def kept(precision, names):
    """The graph with these values kept, and the types of all values by name."""
    model = ir.from_proto(small_graph(precision))
    keep_fp32(model, precision, names)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    values = [*(value for node in model.graph for value in node.outputs), *model.graph.initializers.values()]
    return proto, {value.name: value.dtype for value in values}


def run(proto, precision, x, **options):
    model = ir.from_proto(proto)
    emulate(model, precision, **options)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y", "out"], {"x": x})


def exact(x):
    return (x @ (WEIGHT * 1000) + BIAS) * np.float32(1e-5), (x + 1) @ WEIGHT


X = np.array([[1.0, 2.0], [40.0, 30.0], [-64.0, -8.0]], np.float32)  # the last two go beyond 65,504


def test_what_overflows_is_exact_once_it_is_kept():
    y, _ = run(small_graph("fp16"), "fp16", X)
    assert np.isfinite(y).all(axis=1).tolist() == [True, False, False]
    y, _ = run(kept("fp16", {"product", "sum"})[0], "fp16", X)
    np.testing.assert_allclose(y, exact(X)[0], rtol=1e-6)


def test_without_rounding_nothing_overflows():
    y, _ = run(small_graph("fp16"), "fp16", X, rounded=False)
    np.testing.assert_allclose(y, exact(X)[0], rtol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_layer_has_float_weights_and_the_others_none(precision):
    proto, types = kept(precision, {"product", "sum"})
    half = ir.DataType(ONNX[precision])
    assert {name: types[name] for name in ("a.weight", "a.bias", "product", "sum")} == dict.fromkeys(
        ("a.weight", "a.bias", "product", "sum"), ir.DataType.FLOAT
    )
    assert {types[name] for name in ("b.weight", "low", "raised", "other", "out", "one")} == {half}
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    assert [node.input[0] for node in casts] == ["x", "low"], "the Cast behind the layer has nothing left to do"


def test_an_output_keeps_its_type_and_a_shared_constant_stays():
    proto, types = kept("fp16", {"other", "out"})
    assert {value.name: value.type.tensor_type.elem_type for value in proto.graph.output}["out"] == TensorProto.FLOAT16
    assert types["one"] == ir.DataType.FLOAT16
    assert types["one.fp32"] == ir.DataType.FLOAT
    for found, wanted in zip(run(proto, "fp16", X[:1]), exact(X[:1]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3)


def test_nothing_kept_is_nothing_changed():
    before = small_graph("fp16")
    model = ir.from_proto(before)
    assert keep_fp32(model, "fp16", {"y", "nothing"}) == []
    assert ir.to_proto(model).graph.node == ir.to_proto(ir.from_proto(before)).graph.node
