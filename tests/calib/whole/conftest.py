import onnx_ir as ir
import pytest

from calib.graphs.layers import find_layers
from calib.observe.collect import Requests, collect
from engines.bundle.bundle import Bundle
from engines.spec.policy import assign
from tests.bundles import shared_bundle


@pytest.fixture(scope="session")
def base() -> Bundle:
    """A tiny model in FP32, with random weights, alone in a folder. Shared: change nothing."""
    return Bundle.open(shared_bundle("tiny-fp32"))


@pytest.fixture(scope="session")
def calibrated(base):
    """`base`, calibrated and smoothed. Shared: change nothing."""
    return collect(base, Requests.spread(base.config, 4), threads=1)


@pytest.fixture
def ways(base):
    """Of level 2."""
    graphs = ("cond", "step", "decode", "encode")
    layers = [layer.name for g in graphs for layer in find_layers(ir.load(base.graph_path(g)), g)]
    return assign(layers, "onnxruntime", 2)
