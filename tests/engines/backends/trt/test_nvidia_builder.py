"""NVIDIA's own builder on our graphs: TensorRT-RTX builds without a GPU where it is told the compute capability."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import copy_bundle

from engines.backends.tensorrt.build import build_plan, build_plans
from engines.backends.tensorrt.options import PlanOptions
from engines.backends.tensorrt.profiles import BatchRange, profiles_of
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.bundle.manifest import Manifest
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError
from engines.spec import contract
from tests.bundles import shared_bundle

CONFIG = Manifest.read(DEMO_BUNDLE).config
OPTIONS = PlanOptions(batch=BatchRange(1, 1, 1), compute_capabilities=("8.6",))  # the fastest to build
ROOT = Path(__file__).parents[4]
STOPPED = 7
pytestmark = pytest.mark.slow


def build_graph(library, path, graph, progress=lambda done: None, file=None):
    """Plan of a bundle's graph, or of another file that should hold that graph."""
    bundle = Bundle.open(path, verify=False)
    inputs, _ = bundle.tensors(graph)
    profiles = profiles_of(graph, bundle.config, inputs, OPTIONS.batch)
    file = file or bundle.graph_path(graph)
    return build_plan(library, file, profiles, OPTIONS, OPTIONS.compute_capabilities, progress)


def weight_bytes(file):
    """Of the distinct weights that a graph refers to."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    places = {
        (entry["offset"], int(entry["length"]))
        for tensor in model.graph.initializer
        for entry in [{pair.key: pair.value for pair in tensor.external_data}]
        if entry
    }
    return sum(length for _, length in places)


@pytest.fixture(scope="module")
def planned(rtx, demo_both_bundle, tmp_path_factory):
    """The demo model in FP16 with plans that NVIDIA's builder made, and what was told meanwhile."""
    path = copy_bundle(demo_both_bundle, tmp_path_factory.mktemp("planned") / "bundle")
    told = []
    built = build_plans(path, "tensorrt-rtx", OPTIONS, progress=lambda line, done: told.append((line, done)))
    return path, built, told


@pytest.mark.parametrize("graph", contract.graphs_of("both"))
def test_every_graph_is_in_the_plans_of_a_bundle(graph, planned):
    path, built, _ = planned
    assert built.plans.graphs[graph].size > 0.9 * weight_bytes(path / f"{graph}.onnx"), "the weights are in it"


@pytest.mark.parametrize("name", ["tiny-fp32", "tiny-bf16"])
@pytest.mark.parametrize("graph", contract.graphs_of("both"))
def test_every_graph_builds_in_other_precisions(graph, name, rtx):
    """With all its profiles: of `step`, one per scale."""
    path = shared_bundle(name)
    assert memoryview(build_graph(rtx, path, graph)).nbytes > 0.9 * weight_bytes(path / f"{graph}.onnx")


@pytest.mark.parametrize("graph", ["step", "fused"])
def test_graphs_that_mix_codebook_entries_build(graph, rtx):
    path = shared_bundle("tiny-smooth")
    assert "noise" in {info.name for info in Bundle.open(path).tensors(graph)[0]}
    assert memoryview(build_graph(rtx, path, graph)).nbytes > 0.9 * weight_bytes(path / f"{graph}.onnx")


def test_a_bundle_is_given_plans(planned, rtx):
    path, built, _ = planned
    assert not built.reused
    (plans,) = Bundle.open(path).plans
    assert plans == built.plans
    assert plans.built_on.version == rtx.version
    assert plans.compute_capabilities == ("8.6",)
    assert set(plans.graphs) == set(contract.graphs_of("both"))
    assert plans.graphs["step"].profiles == CONFIG.num_scales
    bundle = Bundle.open(path)
    assert all(bundle.plan_problem(plan) is None for plan in plans.graphs.values())
    assert build_plans(path, "tensorrt-rtx", OPTIONS).reused


def test_progress_grows_from_nothing_to_all(planned):
    _, _, told = planned
    lines = list(dict.fromkeys(line for line, _ in told))
    assert [line.rpartition(" ")[2] for line in lines] == list(contract.graphs_of("both"))
    for line in lines:
        shares = [done for other, done in told if other == line]
        assert shares[:2] == [None, 0]
        assert shares[-1] == 1
        assert shares[1:] == sorted(shares[1:]), "it never falls back"
        assert len({round(share, 2) for share in shares[1:]}) > 10, "and says more than that it has begun and ended"


def test_without_a_gpu_the_plans_are_refused_for_that_reason(planned):
    pytest.importorskip("cuda.bindings", reason="cuda-bindings are not installed")
    from cuda.bindings import runtime

    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("this machine has a GPU")
    path, _, _ = planned
    with pytest.raises(BackendError) as caught:
        Pipeline.load(path, backend="tensorrt-rtx")
    message = str(caught.value)
    assert "\n" not in message
    assert "GPU" in message
    assert "driver" in message
    assert str(runtime.cudaGetDeviceCount()[0].name) in message


def test_a_file_that_is_no_graph_is_one_line(rtx, tmp_path):
    file = tmp_path / "step.onnx"
    file.write_bytes(b"rubbish")
    with pytest.raises(BackendError) as caught:
        build_plan(rtx, file, [], OPTIONS, OPTIONS.compute_capabilities)
    assert "\n" not in str(caught.value)
    assert "step.onnx" in str(caught.value)


def test_a_graph_without_its_weights_is_one_line(rtx, demo_both_bundle, tmp_path):
    (tmp_path / "cond.onnx").write_bytes((demo_both_bundle / "cond.onnx").read_bytes())
    with pytest.raises(BackendError) as caught:
        build_graph(rtx, demo_both_bundle, "cond", file=tmp_path / "cond.onnx")
    assert "\n" not in str(caught.value)
    assert "cond.onnx" in str(caught.value)


def test_a_progress_bar_that_fails_stops_the_build(rtx, demo_both_bundle, capfd):
    """As where the terminal is gone. NVIDIA's binding would print the exception, and call it the user's wish."""

    def fail(done):
        if done > 0:
            raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        build_graph(rtx, demo_both_bundle, "accumulate", fail)
    assert "Traceback" not in capfd.readouterr().err


INTERRUPTED = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    from engines.backends.tensorrt.build import build_plans
    from engines.backends.tensorrt.options import PlanOptions
    from engines.backends.tensorrt.profiles import BatchRange

    def progress(line, done):
        if line.endswith("step") and done and done > 0.5:  # where the builder is for most of its time
            print("now", flush=True)

    options = PlanOptions(batch=BatchRange(1, 1, 1), compute_capabilities=("8.6",))
    try:
        build_plans(Path(sys.argv[1]), "tensorrt-rtx", options, progress=progress)
    except KeyboardInterrupt:
        sys.exit(int(sys.argv[2]))
    """
)


def test_ctrl_c_stops_the_builder_and_leaves_the_bundle_as_it_was(rtx, demo_both_bundle, tmp_path):
    path = copy_bundle(demo_both_bundle, tmp_path / "bundles" / "model")
    before = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path), str(STOPPED)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "now\n"
        assert list(path.glob("plans/.*.partial")), "it is under way"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - start
    finally:
        process.kill()
    assert process.returncode == STOPPED, f"ended by {process.returncode}: {errors}"
    assert seconds < 15, "a few seconds, on a machine that may be busy"
    assert {file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()} == before
    assert not (path / "plans").exists()
