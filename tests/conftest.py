"""Bundles that tests of several packages share; each is built at most once per session."""

from pathlib import Path

import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.errors import BundleError
from tests.bundles import shared_bundle


@pytest.fixture(scope="session")
def demo_fp32_bundle(tmp_path_factory) -> Path:
    """The demo model in FP32, stepwise. Shared: copy it before changing a file."""
    return shared_bundle("demo-fp32", tmp_path_factory)


@pytest.fixture(scope="session")
def demo_fp16_bundle(tmp_path_factory) -> Path:
    """The demo model in FP16, stepwise: the embedded bundle if there is one. Shared: copy it before changing a file."""
    try:
        return Bundle.open(DEMO_BUNDLE).path
    except BundleError:
        return shared_bundle("demo-fp16", tmp_path_factory)


@pytest.fixture(scope="session")
def demo_bf16_bundle(tmp_path_factory) -> Path:
    """The demo model in BF16, stepwise; no CPU runs it. Shared: copy it before changing a file."""
    return shared_bundle("demo-bf16", tmp_path_factory)


@pytest.fixture(scope="session")
def demo_smooth_bundle(tmp_path_factory) -> Path:
    """The demo model in FP32, both forms, which can mix codebook entries. Shared: copy it before changing a file."""
    return shared_bundle("demo-smooth", tmp_path_factory)


@pytest.fixture(scope="session")
def demo_both_bundle(tmp_path_factory) -> Path:
    """The demo model in FP16, stepwise and fused. Shared: copy it before changing a file."""
    return shared_bundle("demo-both", tmp_path_factory)


@pytest.fixture(scope="session")
def demo_int8_bundle(demo_fp32_bundle, tmp_path_factory) -> Path:
    """The demo model in INT8 for the CPU, both forms, default level, few samples. Shared: copy it before a change."""
    pytest.importorskip("onnx_ir", reason="onnx-ir is not installed: nothing is quantised")
    from calib.observe.collect import Requests, collect
    from calib.quantise import quantize_bundle
    from calib.rewrite.graphs_of_bundle import Int8Options

    out = tmp_path_factory.mktemp("bundles") / "demo-int8"
    base = Bundle.open(demo_fp32_bundle)
    options = Int8Options(form="both")
    return quantize_bundle(base, out, options, lambda: collect(base, Requests.spread(base.config, 8))).bundle.path


@pytest.fixture
def emulate(monkeypatch, tmp_path):
    """Makes a machine with an emulated GPU, which the code then finds: the last one made. All are checked at the end.

    Keywords: see `tests.emulation.machine.Emulation`.
    """
    from tests.emulation.machine import Emulation

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def make(**options):
        made.append(Emulation(monkeypatch, **options))
        return made[-1]

    yield make
    for emulation in made:
        emulation.close()
