"""`var-export build --target`: plans join a bundle, are checked on the GPU that is here, and go again if they miss.

The GPU is emulated: plans are the ONNX graphs, run in host memory.
"""

import json
from pathlib import Path

import pytest

from engines.bundle.bundle import Bundle
from engines.judging import thresholds
from engines.spec.choices import PLAN_TARGETS

STRICT = thresholds.Thresholds(0, 0, 1, 1, 0, 500.0, 500.0, 1, 0, 1, 500.0, 0)


@pytest.fixture
def bundle(altered) -> Path:
    return altered()


def sets(bundle):
    return [plans.name for plans in Bundle.open(bundle).plans]


@pytest.mark.parametrize("target", PLAN_TARGETS)
def test_plans_of_a_bundle(target, bundle, call, emulate):
    emulate(rtx=target == "tensorrt-rtx")
    args = ("build", bundle, "--target", target, "--batch", "1:1:2")
    code, out, err = call(*args)
    assert code == 0, err
    plans, stepwise, fused, following = out.splitlines()
    (name,) = sets(bundle)
    assert plans.startswith(f"plans {name} (") and plans.endswith(", sm 8.6, batch 1 to 2")
    assert stepwise.startswith("check of the stepwise plans against PyTorch: passed; largest logit error ")
    assert fused.startswith("check of the fused plans against PyTorch: passed; draws alike ")
    assert following == f"next: var-run --bundle {bundle} --class 0"
    assert "engine 2 of" in err
    assert "check: fused plans against the golden run" in err

    code, out, err = call(*args)
    assert (code, out.splitlines()[0].partition(" (")[0]) == (0, f"up to date: plans {name}")
    code, out, _ = call(*args, "--json")
    assert json.loads(out)["plans"]["reused"] is True


@pytest.mark.slow
def test_a_checkpoint_all_the_way(call, emulate, tiny_checkpoint, tmp_path):
    emulate()
    args = ("build", tiny_checkpoint, "--precision", "fp32", "--target", "tensorrt", "--batch", "1", "--json")
    code, out, err = call(*args, "--threads", "1", "--out", tmp_path / "made")
    assert code == 0, err
    document = json.loads(out)
    assert document["path"] == str(tmp_path / "made")
    assert document["plans"]["name"] == sets(tmp_path / "made")[0]
    assert document["plans"]["checks"]["stepwise"]["passed"] is True
    assert document["plans"]["not_checked"] is None


@pytest.mark.slow
def test_another_batch_takes_the_place_of_the_first(bundle, call, emulate):
    emulate()
    call("build", bundle, "--target", "tensorrt", "--batch", "1")
    (first,) = sets(bundle)
    code, out, _ = call("build", bundle, "--target", "tensorrt", "--batch", "2")
    assert code == 0
    assert f"they take the place of {first}" in out.splitlines()
    assert len(sets(bundle)) == 1


@pytest.mark.slow
def test_plans_for_another_gpu_are_built_and_not_judged_by_older_ones(bundle, call, emulate, monkeypatch):
    """What fits this GPU is an older set: it must neither speak for the new one nor have it removed."""
    emulate(rtx=True)
    assert call("build", bundle, "--target", "tensorrt-rtx", "--batch", "1")[0] == 0
    (here,) = sets(bundle)
    monkeypatch.setitem(thresholds.THRESHOLDS, "fp32", STRICT)  # the older set would miss it
    code, out, err = call(
        "build", bundle, "--target", "tensorrt-rtx", "--batch", "1", "--compute-capability", "12.0", "--json"
    )
    assert code == 0, err
    document = json.loads(out)["plans"]
    assert document["checks"] == {}
    assert "cannot run them: it is for GPUs of compute capability 12.0" in document["not_checked"]
    assert sets(bundle) == [here, document["name"]]


def test_plans_that_miss_the_reference_are_removed(bundle, call, emulate, monkeypatch):
    emulate()
    monkeypatch.setitem(thresholds.THRESHOLDS, "fp32", STRICT)
    code, out, err = call("build", bundle, "--target", "tensorrt", "--batch", "1")
    assert code == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("Error: the tensorrt plans miss the reference and were removed: ")
    assert sets(bundle) == []
    assert not (bundle / "plans").exists()


def test_without_a_gpu(bundle, call, emulate):
    emulate(rtx=True, devices=0)
    code, _, err = call("build", bundle, "--target", "tensorrt-rtx")
    assert code == 2
    assert err.splitlines()[-1].endswith("name it with --compute-capability, such as 8.9")
    code, out, err = call("build", bundle, "--target", "tensorrt-rtx", "--batch", "1", "--compute-capability", "8.9")
    assert code == 0, err
    assert out.splitlines()[1].startswith("built, not run: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workspace", "64"), "--workspace needs --target tensorrt or tensorrt-rtx, not onnxruntime"),
        (("--target", "tensorrt", "--batch", "4:1:8"), "batch"),
        (("--target", "tensorrt", "--compute-capability", "8.9"), "compute-capability"),
        (("--target", "tensorrt-rtx", "--timing-cache", "cache"), "timing-cache"),
        (("--target", "tensorrt", "--builder-config", "missing.toml"), "missing.toml"),
        (("--target", "tensorrt", "--precision", "fp32"), "--precision is for checkpoints"),
        (("--target", "tensorrt", "--no-plans"), "--no-plans leaves nothing to build"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_built(options, words, bundle, call, emulate):
    emulate()
    code, out, err = call("build", bundle, *options)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert sets(bundle) == []
