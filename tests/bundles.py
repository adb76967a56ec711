"""Bundles that tests share, by name. Building one needs PyTorch; a kept one serves an interpreter that has none.

    python -m tests.bundles FOLDER      (`make test-bundles`)

builds them all into FOLDER. With `VAR_EXPORT_TEST_BUNDLES=FOLDER`, tests take them from there: with PyTorch they are
built anew where they are stale, without it they are taken as they are. `make test-runtime` does that.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from engines.bundle.manifest import MANIFEST
from tests.support import demo_checkpoint, need_torch, tiny_checkpoint, tiny_config

KEPT = os.environ.get("VAR_EXPORT_TEST_BUNDLES")
SHARED = {
    "demo-fp32": (demo_checkpoint, {"precision": "fp32"}),
    "demo-fp16": (demo_checkpoint, {"precision": "fp16"}),  # where the embedded bundle is stale
    "demo-bf16": (demo_checkpoint, {"precision": "bf16"}),
    "demo-smooth": (demo_checkpoint, {"precision": "fp32", "form": "both", "smooth": True}),
    "demo-both": (demo_checkpoint, {"precision": "fp16", "form": "both"}),
    "tiny-fp32": (lambda: tiny_checkpoint(tiny_config(patch_nums=(1, 2, 3, 4))), {"precision": "fp32", "form": "both"}),
    "tiny-bf16": (lambda: tiny_checkpoint(tiny_config(patch_nums=(1, 2, 3, 4))), {"precision": "bf16", "form": "both"}),
    "tiny-smooth": (
        lambda: tiny_checkpoint(tiny_config(patch_nums=(1, 2, 3, 4))),
        {"precision": "fp32", "form": "both", "smooth": True},
    ),
    # One AdaLN for all blocks, and attention whose scale is fixed.
    "tiny-shared": (
        lambda: tiny_checkpoint(
            tiny_config("shared", patch_nums=(1, 2, 3), heads=1, shared_aln=True, attn_l2_norm=False)
        ),
        {"precision": "fp32"},
    ),
    # The scales of 512 px models; the seed of the recorded edits.
    "tiny-512": (
        lambda: tiny_checkpoint(
            tiny_config("tiny-512", patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32), shared_aln=True), seed=0
        ),
        {"precision": "fp32"},
    ),
}
_BUILT: dict[str, Path] = {}


def shared_bundle(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle of `SHARED`, built at most once a session. Copy it before changing a file.

    Skips the test where it would have to be built and there is no PyTorch.
    """
    if name not in _BUILT:
        if KEPT is None:
            need_torch()
            _BUILT[name] = _build(name, tmp_path_factory.mktemp("bundles") / name)
        elif importlib.util.find_spec("torch") is not None:
            _BUILT[name] = _build(name, Path(KEPT) / name)
        elif (Path(KEPT) / name / MANIFEST).is_file():
            _BUILT[name] = Path(KEPT) / name
        else:
            need_torch()
    return _BUILT[name]


def _build(name: str, out: Path) -> Path:
    from var_export.build import Options, build

    checkpoint, options = SHARED[name]
    return build(checkpoint(), out, Options(**options), force=True).bundle.path


if __name__ == "__main__":
    for each in SHARED:
        print(_build(each, Path(sys.argv[1]) / each))
