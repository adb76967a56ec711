"""Half-precision graphs rewritten so that a CPU shows their rounding."""

import contextlib
import json

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import demo_reference, eager

from calib.graphs.changed import ChangedGraphs
from calib.graphs.emulate import emulate
from calib.judge.acceptance import check as check_of_a_build
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError, CheckFailedError
from engines.fidelity.checks import verify
from engines.judging.similarity import psnr
from engines.judging.thresholds import THRESHOLDS, Thresholds
from tests.bundles import shared_bundle

pytestmark = pytest.mark.slow

NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ONNX = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
HALVES = sorted(NUMPY)
NEVER = Thresholds(0.0, 0.0, 2.0, 2.0, -1.0, 999.0, 999.0, 2.0, -1.0, 2.0, 999.0, -1.0)
WEIGHT = np.array([[1.37, -0.251, 3.07], [-2.11, 0.777, 0.0313]], np.float32)
BIAS = np.array([0.123, 100.7, -0.377], np.float32)


@contextlib.contextmanager
def running(bundle, folder, form="stepwise"):
    """A pipeline of the bundle whose graphs have their rounding emulated."""
    with (
        ChangedGraphs(bundle, emulated=True, beside=folder) as graphs,
        Pipeline(bundle, OnnxRuntimeBackend(threads=1, sessions=graphs.open), form=form) as pipeline,
    ):
        yield pipeline


def small_graph(precision):
    """Every kind of node: into half, a product, a sum, one that moves, a cache in and out, and back to float32."""
    half = ONNX[precision]
    weights = [
        helper.make_tensor(name, half, array.shape, array.astype(NUMPY[precision]).tobytes(), raw=True)
        for name, array in (("weight", WEIGHT), ("bias", BIAS))
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=half),
        helper.make_node("MatMul", ["low", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["new"]),
        helper.make_node("Concat", ["past", "new"], ["all"], axis=0),
        helper.make_node("Transpose", ["all"], ["turned"], perm=[1, 0]),
        helper.make_node("Mul", ["turned", "turned"], ["square"]),
        helper.make_node("Cast", ["square"], ["y"], to=TensorProto.FLOAT),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", TensorProto.FLOAT, ["n", 2]), value("past", half, ["p", 3])],
        [value("y", TensorProto.FLOAT, [3, None]), value("new", half, ["n", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def rewritten(proto, precision):
    model = ir.from_proto(proto)
    emulate(model, precision)
    return ir.to_proto(model)


def session(proto, **options):
    settings = onnxruntime.SessionOptions()
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("optimized", [True, False])
def test_a_small_graph_gives_what_a_hand_computes(precision, optimized):
    """Products of two have one rounding in float32 whatever their order, so the results are the same bit for bit."""
    proto = rewritten(small_graph(precision), precision)
    onnx.checker.check_model(proto, full_check=True)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((64, 2)).astype(np.float32)
    half = NUMPY[precision]

    def rounded(array):
        return array.astype(half).astype(np.float32)

    past = rounded(rng.standard_normal((9, 3)).astype(np.float32))
    new = rounded(rounded(rounded(x) @ rounded(WEIGHT)) + rounded(BIAS))
    square = rounded(np.concatenate((past, new)).T ** 2)

    levels = onnxruntime.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    y, given = session(proto, graph_optimization_level=level).run(["y", "new"], {"x": x, "past": past})
    np.testing.assert_array_equal(given, new)
    np.testing.assert_array_equal(y, square)
    exact = np.concatenate((past, x @ WEIGHT + BIAS)).T ** 2
    assert np.abs(y - exact).max() > 1e-3, "the rounding shows"


@pytest.mark.parametrize("precision", HALVES)
def test_rounding_is_to_nearest_even(precision):
    half = NUMPY[precision]
    steps = np.arange(-300, 300).astype(np.float32)
    ulp = np.float32(np.finfo(half).eps if half is np.float16 else 2**-7)
    x = np.stack((1 + steps * ulp / 2, steps * ulp / 4), axis=1).astype(np.float32)  # ties at every other place
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["low"], to=ONNX[precision]),
            helper.make_node("Cast", ["low"], ["y"], to=TensorProto.FLOAT),
        ],
        "cast",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    proto = rewritten(onnx.shape_inference.infer_shapes(model), precision)
    (y,) = session(proto).run(None, {"x": x})
    np.testing.assert_array_equal(y, x.astype(half).astype(np.float32))


@pytest.mark.parametrize("precision", HALVES)
def test_every_computed_value_is_rounded_once(precision):
    """A cast in, a product, a sum, a square and two weights; what only moves is not rounded again."""
    nodes = rewritten(small_graph(precision), precision).graph.node
    into_half = [node for node in nodes if node.op_type == "Cast" and node.attribute[0].i == ONNX[precision]]
    assert len(into_half) == 4
    back = [node.input[0] for node in nodes if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT]
    assert {"weight", "bias", *(node.output[0] for node in into_half)} <= set(back)


def test_a_float32_graph_stays_as_it_is():
    for file in shared_bundle("tiny-fp32").glob("*.onnx"):
        model = ir.load(file)
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        emulate(model, "fp32")
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.fixture(scope="module")
def bf16():
    """A tiny BF16 bundle in both forms; its build has passed the check already."""
    return Bundle.open(shared_bundle("tiny-bf16"))


def test_an_emulated_run_has_float32_graphs_on_the_same_weights(bf16, tmp_path):
    with ChangedGraphs(bf16, emulated=True, beside=tmp_path) as graphs:
        for graph in bf16.graphs:
            files = []
            runnable = graphs.open(graph, files.append)
            (file,) = files
            assert file.parent.parent == tmp_path
            assert (file.parent / "weights.bin").samefile(bf16.path / "weights.bin")
            model = onnx.load(file, load_external_data=False)
            tensors = (runnable.inputs, runnable.outputs)
            for infos, values in zip(tensors, (model.graph.input, model.graph.output), strict=True):
                got = [(v.name, helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)) for v in values]
                assert got == [(info.name, np.dtype(info.dtype)) for info in infos]
            types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
            takes_half = [
                node.op_type
                for node in model.graph.node
                for name in node.input
                if types.get(name) == TensorProto.BFLOAT16
            ]
            assert set(takes_half) <= {"Cast"}
    assert not list(tmp_path.iterdir()), "gone afterwards"


def test_the_emulated_cache_is_on_the_grid(bf16, tmp_path):
    with (
        ChangedGraphs(bf16, emulated=True, beside=tmp_path) as graphs,
        OnnxRuntimeBackend(threads=1, sessions=graphs.open) as backend,
    ):
        engine = backend.open(bf16, "step")
        varying = {"B": 1, "N": 1, "L": 1, "M": 4, "P": 0}
        rng = np.random.default_rng(0)

        def make(infos):
            shapes = {info.name: tuple(varying.get(dim, dim) for dim in info.shape) for info in infos}
            return {info.name: backend.buffer(shapes[info.name], info.dtype) for info in infos}

        inputs, outputs = make(engine.inputs), make(engine.outputs)
        for name in ("x", "adaln", "head_adaln"):
            inputs[name].write(rng.standard_normal(inputs[name].shape).astype(np.float32))
        inputs["temperature"].write(np.ones(1, np.float32))
        engine.bind(inputs, outputs).run()
        for name in ("new_k_0", "new_v_1"):
            value = outputs[name].read()
            assert np.abs(value).max() > 0
            np.testing.assert_array_equal(value, value.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_an_emulated_run_tells_what_it_is(bf16, tmp_path):
    """The label stays true, and reports say that the graphs were not the bundle's own."""
    with running(bf16, tmp_path) as pipeline:
        assert pipeline.bundle.precision == "bf16"
        assert pipeline.describe_runtime()["graphs"] == "changed"


def test_both_forms_round_alike(bf16, tmp_path):
    results = []
    for form in bf16.forms:
        with running(bf16, tmp_path, form) as pipeline:
            results.append(pipeline.generate([0, 1, 2], seeds=7))
    stepwise, fused = results
    np.testing.assert_array_equal(stepwise.tokens, fused.tokens)
    assert psnr(stepwise.images, fused.images) > 50


@pytest.mark.parametrize("precision", HALVES)
def test_it_errs_as_pytorch_does_in_half_precision(precision, request, tmp_path):
    """The same modules, run eagerly with real half-precision rounding, lose as much against FP32."""
    pytest.importorskip("torch")
    from var_export.build import make_graph
    from var_export.graphs.precision import PRECISIONS
    from var_export.graphs.quantize import Quantizer

    reference = demo_reference()
    module = make_graph("decode", reference, Quantizer(reference.vae.quantize), PRECISIONS[precision], 900)
    bundle = Bundle.open(request.getfixturevalue(f"demo_{precision}_bundle"))
    golden = bundle.golden
    (eagerly,) = eager(module)({"f_hat": golden["f_hat"]})
    with running(bundle, tmp_path) as pipeline:
        image = pipeline.decode_features(golden["f_hat"])
    assert psnr(image, golden["image"]) == pytest.approx(psnr(eagerly, golden["image"]), abs=0.5)  # 47.7; 41.9
    assert psnr(image, eagerly) > psnr(image, golden["image"]) + 6


def test_a_bf16_bundle_is_held_to_its_thresholds(monkeypatch, bf16):
    reports, _ = check_of_a_build(bf16, 1)
    assert {form: (report.precision, report.passed) for form, report in reports.items()} == {
        "stepwise": ("bf16", True),
        "fused": ("bf16", True),
    }
    monkeypatch.setitem(THRESHOLDS, "bf16", NEVER)
    with pytest.raises(CheckFailedError, match="miss the reference"):
        check_of_a_build(bf16, 1)


def test_a_finished_bf16_bundle_holds_no_trace_of_the_check(bf16):
    listed = json.loads((bf16.path / "manifest.json").read_text())["files"]
    assert {file.name for file in bf16.path.iterdir()} == {*listed, "manifest.json"}


def test_reports_judge_by_the_precision_that_is_emulated(bf16, tmp_path):
    with running(bf16, tmp_path) as pipeline:
        report = verify(pipeline, bf16.golden)
    assert report.precision == "bf16"
    assert report.passed, report.failures
    assert report.total.max_abs > 1e-4, "BF16 shows"
    assert report.to_dict()["thresholds"]["kl"] == THRESHOLDS["bf16"].kl


def test_onnx_runtime_refuses_the_bundle_itself_in_one_line(bf16):
    with pytest.raises(BackendError, match="TensorRT") as caught:
        Pipeline.load(bf16.path)
    assert "\n" not in str(caught.value)
    assert "fp16" in str(caught.value), "what to build instead"
