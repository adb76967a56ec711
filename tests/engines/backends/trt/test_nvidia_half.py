"""NVIDIA's builder on FP16 graphs with a layer in FP32, which FP16 could not hold."""

import pytest
from support import copy_bundle

from calib.choose.options import QuantisationOptions
from calib.observe.collect import Requests, collect
from calib.quantise import quantize_bundle
from engines.backends.tensorrt.build import build_plans
from engines.backends.tensorrt.options import PlanOptions
from engines.backends.tensorrt.profiles import BatchRange
from engines.bundle.bundle import Bundle
from engines.bundle.inspection import kept_in_fp32
from tests.bundles import shared_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OPTIONS = PlanOptions(batch=BatchRange(1, 1, 1), compute_capabilities=("8.6",))
LAYER = "decode/up.0.block.0.conv1"


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(shared_bundle("tiny-overflow"))


def test_int8_of_it_is_judged_too(bundle, tmp_path, rtx):
    calibration = collect(bundle, Requests.spread(bundle.config, 3), threads=1)
    options = QuantisationOptions(target="tensorrt", form="both")
    made = quantize_bundle(bundle, tmp_path / "int8", options, lambda: calibration, threads=1)
    assert made.reports["stepwise"].passed
    assert made.reports["fused"].passed
    assert list(kept_in_fp32(made.bundle)) == [LAYER]
    assert set(build_plans(made.bundle.path, "tensorrt-rtx", OPTIONS).plans.graphs) == set(bundle.graphs)


def test_nvidias_builder_takes_it(bundle, tmp_path, rtx):
    path = copy_bundle(bundle.path, tmp_path / "bundle")
    assert set(build_plans(path, "tensorrt-rtx", OPTIONS).plans.graphs) == set(bundle.graphs)
