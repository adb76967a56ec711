"""The fused form of INT8 bundles: the same kernels at every scale, the same draws, the same weights."""

import re
from collections import Counter, defaultdict

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.spec.policy import PER_BLOCK, PER_TOKEN, STATIC

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
INTEGER = {"QGemm": (STATIC, PER_TOKEN), "QLinearConv": (STATIC,), "MatMulNBits": (PER_BLOCK,)}
REQUEST = {
    "classes": [88, 3, 88, 0, "none"],
    "seeds": [4, 5, 6, 7, 8],
    "cfg": [2.0, 0.0, 3.0, 0.5, 0.0],
    "top_k": [900, 5, 20, 1, 20],
}


@pytest.fixture(scope="module")
def bundle(demo_int8_bundle):
    return Bundle.open(demo_int8_bundle, verify=False)


def kernels(bundle, graph, tmp_path):
    """How many of each integer kernel ONNX Runtime runs, by the part of the graph they are in."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(bundle.graph_path(graph), options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    found = defaultdict(Counter)
    for node in model.graph.node:
        if node.op_type in INTEGER:
            part = re.match(r"scale\d+|cond|decode", node.name or node.output[0])
            found[part[0] if part else graph][node.op_type] += 1
    constants = {tensor.name for tensor in model.graph.initializer}
    dequantised = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert dequantised == []  # no integer weight is turned into floats at run time
    return dict(found)


def test_every_scale_has_the_kernels_of_the_stepwise_form(bundle, tmp_path):
    stepwise = {}
    for graph in ("cond", "step", "decode"):
        stepwise |= kernels(bundle, graph, tmp_path)
    ways = bundle.provenance["quantisation"]["layers"]
    for graph, found in stepwise.items():
        wanted = Counter(way for name, way in ways.items() if name.startswith(f"{graph}/"))
        for these in ((STATIC, PER_TOKEN), (PER_BLOCK,)):
            made = sum(count for op, count in found.items() if set(INTEGER[op]) <= set(these))
            assert made == sum(wanted[way] for way in these)
    step = stepwise.pop("step")
    expected = stepwise | {f"scale{scale}": step for scale in range(bundle.config.num_scales)}
    assert kernels(bundle, "fused", tmp_path) == expected


def test_it_draws_what_the_stepwise_form_draws(bundle):
    with (
        Pipeline.load(bundle.path, form="stepwise", threads=1) as stepwise,
        Pipeline.load(bundle.path, form="fused", threads=1) as fused,
    ):
        wanted, found = stepwise.generate(**REQUEST), fused.generate(**REQUEST)
        alone = fused.generate(88, seeds=6, cfg=3.0, top_k=20)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.drawn, wanted.drawn)
    np.testing.assert_array_equal(found.images, wanted.images)
    np.testing.assert_array_equal(alone.tokens[0], found.tokens[2])


def test_it_shares_the_weights(bundle):
    regions = {}
    for graph in ("cond", "step", "decode", "fused"):
        model = onnx.load(bundle.graph_path(graph), load_external_data=False)
        entries = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data]
        regions[graph] = {(entry["offset"], int(entry["length"])) for entry in entries}
    stepwise = regions["cond"] | regions["step"] | regions["decode"]
    assert stepwise <= regions["fused"]
    resampling = sum(array.nbytes for array in map(bundle.constant, bundle.constants))
    assert sum(length for _, length in regions["fused"] - stepwise) <= resampling


def test_it_imports_what_its_parts_import(bundle):
    def opsets(graph):
        model = onnx.load(bundle.graph_path(graph), load_external_data=False)
        return {entry.domain: entry.version for entry in model.opset_import}

    assert opsets("fused") == opsets("step") == {"": 20, "com.microsoft": 1}
