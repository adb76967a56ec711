"""What all tests share: bundles, emulated machines, the order in which they run and the threads that they have."""

import importlib.util
import os
from pathlib import Path

import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.errors import BundleError
from tests.browsing import chromium as chromium  # a fixture
from tests.bundles import shared_bundle
from tests.hub_server import hub as hub  # a fixture
from tests.kept import KEPT, changed

# Fixtures that start another program for seconds: a Triton server, a browser, NVIDIA's builder.
PROGRAMS = {"needs_triton", "chromium", "rtx", "swiftshader"}

os.environ["XDG_CACHE_HOME"] = str(KEPT / "cache")  # verdicts of devices, kernels: not in the home of who tests

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the cores
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if importlib.util.find_spec("onnxruntime") is not None:
        from tests.one_thread import limit_onnxruntime

        limit_onnxruntime()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with slow tests come first, those with the longest time limits before all: workers end together."""
    limits = {}
    for item in items:
        if PROGRAMS & set(item.fixturenames):
            item.add_marker("slow")
        timeout = item.get_closest_marker("timeout")
        limit = 1 if item.get_closest_marker("slow") else 0
        limits[item.path] = max(limits.get(item.path, 0), limit * (timeout.args[0] if timeout else 1))
    items.sort(key=lambda item: -limits[item.path])


@pytest.fixture(scope="session")
def demo_fp32_bundle() -> Path:
    """The demo model in FP32, stepwise. Shared: copy it before changing a file."""
    return shared_bundle("demo-fp32")


@pytest.fixture(scope="session")
def demo_fp16_bundle() -> Path:
    """The demo model in FP16, stepwise: the embedded bundle if there is one. Shared: copy it before changing a file."""
    try:
        return Bundle.open(DEMO_BUNDLE).path
    except BundleError:
        return shared_bundle("demo-fp16")


@pytest.fixture(scope="session")
def demo_bf16_bundle() -> Path:
    """The demo model in BF16, stepwise; no CPU runs it. Shared: copy it before changing a file."""
    return shared_bundle("demo-bf16")


@pytest.fixture(scope="session")
def demo_smooth_bundle() -> Path:
    """The demo model in FP32, both forms, which can mix codebook entries. Shared: copy it before changing a file."""
    return shared_bundle("demo-smooth")


@pytest.fixture(scope="session")
def demo_both_bundle() -> Path:
    """The demo model in FP16, stepwise and fused. Shared: copy it before changing a file."""
    return shared_bundle("demo-both")


@pytest.fixture(scope="session")
def demo_int8_bundle() -> Path:
    """The demo model in INT8 for the CPU, both forms, default level, few samples. Shared: copy it before a change."""
    return shared_bundle("demo-int8")


@pytest.fixture(scope="session", autouse=True)
def shared_bundles_stay_as_they_are():
    """A test that changes a shared bundle changes what others test: it has to copy it first."""
    yield
    assert changed() == []


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
