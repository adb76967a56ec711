"""Checkpoints that go beyond FP16: found when they are built, kept in FP32 or refused by name."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from calib import half
from calib.graphs.changed import ChangedGraphs
from calib.judge.acceptance import check
from calib.observe.reach import measure
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from engines.bundle.inspection import kept_in_fp32
from engines.draw.pipeline import Pipeline
from engines.errors import CheckFailedError, UsageError
from engines.judging.similarity import psnr
from tests.bundles import overflowing, shared_bundle
from tests.support import need_torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LAYER = "decode/up.0.block.0.conv1"


@pytest.fixture(scope="module")
def bundle():
    """Both forms in FP16 of a model with a convolution beyond it; its build has passed both checks."""
    return Bundle.open(shared_bundle("tiny-overflow"))


def built(checkpoint, out, **options):
    need_torch()
    from var_export.build import FloatOptions, build

    return build(checkpoint, out, FloatOptions(**options), threads=1)


def products(bundle, graph):
    """The element type of the weight of each product with a trained one, by name."""
    model = onnx.load(bundle.graph_path(graph), load_external_data=False).graph
    return {tensor.name: tensor.data_type for tensor in model.initializer if tensor.name.endswith("conv1.weight")}


def test_one_layer_is_kept(bundle):
    assert list(kept_in_fp32(bundle)) == [LAYER]
    assert kept_in_fp32(bundle)[LAYER] > 65504
    for graph in ("decode", "fused"):
        types = products(bundle, graph)
        (name,) = [name for name, kind in types.items() if kind == TensorProto.FLOAT]
        assert name.endswith("up.0.block.0.conv1.weight")
        assert len(types) > 4
    assert TensorProto.FLOAT not in products(bundle, "encode").values()


def test_every_form_draws_with_the_rounding_of_a_gpu(bundle, tmp_path):
    for form in bundle.forms:
        with (
            ChangedGraphs(bundle, emulated=True, beside=tmp_path) as graphs,
            Pipeline(bundle, OnnxRuntimeBackend(threads=1, sessions=graphs.open), form=form) as pipeline,
        ):
            golden = bundle.golden
            drawn = pipeline.generate(
                golden["classes"].tolist(), seeds=golden["seeds"].tolist(), forced=golden["tokens"]
            )
        assert psnr(drawn.images, golden["image"]) > 50


def test_nothing_is_left_that_goes_beyond(bundle):
    reaches = measure(bundle, 1)
    assert len(reaches) > 100
    assert all(reach.largest <= 65504 / 2 for reach in reaches)
    assert {reach.scale for reach in reaches if reach.graph == "step"} <= set(range(bundle.config.num_scales))


def test_without_that_the_build_fails(monkeypatch, tmp_path):
    """The CPU passes it: only the emulated check sees a black picture."""
    monkeypatch.setattr(half, "measure", lambda bundle, threads: [])
    with pytest.raises(CheckFailedError, match="rounding of FP16 emulated: the decoder's values are not finite"):
        built(overflowing(), tmp_path / "out", precision="fp16")
    assert not (tmp_path / "out").exists()


def test_a_fused_bundle_alone_is_kept_too(tmp_path):
    made = built(overflowing(), tmp_path / "out", precision="fp16", form="fused")
    assert list(kept_in_fp32(made.bundle)) == [LAYER]
    assert made.emulated["fused"].passed


def test_the_cache_cannot_be_kept(tmp_path):
    checkpoint = overflowing("blocks.0.attn.mat_qkv", 1e5, part="var_state")
    with pytest.raises(CheckFailedError) as caught:
        built(checkpoint, tmp_path / "out", precision="fp16")
    assert "up to 65,504, but in the golden run step/blocks.0.attention.qkv at scale" in str(caught.value)
    assert "build with --precision bf16 or fp32" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_layers_are_kept_by_hand(tmp_path):
    kept = ("step/blocks.0.fc2", "decode/conv_*")
    made = built(overflowing(factor=1), tmp_path / "out", precision="fp16", keep_fp32=kept).bundle
    assert set(kept) <= {name.replace("conv_in", "conv_*") for name in kept_in_fp32(made)}
    assert made.provenance["kept_fp32"]["patterns"] == list(kept)
    with pytest.raises(UsageError, match="no layer is called like 'decode/nothing'"):
        built(overflowing(factor=1), tmp_path / "other", precision="fp16", keep_fp32=("decode/nothing",))
    with pytest.raises(UsageError, match="there is nothing to keep"):
        built(overflowing(factor=1), tmp_path / "other", precision="fp32", keep_fp32=kept)


def test_a_finished_bundle_is_judged_with_its_rounding(bundle):
    assert all(report.passed for report in check(bundle, 1, emulated=True)[0].values())
    assert np.isfinite([reach.largest for reach in measure(bundle, 1)]).all()
