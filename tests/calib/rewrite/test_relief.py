"""The graphs of a small model, quantised, with the 8 bits of some activations taken away again."""

import shutil

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from calib.choose.options import QuantisationOptions
from calib.graphs.layers import find_layers
from calib.rewrite.integers import quantize
from calib.rewrite.relief import find_quantized, relieve
from engines.bundle.bundle import Bundle
from engines.spec.policy import FLOAT, assign

pytestmark = pytest.mark.slow


def quantised(bundle, calibrated, graph, target="onnxruntime", level=3):
    model = ir.load(bundle.graph_path(graph))
    layers = find_layers(model, graph)
    ways = assign([layer.name for layer in layers], target, level)
    quantize(model, layers, ways, calibrated, QuantisationOptions(target=target))
    return model, {name for name, way in ways.items() if way != FLOAT}


def decoded(bundle, model):
    """In float32, (B, 3, h, w): what the decoder's last convolution gives."""
    conv = [node for node in model.graph if node.op_type == "Conv"][-1]
    model.graph.outputs.append(conv.outputs[0])
    for value in model.graph.initializers.values():  # the session has no folder to look for files in
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run([conv.outputs[0].name], {"f_hat": bundle.golden["f_hat"]})[0]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("graph", ["cond", "step", "decode", "encode"])
@pytest.mark.parametrize("level", [2, 3])
def test_quantised_layers_are_found(tiny_fp32, calibrated, graph, target, level):
    model, names = quantised(tiny_fp32, calibrated, graph, target, level)
    assert set(find_quantized(model, graph)) == names


def test_none_is_found_in_a_float_graph(tiny_fp32):
    assert find_quantized(ir.load(tiny_fp32.graph_path("step")), "step") == {}
    assert find_quantized(ir.load(tiny_fp32.graph_path("accumulate")), "accumulate") == {}


def test_without_8_bits_only_the_rounding_of_weights_is_left(tiny_fp32, calibrated, tmp_path):
    # onnx-ir reads no weights of which another name is somewhere, as other tests make of what they share.
    tiny_fp32 = Bundle.open(shutil.copytree(tiny_fp32.path, tmp_path / "own"))
    wanted = decoded(tiny_fp32, ir.load(tiny_fp32.graph_path("decode")))
    errors = {}
    for share in ("none", "one", "all"):
        model, _ = quantised(tiny_fp32, calibrated, "decode")
        products = find_quantized(model, "decode")
        for node in {"none": [], "one": list(products.values())[:1], "all": products.values()}[share]:
            relieve(node)
        errors[share] = float(np.abs(decoded(tiny_fp32, model) - wanted).mean())
    assert errors["all"] < errors["none"] / 2
    assert errors["one"] != errors["none"]


def test_no_pair_stands_around_a_relieved_convolution(tiny_fp32, calibrated):
    model, _ = quantised(tiny_fp32, calibrated, "decode")
    for node in find_quantized(model, "decode").values():
        relieve(node)
        assert node.inputs[0].producer() is None or node.inputs[0].producer().op_type != "DequantizeLinear"
        for pair in (use.node for use in node.outputs[0].uses() if use.node.op_type == "QuantizeLinear"):
            assert not any(list(use.node.outputs[0].uses()) for use in pair.outputs[0].uses())


def test_products_per_token_lose_their_pair(tiny_fp32, calibrated):
    model, _ = quantised(tiny_fp32, calibrated, "step", level=2)
    for name in ("step/blocks.0.fc1", "step/blocks.0.fc2"):
        node = find_quantized(model, "step")[name]
        assert (node.op_type, node.inputs[0].producer().op_type) == ("Gemm", "DequantizeLinear")
        relieve(node)
        assert node.inputs[0].producer().op_type == "Div"  # by the token's scale, which the output is multiplied by


def test_products_per_block_are_computed_in_float(tiny_fp32, calibrated):
    model, _ = quantised(tiny_fp32, calibrated, "step", level=2)
    node = find_quantized(model, "step")["step/head"]
    assert node.op_type == "MatMulNBits"
    assert node.attributes["accuracy_level"].as_int() == 4
    relieve(node)
    assert node.attributes["accuracy_level"].as_int() == 1
