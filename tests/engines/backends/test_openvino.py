"""OpenVINO beside ONNX Runtime: the same tokens from the same bundles, alone and in any batch."""

import threading

import numpy as np
import pytest
from support import copy_bundle

from engines.backends import create
from engines.backends.openvino import OpenVinoBackend
from engines.backends.openvino.arithmetic import saturates
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError, BundleError, CheckFailedError
from engines.packages import install_command

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def pipeline():
    with Pipeline.load(DEMO_BUNDLE, backend="openvino", threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def other():
    with Pipeline.load(DEMO_BUNDLE, backend="onnxruntime", threads=1) as pipeline:
        yield pipeline


def alike(ours, theirs):
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert np.abs(ours.images.astype(int) - theirs.images).max() <= 1


def test_it_draws_what_onnx_runtime_draws(pipeline, other):
    asked = {"classes": [88, 3, 171, 5, 9], "seeds": [1, 2, 3, 4, 5], "cfg": [1.0, 0.0, 4.0, 2.0, 1.5]}
    alike(pipeline.generate(**asked), other.generate(**asked))
    for k in range(2):  # of another shape, and of the first one again
        for images in (1, 5):
            few = {name: values[k : k + images] for name, values in asked.items()}
            alike(pipeline.generate(**few), other.generate(**few))


def test_it_previews_edits_encodes_and_decodes_alike(pipeline, other):
    for ours, theirs in zip(pipeline.stream([88, 3], seeds=7), other.stream([88, 3], seeds=7), strict=True):
        alike(ours, theirs)
    picture = other.generate(88).images
    np.testing.assert_array_equal(pipeline.encode(picture), other.encode(picture))
    lower = np.arange(8)[:, None].repeat(8, 1) >= 4
    alike(pipeline.edit(picture, lower, [3, 4], seeds=1), other.edit(picture, lower, [3, 4], seeds=1))
    assert np.abs(pipeline.reconstruct(picture).astype(int) - other.reconstruct(picture)).max() <= 1


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_bundles_of_other_kinds(demo_both_bundle, form):
    with (
        Pipeline.load(demo_both_bundle, backend="openvino", threads=1, form=form) as ours,
        Pipeline.load(demo_both_bundle, threads=1, form=form) as theirs,
    ):
        alike(ours.generate([88, 3], seeds=1), theirs.generate([88, 3], seeds=1))


def test_an_int8_bundle_keeps_its_thresholds_on_any_processor(demo_int8_bundle, monkeypatch):
    with Pipeline.load(demo_int8_bundle, backend="openvino", threads=1, check="always") as pipeline:
        pipeline.encode(pipeline.generate(88).images)
        assert pipeline.backend.arithmetic() == {"saturates": saturates(openvino)}
    monkeypatch.setattr("engines.backends.openvino.runner.saturates", lambda _: False)
    if not saturates(openvino):
        return
    with pytest.raises(CheckFailedError, match="OpenVINO computes something else here: take --backend onnxruntime"):
        Pipeline.load(demo_int8_bundle, backend="openvino", threads=1, check="always")


def test_auto_takes_what_is_there(other):
    with Pipeline.load(DEMO_BUNDLE, backend="openvino", device="AUTO", threads=1) as pipeline:
        alike(pipeline.generate([88, 3], seeds=1), other.generate([88, 3], seeds=1))


def test_threads_share_a_pipeline(pipeline, other):
    wanted = [other.generate([k, k + 1], seeds=k) for k in range(4)]
    drawn = {}
    threads = [
        threading.Thread(target=lambda k=k: drawn.__setitem__(k, pipeline.generate([k, k + 1], seeds=k)))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        alike(drawn[k], wanted[k])


def test_it_says_what_it_is(pipeline):
    described = pipeline.describe_runtime()
    assert (described["backend"], described["device"], described["threads"]) == ("openvino", "CPU", 1)
    assert described["openvino"].startswith(openvino.__version__.split("-")[0])


def test_what_is_missing_is_one_line(monkeypatch, demo_bf16_bundle):
    with pytest.raises(BackendError, match="finds no XPU here; it has CPU"):
        OpenVinoBackend("XPU")
    with pytest.raises(BackendError, match=r"devices of OpenVINO have names: CPU, GPU, NPU, AUTO or GPU\.1, not 1"):
        create("openvino", device=1)
    with pytest.raises(BackendError, match="provider cuda is one of ONNX Runtime's"):
        create("openvino", provider="cuda")
    with pytest.raises(BackendError, match="device GPU is a name of OpenVINO's, and onnxruntime counts them from 0"):
        create("onnxruntime", device="GPU")
    with pytest.raises(BackendError, match="threads must be 1 or more"):
        create("openvino", threads=0)
    with create("openvino") as backend, pytest.raises(BackendError, match="is for TensorRT: build one"):
        backend.open(Bundle.open(demo_bf16_bundle), "step")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(BackendError) as caught:
        create("openvino")
    assert str(caught.value).endswith(install_command("openvino"))


def test_a_bundle_that_was_replaced_is_not_mixed(tmp_path):
    bundle = Bundle.open(copy_bundle(DEMO_BUNDLE, tmp_path / "a"))
    copy_bundle(DEMO_BUNDLE, tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "old")
    (tmp_path / "b").rename(tmp_path / "a")
    with create("openvino") as backend, pytest.raises(BundleError, match="was replaced since it was opened"):
        backend.open(bundle, "step")


def test_what_it_throws_is_one_line_of_ours():
    from engines.backends.openvino.runner import translated

    raised = RuntimeError("Exception from src/x.cpp:224:\nException from src/y.cpp:1:\n[CPU] MatMul: shapes\n\n")
    assert str(translated(raised, "running step")) == "OpenVINO failed while running step: [CPU] MatMul: shapes"
    assert "lower the batch size" in str(translated(RuntimeError("std::bad_alloc"), "running step"))
