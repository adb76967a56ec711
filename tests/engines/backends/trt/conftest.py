"""Bundles with plans for the emulated GPU, and what ONNX Runtime makes of the same graphs."""

import dataclasses

import pytest
from support import copy_bundle, demo_reference, graphs_for_gpus

from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.backends.tensorrt import library
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Manifest
from engines.draw.pipeline import Pipeline
from tests.bundles import shared_bundle
from tests.emulation.machine import Emulation


def with_plans(tmp_path_factory, bundle, batch, **options):
    """A copy of `bundle` with plans for the emulated GPU."""
    path = copy_bundle(bundle, tmp_path_factory.mktemp("planned") / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        Emulation(patch, **options).build(path, batch)
    return path


@pytest.fixture(scope="session")
def planned_demo(demo_both_bundle, tmp_path_factory):
    """Gives the demo model in FP16 with plans for batch 1 to 8, the fused one for `usual` images. Not to be changed."""
    kept = {}

    def get(usual=1):
        if usual not in kept:
            kept[usual] = with_plans(tmp_path_factory, demo_both_bundle, f"1:{usual}:8")
        return kept[usual]

    return get


@pytest.fixture(scope="session")
def tiny():
    """A tiny model in FP32, both forms: on ONNX Runtime its tokens do not depend on the batch."""
    return shared_bundle("tiny-fp32")


@pytest.fixture(scope="session")
def planned_tiny(tiny, tmp_path_factory):
    """The tiny model, batch 1 to 4. Not to be changed."""
    return with_plans(tmp_path_factory, tiny, "1:2:4")


@pytest.fixture(scope="session")
def planned_smooth(tmp_path_factory):
    """The tiny model in FP32, both forms, which can mix codebook entries; batch 1 to 4. Not to be changed."""
    return with_plans(tmp_path_factory, shared_bundle("tiny-smooth"), "1:2:4")


@pytest.fixture(scope="session")
def static_tiny(tiny, tmp_path_factory):
    """The tiny model with plans for 4 images and no other number. Not to be changed."""
    return with_plans(tmp_path_factory, tiny, "4")


@pytest.fixture(scope="session")
def reference():
    """Pipelines of ONNX Runtime by bundle and form, kept open.

    `padded_to`: run every batch in this shape (B, N), as the plan does: in FP16 the last bits may depend on it.
    """
    kept = {}

    def get(path, form=None, padded_to=None):
        key = (path, form, padded_to)
        if key not in kept:
            kept[key] = Pipeline(Bundle.open(path), OnnxRuntimeBackend(sessions=graphs_for_gpus(path)), form=form)
            if padded_to is not None:
                kept[key]._engines.open(form).shape_for = lambda images, rows: padded_to
        return kept[key]

    yield get
    for pipeline in kept.values():
        pipeline.close()


@pytest.fixture(scope="session")
def rtx():
    """TensorRT-RTX itself: its builder needs no GPU."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu12 is not installed: NVIDIA's own builder is not asked")
    return library.load("tensorrt-rtx")


@pytest.fixture(scope="session")
def demo_graphs(demo_both_bundle, tmp_path_factory):
    """Gives the folder with all graphs of the demo model in a precision; of FP16 it is a whole bundle."""
    kept = {"fp16": demo_both_bundle}

    def get(precision):
        if precision not in kept:
            from calib.graphs.writing import write_graphs
            from var_export.build import scale_constants, traced_graphs
            from var_export.graphs.quantize import Quantizer

            folder = tmp_path_factory.mktemp("graphs") / precision
            folder.mkdir()
            manifest = dataclasses.replace(Manifest.read(demo_both_bundle), precision=precision)
            reference = demo_reference()
            quantizer = Quantizer(reference.vae.quantize)
            models = traced_graphs(reference, quantizer, manifest, lambda line, done: None)
            write_graphs(folder, manifest, models, scale_constants(reference, quantizer), lambda line: None)
            kept[precision] = folder
        return kept[precision]

    return get
