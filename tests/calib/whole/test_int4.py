"""INT4 on the demo model: what it must reach, what is stored in which form, and that nothing depends on a batch."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest

from calib.choose.options import QuantisationOptions
from calib.choose.selection import Bounds
from calib.judge.attribution import blame
from calib.quantise import quantize_bundle
from engines.backends.openvino import OpenVinoBackend
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import WEIGHTS
from engines.draw.pipeline import Pipeline
from engines.errors import BundleError
from engines.fidelity.checks import verify
from engines.sizing.memory import memory
from engines.sizing.workload import Workload
from engines.spec.policy import FLOAT, FOUR_BITS, PER_BLOCK, PER_CLASS, PER_TOKEN, STATIC, role_of
from tests.bundles import shared_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(shared_bundle("demo-int4"), verify=False)


def test_it_reaches_what_it_must(bundle):
    run, fused = bundle.manifest.recorded("stepwise").run, bundle.manifest.recorded("fused").run
    assert bundle.precision == "int4"
    assert 1e-3 < run["kl"] < 1e-2
    assert run["image_psnr"] > 32
    assert (fused["draws"], fused["image_psnr"]) == (run["draws"], run["image_psnr"])


def test_layers_are_in_the_forms_that_the_policy_says(bundle):
    ways = bundle.provenance["quantisation"]["layers"]
    by_role = {role_of(name): way for name, way in ways.items() if way != FLOAT}
    assert by_role == {
        "adaln": PER_CLASS,
        "qkv": FOUR_BITS,
        "proj": FOUR_BITS,
        "fc1": PER_TOKEN,
        "fc2": PER_TOKEN,
        "head": PER_BLOCK,
        "conv": STATIC,
    }
    step = onnx.load(bundle.graph_path("step"), load_external_data=False)
    bits = Counter(
        attribute.i
        for node in step.graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    )
    assert bits == {4: 2 * bundle.config.transformer.depth, 8: 1}
    cond = {node.op_type for node in onnx.load(bundle.graph_path("cond"), load_external_data=False).graph.node}
    assert not {"MatMul", "Gemm", "MatMulNBits", "Sigmoid"} & cond


def test_its_weights_are_as_much_smaller_as_estimated(bundle, demo_int8_bundle):
    shared = {"config": bundle.config, "target": "onnxruntime"}
    four, eight = (memory(Workload(precision=name, **shared)) for name in ("int4", "int8"))
    stored = [each.files[WEIGHTS].size for each in (bundle, Bundle.open(demo_int8_bundle, verify=False))]
    assert eight.weights - four.weights == pytest.approx(stored[1] - stored[0], rel=0.02)


def test_an_image_is_the_same_alone_and_in_any_batch(bundle):
    request = {"classes": [88, 3, 88, 0, "none"], "seeds": [4, 5, 6, 7, 8], "cfg": [2.0, 0.0, 3.0, 0.5, 0.0]}
    with Pipeline.load(bundle.path, check="never") as pipeline:
        together = pipeline.generate(**request)
        for place in range(5):
            alone = pipeline.generate(**{name: values[place] for name, values in request.items()})
            np.testing.assert_array_equal(alone.tokens[0], together.tokens[place])
    with Pipeline.load(bundle.path, form="fused", check="never") as pipeline:
        np.testing.assert_array_equal(pipeline.generate(**request).tokens, together.tokens)


def test_openvino_computes_it_within_its_thresholds(bundle):
    with Pipeline(bundle, OpenVinoBackend(hint="f32"), max_batch=1) as pipeline:
        report = verify(pipeline, bundle.golden)
    assert report.passed
    assert report.precision == "int4"
    assert report.total.kl < 1e-2


def test_tensorrt_does_not_build_it(bundle):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu12 is not installed")
    from engines.backends.tensorrt.build import build_plans
    from engines.backends.tensorrt.options import PlanOptions

    with pytest.raises(BundleError, match="--precision int4 --target tensorrt-rtx"):
        build_plans(bundle.path, "tensorrt-rtx", PlanOptions(compute_capabilities=("8.6",)))


def test_as_much_is_saved_as_a_bound_lets(base, calibrated, tmp_path):
    """Between 4 bits, 8 and floating point, layer by layer; of a tiny model."""
    shared = {"precision": "int4"}
    given = {"calibrated": lambda: calibrated, "threads": 1}
    all_four = quantize_bundle(base, tmp_path / "all", QuantisationOptions(level=3, **shared), **given)
    bounds = Bounds(kl=all_four.reports["stepwise"].total.kl / 4)
    file = tmp_path / "sensitivity.json"
    options = QuantisationOptions(bounds=bounds, **shared)
    made = quantize_bundle(base, tmp_path / "chosen", options, sensitivity=file, **given)
    assert 0 < made.reports["stepwise"].total.kl <= bounds.kl
    ways = made.bundle.provenance["quantisation"]["layers"]
    chosen = Counter(way for name, way in ways.items() if name.startswith("step/"))
    assert chosen[FOUR_BITS]
    assert chosen[PER_TOKEN] + chosen[STATIC] + chosen[PER_BLOCK]
    assert json.loads(file.read_text())["unit"] == "bytes"


def test_blame_knows_its_products(bundle):
    found = blame(bundle, ("transformer",))
    assert {"qkv", "proj", "fc1", "fc2", "head"} <= {each.layers for each in found}
    assert all(each.after < 1.5 * each.before for each in found)
