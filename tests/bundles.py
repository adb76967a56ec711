"""Bundles that tests share, by name: built once for a state of the code, and kept for the next run (`tests.kept`).

    python -m tests.bundles 2      (`make test-bundles`)

builds them all, two at a time. Building one needs PyTorch; a kept one serves an interpreter that has none, which takes
it as it is: `make test-runtime` does that.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engines.bundle.manifest import MANIFEST
from tests.kept import given, locked, made_once
from tests.support import demo_checkpoint, need_torch, tiny_checkpoint, tiny_config


def _tiny():
    return tiny_checkpoint(tiny_config(patch_nums=(1, 2, 3, 4)))


def _unbiased():
    """As the official code leaves a VQ-VAE before it is trained; here no layer of the transformer has a bias either."""
    checkpoint = tiny_checkpoint(tiny_config("unbiased"))

    def zeroed(state):
        return {name: value * (not name.endswith("bias")) for name, value in state.items()}

    return replace(checkpoint, var_state=zeroed(checkpoint.var_state), vae_state=zeroed(checkpoint.vae_state))


def overflowing(name: str = "decoder.up.0.block.0.conv1", factor: float = 3e5, *, part: str = "vae_state"):
    """A tiny model, one of whose layers goes beyond FP16; of a convolution before a GroupNorm, FP32 shows nothing."""
    checkpoint = tiny_checkpoint(tiny_config("overflow"))
    state = {
        key: value * (factor if key.startswith(f"{name}.") else 1) for key, value in getattr(checkpoint, part).items()
    }
    return replace(checkpoint, **{part: state})


# The longest first.
SHARED = {
    "demo-smooth": (demo_checkpoint, {"precision": "fp32", "form": "both", "smooth": True}),
    "demo-both": (demo_checkpoint, {"precision": "fp16", "form": "both"}),
    "demo-fp32": (demo_checkpoint, {"precision": "fp32"}),
    "demo-bf16": (demo_checkpoint, {"precision": "bf16"}),
    "tiny-fp32": (_tiny, {"precision": "fp32", "form": "both"}),
    "tiny-bf16": (_tiny, {"precision": "bf16", "form": "both"}),
    "tiny-smooth": (_tiny, {"precision": "fp32", "form": "both", "smooth": True}),
    # One AdaLN for all blocks, and attention whose scale is fixed.
    "tiny-shared": (
        lambda: tiny_checkpoint(
            tiny_config("shared", patch_nums=(1, 2, 3), heads=1, shared_aln=True, attn_l2_norm=False)
        ),
        {"precision": "fp32"},
    ),
    # The exporter drops biases that are zero.
    "tiny-unbiased": (_unbiased, {"precision": "fp32"}),
    "tiny-overflow": (overflowing, {"precision": "fp16", "form": "both"}),
    # The scales of 512 px models; the seed of the recorded edits.
    "tiny-512": (
        lambda: tiny_checkpoint(
            tiny_config("tiny-512", patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32), shared_aln=True), seed=0
        ),
        {"precision": "fp32"},
    ),
    "demo-fp16": (demo_checkpoint, {"precision": "fp16"}),  # where the embedded bundle is stale
}
INT8, INT4 = "demo-int8", "demo-int4"
QUANTISED: dict[str, dict[str, str | int]] = {INT8: {}, INT4: {"precision": "int4"}}
"""The demo model for the CPU, in both forms, calibrated with few samples."""
AS_KEPT = "VAR_EXPORT_TEST_BUNDLES_AS_KEPT" in os.environ or importlib.util.find_spec("torch") is None
_MADE: dict[str, Path] = {}


def shared_bundle(name: str, *, current: bool = False) -> Path:
    """The folder of a bundle of `SHARED`, or of `QUANTISED`. Copy it before changing a file.

    A kept one that code of today would make otherwise is built anew, but not where `make test-quick` or an interpreter
    without PyTorch takes bundles as they are; `current` says that a test needs it as the code of today makes it.
    Skips the test where the bundle would have to be built and a package for that is missing.
    """
    kept_as = f"{name}-current" if current and AS_KEPT else name
    if kept_as not in _MADE:
        with locked(kept_as) as path:
            if not (AS_KEPT and (path / MANIFEST).is_file()) or current:
                path = _quantised(name, path) if name in QUANTISED else _built(name, path)
        _MADE[kept_as] = given(path)
    return _MADE[kept_as]


def _built(name: str, out: Path) -> Path:
    need_torch()
    from var_export.build import FloatOptions, build

    checkpoint, options = SHARED[name]
    return build(checkpoint(), out, FloatOptions(**options), force=True, threads=1).bundle.path


def demo_calibration() -> Path:
    """The file of a calibration of `demo-fp32` with few samples."""
    pytest.importorskip("onnx_ir", reason="onnx-ir is not installed: nothing is quantised")
    from calib.keys import QUANTISED_BUNDLE, code_digest
    from calib.observe.collect import Requests
    from calib.quantise import calibrate
    from engines.bundle.bundle import Bundle

    base = Bundle.open(shared_bundle("demo-fp32"))

    def calibration(folder: Path) -> None:
        calibrate(base, Requests.spread(base.config, 8), folder / "calibration.json", threads=1)

    versions = [importlib.metadata.version(name) for name in ("onnx", "onnx-ir", "onnxruntime", "numpy")]
    key = f"{base.build_key} {code_digest(QUANTISED_BUNDLE)} {versions}"
    return made_once("demo-calibration", key, calibration) / "calibration.json"


def _quantised(name: str, out: Path) -> Path:
    file = demo_calibration()
    from calib.calibration import Calibration
    from calib.choose.options import QuantisationOptions
    from calib.quantise import quantize_bundle
    from engines.bundle.bundle import Bundle

    base, options = Bundle.open(shared_bundle("demo-fp32")), QuantisationOptions(form="both", **QUANTISED[name])
    return quantize_bundle(base, out, options, lambda: Calibration.load(file), force=True, threads=1).bundle.path


def _timed(name: str) -> tuple[str, float]:
    start = time.monotonic()
    _one_thread()
    return str(shared_bundle(name)), time.monotonic() - start


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _build_all(workers: int) -> None:
    names = [name for name in SHARED if name != "demo-fp16"] + [*QUANTISED]
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for path, seconds in pool.map(_timed, names):
            print(f"{path}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    _build_all(int(sys.argv[1]))
