"""Tiny float bundles to calibrate and to quantise; built at most once per session."""

import shutil

import pytest

from calib.observe.collect import Requests, collect
from engines.bundle.bundle import Bundle
from tests.bundles import shared_bundle


@pytest.fixture(scope="session")
def tiny_fp32() -> Bundle:
    """In FP32, in both forms, with an AdaLN per block. Shared: copy it before changing a file."""
    return Bundle.open(shared_bundle("tiny-fp32"))


@pytest.fixture(scope="session")
def tiny_shared_adaln() -> Bundle:
    """In FP32, with one AdaLN for all blocks, and attention whose scale is fixed."""
    return Bundle.open(shared_bundle("tiny-shared"))


@pytest.fixture(scope="session")
def calibrated(tiny_fp32):
    """`tiny_fp32`, calibrated with three images and no smoothing. Shared: change nothing."""
    return collect(tiny_fp32, Requests.spread(tiny_fp32.config, 3, smooth=None), threads=1)


@pytest.fixture
def own_bundle(tiny_fp32, tmp_path) -> Bundle:
    """A copy of `tiny_fp32`, alone in a folder."""
    return Bundle.open(shutil.copytree(tiny_fp32.path, tmp_path / "bundles" / "tiny"))
