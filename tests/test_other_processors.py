"""Bundles on processors that are not here, emulated by QEMU (Debian: qemu-user)."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from engines.bundle.bundle import DEMO_BUNDLE
from tests.bundles import shared_bundle
from tests.kept import ROOT

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
VERIFY = """
import json, sys
from engines.backends.onnxruntime import OnnxRuntimeBackend, import_onnxruntime
from engines.backends.onnxruntime.arithmetic import saturates
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.fidelity.checks import verify

bundle = Bundle.open(sys.argv[1])
with Pipeline(bundle, OnnxRuntimeBackend(threads=1), max_batch=1) as pipeline:
    report = verify(pipeline, bundle.golden)  # the whole run: INT8 is held to what its build measured of that
print(json.dumps({**report.to_dict(), "saturates": saturates(import_onnxruntime())}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed: no other processor is emulated"),
]


@pytest.mark.parametrize(
    ("precision", "processor", "saturates"),
    [
        ("int8", "Haswell-noTSX", True),  # AVX2 without VNNI
        ("fp16", "Westmere", False),  # SSE4.1, without AVX and conversions of FP16
    ],
)
def test_a_bundle_keeps_its_figures(precision, processor, saturates):
    path = shared_bundle("demo-int8") if precision == "int8" else DEMO_BUNDLE
    command = [QEMU, "-cpu", processor, sys.executable, "-c", VERIFY, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=850, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["saturates"] == saturates, "the kernels are not those of the processor that was asked for"
    assert report["failures"] == []
    assert report["passed"] is True
