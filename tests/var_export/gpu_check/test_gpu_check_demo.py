"""The whole command on the demo model, as a user runs it: every step in a process of its own, on an emulated GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
START = f"""
import sys
from var_export.gpu_check import isolation
isolation.WORKER = (sys.executable, "-X", "faulthandler", {str(HERE / "emulated_worker.py")!r})
from var_export.cli.main import main
raise SystemExit(main())
"""
OPTIONS = ("--model", "demo", "--precision", "fp32,fp16", "--backend", "tensorrt", "--batch", "1")


def start(out):
    options = (*OPTIONS, "--runs", "1", "--no-torch", "--out", out)
    return subprocess.Popen(
        [sys.executable, "-c", START, "gpu-check", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(out / "cache"), "OMP_NUM_THREADS": "1"},
    )


def test_interrupted_and_continued_it_passes(tmp_path):
    out = tmp_path / "check"
    out.mkdir()
    process = start(out)
    log = out / "logs/bundle-demo-fp32.log"
    while not log.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[0]  # a worker that does not listen is killed after a minute
    assert process.returncode == 130, said
    assert "the same command continues" in said.splitlines()[-1]
    assert not (out / "bundles/demo-fp32").exists()

    process = start(out)
    said = process.communicate(timeout=800)[0]
    assert process.returncode == 0, said
    document = json.loads((out / "gpu-check.json").read_text())
    assert document["verdict"] == {"passed": True, "checked": 4, "within_thresholds": 4, "failures": []}
    assert (out / "gpu-check.md").read_text().startswith("# GPU check\n\n**PASSED**: 4 of 4 engines")

    process = start(out)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert said.count(": known") == len(document["steps"]) == 2 + 2 + 8
