"""`var-export build --precision bf16`: what it says of a bundle that this machine cannot run."""

import pytest

from engines.bundle.bundle import Bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bf16") / "tiny"


def test_a_bf16_bundle_is_checked_and_leads_to_the_gpu(call, tiny_checkpoint, folder):
    args = ("build", tiny_checkpoint, "--precision", "bf16", "--threads", 1, "--out", folder)
    code, out, err = call(*args)
    assert code == 0, err
    assert "check: engines against the golden run, rounding emulated in FP32" in err
    lines = out.splitlines()
    assert lines[1].startswith("check of the stepwise form against PyTorch, rounding emulated: passed; largest")
    elsewhere = "next, with a copy of the bundle on the machine that is to run it"
    assert lines[2] == f"{elsewhere}: var-export build {folder} --target tensorrt"
    assert Bundle.open(folder).precision == "bf16"
    assert call(*args)[1].startswith("up to date: ")

    code, _, err = call("build", folder)
    assert code == 2
    assert err == f"Error: {folder} is a bundle already; for an NVIDIA GPU add --target tensorrt or tensorrt-rtx\n"

    code, out, _ = call("inspect", folder, "--graphs")
    assert code == 0
    assert "bfloat16" in out


@pytest.mark.parametrize("rtx", [False, True])
def test_where_a_gpu_is_here_the_next_command_is_for_it(call, demo_bf16_bundle, emulate, rtx):
    from var_export.cli.build import _next_line

    bundle, target = Bundle.open(demo_bf16_bundle), "tensorrt-rtx" if rtx else "tensorrt"
    emulate(rtx=rtx)
    assert _next_line(bundle) == f"next: var-export build {bundle.path} --target {target}"
