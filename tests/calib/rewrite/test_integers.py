"""Held against onnxruntime.quantization, float arithmetic, and what ONNX Runtime makes of the graphs."""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.calibration import Calibration
from calib.choose.options import QuantisationOptions
from calib.choose.ranges import Ranges
from calib.graphs.layers import find_layers
from calib.rewrite.integers import quantize
from calib.rewrite.weights import quantize_blocks, quantize_weight
from calib.statistics import Statistics
from engines.backends.onnxruntime.arithmetic import exact_products
from engines.spec.policy import BLOCK, FLOAT, FOUR_BITS, PER_BLOCK, PER_TOKEN, STATIC, assign

MINMAX = Ranges(method="minmax")
FLOATS = {"Gemm", "Conv", "MatMul", "FusedConv", "FusedMatMul", "FusedGemm", "DequantizeLinear"}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(nodes, inputs, outputs, constants):
    """Tensors float, but for `labels`; shapes by name."""
    types = collections.defaultdict(lambda: TensorProto.FLOAT, labels=TensorProto.INT64)
    infos = [
        [helper.make_tensor_value_info(name, types[name], shape) for name, shape in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *infos, [numpy_helper.from_array(a, name) for name, a in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def linear(K=64, N=48, seed=0, role="fc1", biased=True):
    weight, bias = f"blocks.0.{role}.weight", f"blocks.0.{role}.bias"
    nodes = [helper.make_node("MatMul", ["x", weight], ["h" if biased else "y"])]
    constants = {weight: random(K, N, seed=seed)}
    if biased:
        nodes.append(helper.make_node("Add", ["h", bias], ["y"]))
        constants[bias] = random(N, seed=seed + 1)
    return model_of(nodes, {"x": ["M", K]}, {"y": ["M", N]}, constants)


def convolution(channels=16, seed=0, biased=True):
    """Two of them, so that what lies between is 8 bits wide, and something else behind."""
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"][: 2 + biased], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["h", "b.weight", "b.bias"][: 2 + biased], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["z"], ["y"]),
    ]
    constants = {
        "a.weight": random(channels, channels, 3, 3, seed=seed) / 12, "a.bias": random(channels, seed=seed + 1),
        "b.weight": random(channels, channels, 3, 3, seed=seed + 2) / 12, "b.bias": random(channels, seed=seed + 3),
    }  # fmt: skip
    return model_of(nodes, {"x": ["B", channels, 8, 8]}, {"y": ["B", channels, 8, 8]}, constants)


def session_of(model, **options):
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = 3
    exact_products(onnxruntime, chosen)
    for name, value in options.items():
        setattr(chosen, name, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), chosen, providers=["CPUExecutionProvider"])


def run(model, x):
    return session_of(model).run(None, {"x": x})[0]


def values_of(model, x):
    """All tensors of a model, in float."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    known = {output.name for output in model.graph.output}
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = session_of(shown, graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    return {"x": x} | dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))


def quantized(model, way, x=None, graph="step", target="onnxruntime", ranges=MINMAX, precision="int8"):
    """Calibrated with `x` alone."""
    changed = ir.from_proto(model)
    layers = find_layers(changed, graph)
    calibration = Calibration("", {})
    if x is not None:
        values = values_of(model, x)
        for layer in layers:
            for which, name in (("input", layer.input.name), ("output", layer.node.outputs[0].name)):
                statistics = calibration.tensors[f"{layer.name}:{which}"] = Statistics()
                statistics.add(values[name], 0, 1 if layer.is_conv else -1)
    ways = {layer.name: way for layer in layers} if isinstance(way, str) else way
    options = QuantisationOptions(precision=precision, target=target, ranges=ranges)
    quantize(changed, layers, ways, calibration, options)
    proto = ir.to_proto(changed)
    onnx.checker.check_model(proto, full_check=way not in (PER_BLOCK, FOUR_BITS))
    return proto


def constants_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def optimized_ops(model, tmp_path):
    """What ONNX Runtime runs in the end."""
    file = tmp_path / "optimized.onnx"
    session_of(model, optimized_model_filepath=str(file))
    return collections.Counter(node.op_type for node in onnx.load(file).graph.node)


# Against onnxruntime.quantization


class Reader:
    def __init__(self, x):
        self._left = [{"x": x}]

    def get_next(self):
        return self._left.pop() if self._left else None


def quantized_by_onnxruntime(model, x, tmp_path):
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "theirs.onnx",
        Reader(x),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Conv"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    return onnx.load(tmp_path / "theirs.onnx")


def parameters(model):
    """By tensor of the float model: integers (of constants), scale and zero point of the nodes that dequantise it."""
    constants, made = constants_of(model), {node.output[0]: node for node in model.graph.node}
    found = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        before = made.get(node.input[0])
        integers = None if before is not None else constants[node.input[0]]
        source = before.input[0] if before is not None else node.input[0]
        zero = constants[node.input[2]] if len(node.input) > 2 else np.int32(0)
        found[source.removesuffix(".quantized").removesuffix("_quantized")] = integers, constants[node.input[1]], zero
    return found


@pytest.mark.parametrize(("make", "graph"), [(linear, "step"), (convolution, "decode")])
def test_parameters_are_those_of_onnxruntime_quantization(make, graph, tmp_path):
    model = make()
    x = random(32, 64, seed=9) + 0.7 if make is linear else random(4, 16, 8, 8, seed=9) + 0.7
    theirs = parameters(quantized_by_onnxruntime(model, x, tmp_path))
    ours = parameters(quantized(model, STATIC, x, graph))
    compared = 0
    for name, (integers, scale, zero) in ours.items():
        if name not in theirs:
            continue
        wanted, wanted_scale, wanted_zero = theirs[name]
        np.testing.assert_allclose(scale, wanted_scale.reshape(scale.shape), rtol=2e-6, err_msg=name)
        assert zero.dtype == wanted_zero.dtype or integers is not None
        assert not np.any(zero - wanted_zero.reshape(-1)[0]), name
        compared += 1
        if integers is not None:
            assert integers.dtype == wanted.dtype
            # A scale that differs in its last bit moves what lies halfway between two integers.
            differences = np.abs(np.int64(integers) - wanted)
            assert differences.max() <= 1
            assert np.count_nonzero(differences) <= 0.002 * integers.size
    weights = {name for name in constants_of(model) if name.endswith("weight")}
    assert weights | {"x"} <= ours.keys() & theirs.keys()
    assert compared >= (2 if make is linear else 6)


def test_a_weight_has_a_scale_per_output_channel():
    weight = random(40, 24) * np.geomspace(1e-3, 1e3, 24, dtype=np.float32)
    weight[:, 5] = 0
    integers, scale = quantize_weight(weight, 1)
    assert (integers.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (24,))
    assert np.abs(np.int64(integers)).max(0).tolist() == [0 if n == 5 else 127 for n in range(24)]
    assert np.abs(integers * scale - weight).max(0) == pytest.approx(scale / 2, rel=0.2, abs=0.5)
    assert (np.abs(integers * scale - weight) <= 0.5001 * scale).all()
    turned, same = quantize_weight(weight.T.reshape(24, 8, 5, 1), 0)
    np.testing.assert_array_equal(turned.reshape(24, 40).T, integers)
    np.testing.assert_array_equal(same, scale)


# Blocks


@pytest.mark.parametrize("K", [32, 64, 100, 8, 33])
def test_blockwise_products_are_close_to_float(K):
    model, x = linear(K, 48), random(7, K, seed=5) * np.geomspace(0.01, 100, 7, dtype=np.float32)[:, None]
    changed = quantized(model, PER_BLOCK)
    assert [node.op_type for node in changed.graph.node] == ["MatMulNBits"]
    assert [value.name for value in changed.graph.output] == ["y"]
    wanted, found = run(model, x), run(changed, x)
    bias = constants_of(model)["blocks.0.fc1.bias"]
    for row in range(len(x)):  # whatever its size
        error = np.sqrt(np.mean((found[row] - wanted[row]) ** 2) / np.mean((wanted[row] - bias) ** 2))
        assert 1e-4 < error < 0.012, row  # of weights and activations, in steps of max / 127


def test_blocks_restore_the_weight():
    weight = random(100, 24)
    weight[32:64, 3] = 0
    blocks, scales = quantize_blocks(weight)
    assert (blocks.shape, blocks.dtype) == ((24, 4, BLOCK), np.uint8)
    assert (scales.shape, scales.dtype) == ((96,), np.float32)
    restored = ((np.float32(blocks) - 128) * scales.reshape(24, 4, 1)).reshape(24, -1)
    assert not restored[:, 100:].any()
    steps = np.repeat(scales.reshape(24, 4), BLOCK, 1)[:, :100]
    assert (np.abs(restored[:, :100] - weight.T) <= 0.5001 * steps).all()


@pytest.mark.parametrize("way", [PER_TOKEN, PER_BLOCK, STATIC, FOUR_BITS])
def test_a_token_does_not_depend_on_the_others(way):
    """An image is the same alone and in any batch."""
    x = random(40, 96, seed=3)
    session = session_of(quantized(linear(96, 160), way, x))
    together = session.run(None, {"x": x})[0]
    loud = session.run(None, {"x": np.concatenate([x[:8], 50 * x[8:]])})[0]
    np.testing.assert_array_equal(loud[:8], together[:8])
    for start, stop in [(0, 1), (7, 8), (39, 40), (3, 5), (10, 19), (4, 40), (0, 33)]:
        np.testing.assert_array_equal(session.run(None, {"x": x[start:stop]})[0], together[start:stop])


def test_products_in_more_dimensions():
    nodes = [helper.make_node("MatMul", ["x", "word_embed.weight"], ["y"])]
    constants = {"word_embed.weight": random(8, 48)}
    model = model_of(nodes, {"x": ["B", "M", 8]}, {"y": ["B", "M", 48]}, constants)
    x = random(2, 9, 8, seed=1)
    for way in (PER_TOKEN, PER_BLOCK, STATIC):
        found = run(quantized(model, way, x), x)
        assert np.abs(found - run(model, x)).max() < 0.2
        assert found.shape == (2, 9, 48)


# Tokens


def gelu(x):
    return (x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2).astype(np.float32)


def relative_errors(model, changed, x):
    """Root mean square per row, of the product without its bias."""
    (bias,) = [array for name, array in constants_of(model).items() if name.endswith("bias")]
    wanted, found = (run(each, x).astype(np.float64) for each in (model, changed))
    return np.sqrt(np.mean((found - wanted) ** 2, 1) / np.mean((wanted - bias) ** 2, 1))


def rounding(x, steps):
    """Of Gaussian weights too: root mean square of uniform noise in steps, of x (M, K) and of a weight (K, N)."""
    weight = np.abs(random(x.shape[1], 48)).max(0) / 127
    return np.sqrt(steps**2 / 12 / np.mean(x.astype(np.float64) ** 2, 1) + np.mean(weight**2) / 12)


@pytest.mark.parametrize("K", [64, 512])
def test_rows_of_any_size_have_the_error_of_their_own_range(K):
    model = linear(K, 48)
    x = random(24, K, seed=5) * np.geomspace(1e-6, 1e6, 24, dtype=np.float32)[:, None]
    steps = np.maximum(x.max(1) / 127, -x.min(1) / 128)
    ratio = relative_errors(model, quantized(model, PER_TOKEN), x) / rounding(x, steps)
    large = np.abs(x).max(1) > 1e-2  # below, the bias of 1 leaves few digits of the product
    assert 0.6 < ratio[large].min() <= ratio[large].max() < 1.5
    assert ratio[large].mean() == pytest.approx(1, abs=0.1)


def test_what_comes_out_of_gelu_has_nearly_all_integers():
    """With fc1's zero point steps are 1.76 times as wide."""
    x = gelu(3 * random(64, 256, seed=5))
    errors = {}
    for role, zero in {"fc1": 128, "fc2": 32}.items():
        model = linear(256, 48, role=role)
        errors[role] = relative_errors(model, quantized(model, PER_TOKEN), x)
        steps = np.maximum(x.max(1) / (255 - zero), -x.min(1) / zero)
        assert (errors[role] / rounding(x, steps)).mean() == pytest.approx(1, abs=0.1), role
    assert errors["fc2"].mean() < 0.8 * errors["fc1"].mean()


@pytest.mark.parametrize("role", ["fc1", "fc2"])
def test_rows_that_have_one_sign_are_not_clipped(role):
    x = np.concatenate([np.abs(random(4, 64)), -np.abs(random(4, 64, seed=1)), np.eye(4, 64, dtype=np.float32)])
    model = linear(64, 48, role=role)
    constants = constants_of(quantized(model, PER_TOKEN))
    zero = next(int(array) for name, array in constants.items() if name.endswith("activation.zero"))
    steps = np.maximum(x.max(1) / (255 - zero), -x.min(1) / zero)
    assert (relative_errors(model, quantized(model, PER_TOKEN), x) < 1.5 * rounding(x, steps)).all()


def test_rows_of_zeros_give_the_bias():
    model, x = linear(64, 48), random(5, 64)
    x[1] = 0
    x[2] = 1e-38
    changed = quantized(model, PER_TOKEN)
    found = run(changed, x)
    np.testing.assert_array_equal(found[1], constants_of(model)["blocks.0.fc1.bias"])
    np.testing.assert_allclose(found, run(model, x), atol=0.3)
    assert all(np.isfinite(values).all() for values in values_of(changed, x).values())  # what becomes integers too


def test_a_token_with_its_own_range_is_an_integer_product(tmp_path):
    ops = optimized_ops(quantized(linear(), PER_TOKEN), tmp_path)
    around = {"ReduceMax": 1, "ReduceMin": 1, "Max": 1, "Div": 1, "QuantizeLinear": 1, "Mul": 3, "Add": 1}
    assert ops == around | {"QGemm": 1}


# What ONNX Runtime makes of it


def test_a_static_linear_is_an_integer_product(tmp_path):
    model, x = linear(), random(50, 64, seed=2)
    changed = quantized(model, STATIC, x)
    ops = optimized_ops(changed, tmp_path)
    assert ops == {"QuantizeLinear": 1, "QGemm": 1}
    wanted = run(model, x)
    assert 1e-4 < np.sqrt(np.mean((run(changed, x) - wanted) ** 2) / np.mean(wanted**2)) < 0.02


def test_static_convolutions_are_integer_products(tmp_path):
    model, x = convolution(), random(4, 16, 8, 8, seed=2)
    changed = quantized(model, STATIC, x, "decode")
    ops = optimized_ops(changed, tmp_path)
    assert ops["QLinearConv"] == 2
    assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 1  # the ends: 8 bits in between
    assert not FLOATS - {"DequantizeLinear"} & ops.keys()
    wanted = run(model, x)
    assert 1e-4 < np.sqrt(np.mean((run(changed, x) - wanted) ** 2) / np.mean(wanted**2)) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("level", [2, 3])
@pytest.mark.parametrize("graph", ["cond", "step", "decode", "encode"])
def test_no_float_product_is_left_in_a_model(tiny_fp32, calibrated, tmp_path, graph, level):
    """Of the layers that are quantised; on a fresh copy of the tiny model's graphs."""
    model = ir.load(tiny_fp32.graph_path(graph))
    layers = find_layers(model, graph)
    weights = {layer.name: layer.weight.name for layer in layers}
    ways = assign(weights, "onnxruntime", level)
    count = collections.Counter(ways.values())
    quantize(model, layers, ways, calibrated, QuantisationOptions())
    (tmp_path / "weights.bin").write_bytes((tiny_fp32.path / "weights.bin").read_bytes())
    ir.save(model, tmp_path / f"{graph}.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    ops = collections.Counter(node.op_type for node in optimized.graph.node)
    assert ops["QGemm"] + ops["QLinearConv"] == count[STATIC] + count[PER_TOKEN]
    assert ops["MatMulNBits"] == count[PER_BLOCK]
    left = {weights[name] for name, way in ways.items() if way == FLOAT}
    assert set(weights.values()) & set(model.graph.initializers) == left
    trained = {tensor.name for tensor in optimized.graph.initializer if tensor.name.endswith(".weight")}
    assert trained <= left
    # Float products of constants: the layers that stay, and what was none (sampler, interpolation, phi).
    constants = {tensor.name for tensor in optimized.graph.initializer}
    floats = [node for node in optimized.graph.node if node.op_type in FLOATS and len(node.input) > 1]
    floats = [node for node in floats if node.input[1] in constants and node.op_type != "DequantizeLinear"]
    before = onnx.load(tiny_fp32.graph_path(graph), load_external_data=False).graph
    known = {tensor.name for tensor in before.initializer}
    products = [node for node in before.node if node.op_type in ("MatMul", "Conv") and node.input[1] in known]
    assert len(floats) <= len(products) - len(layers) + count[FLOAT]
    dequantised = {node.input[0] for node in optimized.graph.node if node.op_type == "DequantizeLinear"}
    assert not dequantised & constants


def test_weights_that_are_used_no_more_are_dropped():
    x = random(5, 64)
    for way in (STATIC, PER_TOKEN, PER_BLOCK):
        constants = constants_of(quantized(linear(), way, x))
        assert "blocks.0.fc1.weight" not in constants
        size = sum(array.nbytes for array in constants.values())
        assert size < 0.35 * sum(array.nbytes for array in constants_of(linear()).values())
    assert constants_of(quantized(linear(), FLOAT)).keys() == constants_of(linear()).keys()


def test_float_layers_stay_as_they_are():
    model = convolution()
    x = random(2, 16, 8, 8)
    changed = quantized(model, {"decode/a": FLOAT, "decode/b": STATIC}, x, "decode")
    constants = constants_of(changed)
    np.testing.assert_array_equal(constants["a.weight"], constants_of(model)["a.weight"])
    (first,) = [node for node in changed.graph.node if node.output[0] == "h"]
    assert list(first.input) == ["x", "a.weight", "a.bias"]


def test_an_input_of_two_layers_is_quantised_once():
    nodes = [
        helper.make_node("MatMul", ["x", "a.fc1.weight"], ["h"]),
        helper.make_node("MatMul", ["x", "b.fc1.weight"], ["i"]),
        helper.make_node("Add", ["h", "i"], ["y"]),
    ]
    constants = {"a.fc1.weight": random(16, 8), "b.fc1.weight": random(16, 8, seed=1)}
    model = model_of(nodes, {"x": ["M", 16]}, {"y": ["M", 8]}, constants)
    x = random(6, 16)
    changed = quantized(model, STATIC, x)
    assert [node.op_type for node in changed.graph.node].count("QuantizeLinear") == 1
    assert np.abs(run(changed, x) - run(model, x)).max() < 0.2


def test_the_method_of_ranges_counts():
    x = random(400, 64)
    x[0, 0] = 1000
    scales = {
        method: float(parameters(quantized(linear(), STATIC, x, ranges=Ranges(method=method, percentile=99)))["x"][1])
        for method in ("minmax", "percentile", "mse")
    }
    assert scales["minmax"] == pytest.approx((1000 - x.min()) / 255, rel=1e-5)
    assert scales["percentile"] < 0.03
    assert scales["percentile"] < scales["mse"] <= scales["minmax"]


# Without a bias


@pytest.mark.parametrize(
    ("make", "way", "target"),
    [
        (linear, STATIC, "onnxruntime"),
        (linear, PER_TOKEN, "onnxruntime"),
        (linear, PER_BLOCK, "onnxruntime"),
        (convolution, STATIC, "onnxruntime"),
        (linear, STATIC, "tensorrt"),
        (convolution, STATIC, "tensorrt"),
    ],
)
def test_layers_need_no_bias(make, way, target, tmp_path):
    """The exporter drops biases that are zero: all of a VQ-VAE's are before it is trained."""
    model, graph = make(biased=False), "step" if make is linear else "decode"
    x = random(32, 64, seed=9) if make is linear else random(4, 16, 8, 8, seed=9)
    changed = quantized(model, way, x, graph, target)
    wanted = run(model, x)
    assert 1e-4 < np.sqrt(np.mean((run(changed, x) - wanted) ** 2) / np.mean(wanted**2)) < 0.03
    if target == "onnxruntime":
        product = {STATIC: "QGemm", PER_TOKEN: "QGemm", PER_BLOCK: "MatMulNBits"}[way]
        ops = optimized_ops(changed, tmp_path)
        assert ops["QLinearConv" if make is convolution else product] == len(find_layers(ir.from_proto(model), graph))
        assert not FLOATS - {"DequantizeLinear"} & ops.keys()


# For TensorRT


@pytest.mark.parametrize(("make", "graph"), [(linear, "step"), (convolution, "decode")])
def test_pairs_for_tensorrt_are_symmetric_and_on_products_alone(make, graph):
    model = make()
    x = random(32, 64, seed=9) if make is linear else random(4, 16, 8, 8, seed=9)
    changed = quantized(model, STATIC, x, graph, "tensorrt")
    constants, made = constants_of(changed), {node.output[0]: node for node in changed.graph.node}
    products = [node for node in changed.graph.node if node.op_type in ("MatMul", "Conv")]
    assert len(products) == (1 if make is linear else 2)
    for node in products:
        for name in node.input[:2]:
            assert made[name].op_type == "DequantizeLinear"
        assert constants[made[node.input[1]].input[0]].dtype == np.int8
        assert all(name in constants for name in node.input[2:])  # a bias in float
    for node in changed.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    wanted = run(model, x)
    assert np.sqrt(np.mean((run(changed, x) - wanted) ** 2) / np.mean(wanted**2)) < 0.03
