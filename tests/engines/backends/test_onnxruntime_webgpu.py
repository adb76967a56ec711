"""WebGPU without a GPU: the plugin of ONNX Runtime over SwiftShader, the Vulkan driver that Chromium brings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.backends.onnxruntime.providers import webgpu_error
from engines.bundle.bundle import DEMO_BUNDLE
from tests.bundles import shared_bundle

ROOT = Path(__file__).parents[3]
CHROMIUM = Path("/usr/lib/chromium")
SOFTWARE = {
    "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1",
    "VK_ICD_FILENAMES": str(CHROMIUM / "vk_swiftshader_icd.json"),
    "LD_LIBRARY_PATH": str(CHROMIUM),  # its Vulkan loader
    "XDG_RUNTIME_DIR": "/tmp",
}
DRAW = """
import json, sys
import numpy as np
from engines import Pipeline
asked = {"classes": [1, 0], "seeds": [1, 2], "cfg": [4.0, 0.0]}
with Pipeline.load(sys.argv[1], provider="webgpu", threads=1) as pipeline, Pipeline.load(sys.argv[1], threads=1) as cpu:
    wanted = cpu.generate(**asked)
    for _ in range(2):  # the same buffers again, with other content
        drawn = pipeline.generate(**asked)
        pipeline.generate([2, 3], seeds=5)
    picture = pipeline.encode(wanted.images)
    print(json.dumps({
        "tokens": bool((drawn.tokens == wanted.tokens).all()),
        "pixels": int(np.abs(drawn.images.astype(int) - wanted.images).max()),
        "encoded": bool((picture == cpu.encode(wanted.images)).all()),
        **pipeline.describe_runtime(),
    }))
"""
FAILS = """
import sys
from engines import BackendError, Pipeline
try:
    Pipeline.load(sys.argv[1], provider="webgpu", device=int(sys.argv[2]))
except BackendError as error:
    print(error)
"""


def python(code, *args, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def tiny_fp32_bundle():
    return shared_bundle("tiny-fp32")


@pytest.fixture
def webgpu():
    pytest.importorskip("onnxruntime_ep_webgpu", reason="onnxruntime-ep-webgpu is not installed")


@pytest.fixture
def swiftshader(webgpu):
    if not (CHROMIUM / "vk_swiftshader_icd.json").is_file():
        pytest.skip("no SwiftShader: apt install chromium")


@pytest.mark.slow
def test_it_draws_what_the_cpu_draws(swiftshader, tiny_fp32_bundle):
    found = json.loads(python(DRAW, tiny_fp32_bundle, **SOFTWARE))
    assert (found["tokens"], found["encoded"]) == (True, True)
    assert found["pixels"] <= 1
    assert found["provider"] == "WebGpuExecutionProvider"
    assert found["nodes"]["step"]["WebGpuExecutionProvider"] > 8 * found["nodes"]["step"]["CPUExecutionProvider"]


def test_what_it_cannot_run_is_one_line(swiftshader, demo_int8_bundle):
    # SwiftShader lacks half precision; INT8 would leave its QuantizeLinear to the CPU.
    assert python(FAILS, DEMO_BUNDLE, 0, **SOFTWARE) == (
        "this GPU has no half precision in WebGPU (shader-f16): take a bundle in fp32"
    )
    assert "would run QuantizeLinear of step.onnx on the CPU; take a bundle in fp32 or fp16" in (
        python(FAILS, demo_int8_bundle, 0, **SOFTWARE)
    )


def test_without_a_gpu_it_says_what_it_needs(webgpu, tiny_fp32_bundle):
    hidden = {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "0", "VK_ICD_FILENAMES": "", "LD_LIBRARY_PATH": ""}
    assert python(FAILS, tiny_fp32_bundle, 0, **hidden) == (
        "WebGPU finds no GPU here; on Linux it needs a GPU driver with Vulkan and its loader (Debian: libvulkan1)"
    )
    assert python(FAILS, tiny_fp32_bundle, 1, **hidden) == "WebGPU chooses the GPU itself, and knows no device 1"


def test_its_errors_say_what_to_do():
    assert "finds no GPU that it can use" in str(webgpu_error(RuntimeError("Failed to get a WebGPU adapter: No"), "x"))
    assert "running step: something" in str(webgpu_error(RuntimeError("something"), "running step"))
