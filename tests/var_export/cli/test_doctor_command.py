"""`var-export doctor`: what is there, what is missing, whether it works."""

import json

import numpy as np
import pytest

from engines.bundle.manifest import WEIGHTS
from engines.host import environment
from engines.packages import install_command


@pytest.fixture
def demo(monkeypatch):
    """Puts another bundle in the place of the embedded one."""
    return lambda path: monkeypatch.setattr("engines.bundle.bundle.DEMO_BUNDLE", path)


def test_everything_in_order(call, demo, tiny_build):
    demo(tiny_build.path)
    code, out, err = call("doctor")
    assert (code, err) == (0, "")
    for name in environment.PACKAGES:
        assert f"\n{name} " in out
    assert "CPUExecutionProvider" in out
    assert "build bundles " in out
    assert f"verified, {tiny_build.path}" in out
    assert "self-test:  passed (one demo image" in out


def test_no_run_draws_nothing(call, demo, tiny_build, monkeypatch):
    demo(tiny_build.path)
    monkeypatch.setattr(environment, "self_test", lambda *_, **__: pytest.fail("it ran"))
    code, out, _ = call("doctor", "--no-run")
    assert code == 0
    assert "self-test:  left out" in out


def test_json(call, demo, tiny_build):
    demo(tiny_build.path)
    code, out, _ = call("doctor", "--json", "--threads", 1)
    document = json.loads(out)
    assert code == 0
    assert document["packages"]["numpy"] == np.__version__
    assert document["demo"] == {"path": str(tiny_build.path), "present": True, "verified": True, "problem": None}
    assert document["self_test"]["passed"] is True
    assert {capability["what"] for capability in document["capabilities"] if capability["usable"]} >= {
        environment.RUN_ON_CPU,
        "build bundles",
    }


def spoil(path):
    weights = np.memmap(path / WEIGHTS, np.uint8, "r+")
    weights[: len(weights) // 2] = 0


def test_a_failed_self_test_is_exit_code_1(call, demo, altered):
    demo(altered(spoil))
    code, out, err = call("doctor")
    assert code == 1
    assert "self-test:  FAILED" in out
    assert err.startswith("Error: the self-test failed: ")
    code, out, _ = call("doctor", "--json")
    assert (code, json.loads(out)["self_test"]["passed"]) == (1, False)


def test_a_damaged_demo_is_exit_code_1(call, demo, altered):
    path = altered()
    spoil(path)
    demo(path)
    code, out, err = call("doctor")
    assert code == 1
    assert "self-test:  not possible here" in out
    assert "the embedded demo bundle is damaged" in err


def test_no_demo_is_no_failure(call, demo, tmp_path):
    demo(tmp_path / "nothing")
    code, out, _ = call("doctor")
    assert code == 0
    assert "make one with: var-export build" in out


def test_no_runtime(call, demo, tiny_build, monkeypatch):
    import sys

    demo(tiny_build.path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "self-test:  passed" in call("doctor")[1]  # through OpenVINO
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, out, _ = call("doctor")
    assert code == 0
    assert install_command("cpu") in out
    assert "self-test:  not possible here" in out
