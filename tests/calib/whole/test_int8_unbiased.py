"""INT8 of a model whose biases are all zero, as a VQ-VAE's are before it is trained: convolutions lose them."""

import onnx_ir as ir
import pytest

from calib.calibration import Calibration
from calib.choose.options import QuantisationOptions
from calib.graphs.layers import find_layers
from calib.judge.variants import Variants
from calib.observe.collect import Requests, collect
from calib.quantise import quantize_bundle
from engines.bundle.bundle import Bundle
from engines.spec.contract import DECODER, ENCODER, PART_OF, PARTS, TRANSFORMER
from engines.spec.policy import FLOAT, STATIC, assign
from tests.bundles import shared_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def base():
    return Bundle.open(shared_bundle("tiny-unbiased"))


@pytest.fixture(scope="module")
def calibration(base) -> Calibration:
    return collect(base, Requests.spread(base.config, 3), threads=1)


@pytest.fixture(scope="module")
def layers(base):
    return [layer for graph in PART_OF for layer in find_layers(ir.load(base.graph_path(graph)), graph)]


def test_the_exporter_dropped_them(layers):
    assert {layer.bias_vector for layer in layers if layer.is_conv} == {None}


@pytest.mark.parametrize("level", [2, 3])
def test_a_bundle_for_the_cpu_passes_its_check(base, calibration, level, tmp_path):
    options = QuantisationOptions(form="both", level=level)
    built = quantize_bundle(base, tmp_path / "int8", options, lambda: calibration, threads=1)
    assert {form: report.passed for form, report in built.reports.items()} == {"stepwise": True, "fused": True}
    ways = built.bundle.provenance["quantisation"]["layers"]
    assert sum(way != FLOAT for way in ways.values()) > len(ways) / 2


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_every_layer_can_be_static(base, calibration, layers, target):
    """Those that smoothing changes too."""
    names = [layer.name for layer in layers]
    ways = assign(names, target, 3, include=["step/*", "decode/*", "encode/*"])
    assert sum(way == STATIC for way in ways.values()) == sum(not name.startswith("cond/") for name in names)
    assert calibration.smoothing
    with Variants(base, threads=1) as variants:
        options = QuantisationOptions(target=target, level=3)
        figures = {part: variants.quantised(part, ways, calibration, options) for part in PARTS}
    assert figures[TRANSFORMER].total.kl < 2e-2
    assert figures[DECODER].psnr > 25
    assert figures[ENCODER].reconstruction_loss is not None
