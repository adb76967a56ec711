"""Weights of 4 bits and tables of classes: what is stored beside what it stands for, and what kernels make of it."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from test_integers import constants_of, linear, model_of, quantized, random, run, session_of

from calib.calibration import Calibration
from calib.choose.options import QuantisationOptions
from calib.graphs.layers import find_layers
from calib.rewrite.integers import quantize
from calib.rewrite.weights import least_error, quantize_four_bits, quantize_symmetric, quantize_table
from engines.spec.policy import FOUR_BITS, PER_CLASS


def unpacked(packed):
    """Two integers a byte, the first in its lower half."""
    return np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)


def restored(weight, block):
    K, N = weight.shape
    packed, scales, zeros = quantize_four_bits(weight, block)
    assert (packed.dtype, packed.shape) == (np.uint8, (N, -(-K // block), block // 2))
    integers = unpacked(packed).astype(np.float32)
    centres = 8 if zeros is None else unpacked(zeros).reshape(N, -1, 1).astype(np.float32)
    return ((integers - centres) * scales.reshape(N, -1, 1)).reshape(N, -1)[:, :K].T


@pytest.mark.parametrize(("K", "block"), [(64, 32), (96, 32), (256, 128), (384, 128), (40, 32)])
def test_stored_weights_stand_for_the_trained_ones(K, block):
    weight = random(K, 24)
    weight[:block, 3] = 0
    found = restored(weight, block)
    assert not found[:block, 3].any()
    assert 0.05 < np.linalg.norm(found - weight) / np.linalg.norm(weight) < 0.12  # of normal values in 16 steps


def test_blocks_of_an_odd_number_have_no_zero_points():
    assert quantize_four_bits(random(384, 8), 128)[2] is None
    assert quantize_four_bits(random(256, 8), 128)[2].shape == (8,)


@pytest.mark.parametrize("centred", [False, True])
def test_ranges_of_least_error_beat_the_whole_range(centred):
    rows = random(500, 128)
    integers, scales, zeros = least_error(rows, centred=centred)
    assert integers.max() <= 15
    assert (zeros == 8).all() == centred
    found = (integers.astype(np.float32) - zeros[:, None]) * scales[:, None]
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    step = (np.maximum(high, -low) / 7.5 if centred else (high - low) / 15)[:, None]
    centre = 8 if centred else np.rint(-low[:, None] / step)
    naive = ((np.rint(rows / step) + centre).clip(0, 15) - centre) * step
    errors = [((each - rows) ** 2).sum() for each in (found, naive)]
    assert errors[0] < 0.92 * errors[1]
    if not centred:  # the whole range is among the trials
        assert (((found - rows) ** 2).sum(1) <= ((naive - rows) ** 2).sum(1) * 1.0001).all()


def test_weights_of_one_sign_use_all_steps():
    rows = np.abs(random(50, 128)) + 5
    integers, scales, zeros = least_error(rows)
    assert not zeros.any()
    assert np.linalg.norm(integers * scales[:, None] - rows) < 0.03 * np.linalg.norm(rows)


def test_weights_for_tensorrt_are_symmetric():
    weight = random(128, 12)
    integers, scales = quantize_symmetric(weight, 64)
    assert (integers.dtype, integers.shape, scales.shape) == (np.int8, (128, 12), (2, 12))
    assert integers.min() >= -8
    assert integers.max() <= 7
    error = np.linalg.norm(integers * np.repeat(scales, 64, 0) - weight) / np.linalg.norm(weight)
    assert error < 0.12


def test_a_table_is_right_to_half_a_step_of_its_column():
    table = random(40, 30) * np.geomspace(1e-3, 1e3, 30, dtype=np.float32)
    table[:, 5] = 7
    integers, step, low = quantize_table(table)
    found = integers * step + low
    assert (np.abs(found - table) <= 0.5001 * step).all()
    assert (found[:, 5] == 7).all()


@pytest.mark.parametrize("K", [32, 64, 96, 128, 384, 100])
def test_products_are_close_to_float(K):
    model, x = linear(K, 48), random(7, K, seed=5) * np.geomspace(0.01, 100, 7, dtype=np.float32)[:, None]
    changed = quantized(model, FOUR_BITS, precision="int4")
    assert [node.op_type for node in changed.graph.node] == ["Cast", "MatMulNBits"]
    wanted, found = run(model, x), run(changed, x)
    bias = constants_of(model)["blocks.0.fc1.bias"]
    weight = constants_of(model)["blocks.0.fc1.weight"]
    block = next(size for size in (128, 64, 32) if K % size == 0 or size == 32)
    exact = x @ restored(weight, block) + bias
    for row in range(len(x)):
        scale = np.sqrt(np.mean((wanted[row] - bias) ** 2))
        assert 0.03 < np.sqrt(np.mean((found[row] - wanted[row]) ** 2)) / scale < 0.2, row
        assert np.sqrt(np.mean((found[row] - exact[row]) ** 2)) / scale < 0.02, row  # activations of 8 bits


def test_products_for_tensorrt_read_integers_of_four_bits():
    changed = quantized(linear(128, 48), FOUR_BITS, target="tensorrt", precision="int4")
    assert [node.op_type for node in changed.graph.node] == ["DequantizeLinear", "MatMul", "Add"]
    assert changed.opset_import[0].version == 21
    weight = constants_of(linear(128, 48))["blocks.0.fc1.weight"]
    x = random(5, 128, seed=2)
    integers, scales = quantize_symmetric(weight, 128)
    bias = constants_of(linear(128, 48))["blocks.0.fc1.bias"]
    exact = session_of(changed, graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    np.testing.assert_allclose(exact.run(None, {"x": x})[0], x @ (integers * scales) + bias, atol=1e-4)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("biased", [True, False])
def test_a_table_of_classes_gives_what_adaln_gives(target, biased):
    nodes = [
        helper.make_node("Gather", ["class_emb", "labels"], ["x"]),
        helper.make_node("Sigmoid", ["x"], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["silu"]),
        helper.make_node("MatMul", ["silu", "linears.0.weight"], ["product"]),
    ]
    constants = {"class_emb": random(11, 32), "linears.0.weight": random(32, 48, seed=1)}
    if biased:
        nodes.append(helper.make_node("Add", ["product", "linears.0.bias"], ["y"]))
        constants["linears.0.bias"] = random(48, seed=2)
    out = {"y" if biased else "product": ["N", 48]}
    model = model_of(nodes, {"labels": ["N"]}, out, constants)
    changed = ir.from_proto(model)
    layers = find_layers(changed, "cond")
    options = QuantisationOptions(precision="int4", target=target)
    quantize(changed, layers, {layer.name: PER_CLASS for layer in layers}, Calibration("", {}), options)
    assert not {"MatMul", "Sigmoid"} & {node.op_type for node in changed.graph}
    assert "linears.0.weight" not in changed.graph.initializers
    labels = np.array([3, 0, 10, 3])
    wanted, found = (session_of(each).run(None, {"labels": labels})[0] for each in (model, ir.to_proto(changed)))
    table = wanted.max() - wanted.min()
    assert 0 < np.abs(found - wanted).max() < table / 255
