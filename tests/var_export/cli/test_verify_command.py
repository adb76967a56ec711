"""`var-export verify`: figures, verdict, exit code; against the stored run and against a new one."""

import json
import re

import numpy as np
import pytest

from engines.bundle.manifest import WEIGHTS
from engines.judging.figures import KINDS, SMOOTHING


def spoil(path):
    """Other weights in the first half of the file."""
    weights = np.memmap(path / WEIGHTS, np.uint8, "r+")
    weights[: len(weights) // 2] = 0


def test_a_good_bundle_passes(call, tiny_build):
    code, out, _ = call("verify", tiny_build.path)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{tiny_build.path}: tiny, fp32, against the run stored in it, 4 images"
    assert lines[2].split() == ["scale", "side", "tokens", "max", "abs", "cosine", "KL", "top-1", "%", "draws", "%"]
    rows = [line.split() for line in lines[3:7]]
    assert [row[:3] for row in rows] == [
        ["0", "1x1", "4"],
        ["1", "2x2", "16"],
        ["2", "4x4", "64"],
        ["all", "84", *rows[3][2:3]],
    ]
    assert all(row[-2:] == ["100.00", "100.00"] for row in rows)
    assert lines[8].split() == ["figure", "measured", "must", "be", "margin"]
    titles = [kind.title for kind in KINDS if kind.part != SMOOTHING]
    assert [line.partition("  ")[0] for line in lines[9 : 9 + len(titles)]] == titles
    assert re.fullmatch(r"Draws alike +100\.00% +>= 99% +none differs", lines[12])
    assert lines[19] == "drawn freely: 100.00% of the tokens alike, 4 of 4 images identical"
    assert re.fullmatch(r"SSIM: decoder alone [01]\.\d{6}, image [01]\.\d{6}", lines[20])
    assert lines[-1] == "passed: within every threshold of fp32"


def test_json(call, tiny_build):
    code, out, _ = call("verify", tiny_build.path, "--json", "--threads", 1)
    document = json.loads(out)
    assert code == 0
    assert document["passed"] is True
    assert document["reference"] == "golden run"
    assert document["runtime"]["provider"] == "CPUExecutionProvider"
    assert document["runtime"]["threads"] == 1
    assert [scale["tokens"] for scale in document["scales"]] == [4, 16, 64]


def test_other_weights_fail_with_exit_code_1(call, altered):
    path = altered(spoil)
    code, out, err = call("verify", path)
    assert code == 1
    assert "\nFAILED\n" in out
    assert "KL (worst at scale" in out
    error = err.splitlines()[-1]
    assert error.startswith(f"Error: {path} misses the reference: largest logit error is")
    code, out, _ = call("verify", path, "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)


def test_damaged_weights_are_not_run_at_all(call, altered):
    path = altered()
    spoil(path)
    code, out, err = call("verify", path)
    assert (code, out) == (2, "")
    assert f"Error: {path / WEIGHTS}" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_fused_form_alone(call, altered, options):
    path = altered(form="fused")
    code, out, _ = call("verify", path, *options)
    assert code == 0
    assert ("4 of 4 images identical" in out) or json.loads(out)["free_identical"] == 4


def test_a_fused_form_with_other_weights_fails(call, altered):
    code, out, err = call("verify", altered(spoil, form="fused"))
    assert code == 1
    assert "FAILED" in out
    assert "misses the reference: draws alike is" in err


def test_a_new_run_of_the_checkpoint(call, tiny_build, tiny_checkpoint):
    code, out, err = call("verify", tiny_build.path, "--checkpoint", tiny_checkpoint, "--images", 2, "--seed", 7)
    assert code == 0
    assert f"against a new run of {tiny_checkpoint}, 2 images" in out
    assert "image 2 of 2 by the PyTorch reference" in err
    document = json.loads(call("verify", tiny_build.path, "--checkpoint", tiny_checkpoint, "--json")[1])
    assert (document["reference"], document["seed"]) == (str(tiny_checkpoint), 1000)


def test_a_new_run_differs_from_the_stored_one(tiny_build):
    from engines.bundle.bundle import Bundle
    from var_export.golden import golden_requests
    from var_export.live import fresh_requests

    config = Bundle.open(tiny_build.path).config
    assert not set(fresh_requests(config, 4, 1000)[1]) & set(golden_requests(config)[1])
    assert fresh_requests(config, 4, 1) == fresh_requests(config, 4, 1)
    assert fresh_requests(config, 16, 1)[0] != fresh_requests(config, 16, 2)[0]


def test_the_settings_of_the_build_are_asked_for(call, tiny_build, tiny_checkpoint):
    live = ("verify", tiny_build.path, "--checkpoint", tiny_checkpoint)
    code, out, err = call(*live, "--set", "vae.quant_resi=0.25")
    assert (code, out) == (2, "")
    assert "vae.quant_resi is 0.25 instead of 0.5" in err.splitlines()[-1]
    code, _, err = call(*live[:-1], "demo")
    assert code == 2
    assert f"demo does not fit {tiny_build.path}" in err.splitlines()[-1]


def test_other_weights_of_the_same_shape_are_named(call, tiny_build, tiny_checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    state = load_file(other / "var.safetensors")
    save_file({name: value * 1.5 for name, value in state.items()}, other / "var.safetensors")
    code, _, err = call("verify", tiny_build.path, "--checkpoint", other)
    assert code == 1
    assert "(it was built from other weights than this checkpoint)" in err.splitlines()[-1]


def test_an_unknown_provider_is_refused(call, tiny_build):
    code, out, err = call("verify", tiny_build.path, "--provider", "abacus")
    assert (code, out) == (2, "")
    assert "abacus" in err.splitlines()[-1]


def test_without_a_bundle_the_newest_is_taken(call, tiny_build, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "mine").symlink_to(tiny_build.path)
    code, out, err = call("verify")
    assert code == 0
    assert err.splitlines()[0] == "using the newest bundle, bundles/mine"
    assert out.startswith("bundles/mine: tiny")


def test_a_log_sees_how_far_the_check_is(call, tiny_build, monkeypatch):
    monkeypatch.setattr("engines.cli.progress.SILENCE", 0.0)
    code, _, err = call("verify", tiny_build.path)
    assert code == 0
    shares = [int(share) for share in re.findall(r"checking \S+ \((\d+)%", err)]
    assert shares == sorted(shares)
    assert {50, 100} <= set(shares)
