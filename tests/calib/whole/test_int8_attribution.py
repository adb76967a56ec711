"""A layer whose range was spoiled is the one that is blamed."""

import os
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from support import reseal

from calib.choose.options import QuantisationOptions
from calib.judge.attribution import Blame, blame, describe
from calib.quantise import quantize_bundle
from calib.rewrite.relief import find_quantized
from engines.bundle.bundle import Bundle
from engines.spec.contract import DECODER, ENCODER, TRANSFORMER

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(base, calibrated, tmp_path_factory):
    """An INT8 bundle. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("int8") / "tiny-int8"
    keep = ("decode/post_quant_conv", "decode/conv_in")
    return quantize_bundle(base, out, QuantisationOptions(level=3, exclude=keep), lambda: calibrated, threads=1).bundle


@pytest.fixture
def spoiled(built, tmp_path):
    """Makes a copy in which the input of one layer has a fiftieth of its range."""

    def make(layer):
        path = shutil.copytree(built.path, tmp_path / "bundles" / layer.replace("/", "-"))
        graph = layer.partition("/")[0]
        model = ir.load(path / f"{graph}.onnx")
        pair = find_quantized(model, graph)[layer].inputs[0].producer()
        name = pair.inputs[1].name
        scale = model.graph.initializers[name]
        scale.const_value = ir.tensor(np.float32(scale.const_value.numpy() / 50), name=name)
        ir.save(model, path / f"{graph}.onnx")
        reseal(path)
        return Bundle.open(path)

    return make


@pytest.mark.parametrize(
    ("layer", "part"), [("step/blocks.1.fc1", TRANSFORMER), ("decode/up.0.block.0.conv2", DECODER)]
)
def test_a_spoiled_layer_is_blamed(spoiled, layer, part):
    found = blame(spoiled(layer), [part], threads=1)
    assert {entry.part for entry in found} == {part}
    singles = [entry for entry in found if entry.single]
    assert singles[0].layers == layer
    assert singles[0].gain > 0
    groups = [entry for entry in found if not entry.single]
    assert groups[0].gain >= max(entry.gain for entry in groups)
    assert layer in describe(found)
    assert "--keep" in describe(found)


def test_every_layer_of_the_worst_group_is_tried(spoiled, built):
    found = blame(spoiled("step/blocks.0.fc2"), [TRANSFORMER], threads=1)
    depth = built.config.transformer.depth
    assert next(entry.layers for entry in found if not entry.single) == "fc2"
    assert {e.layers for e in found if e.single} == {f"step/blocks.{block}.fc2" for block in range(depth)}


def test_the_encoder_is_judged_by_its_reconstruction(built):
    found = blame(built, [ENCODER], threads=1)
    assert {entry.figure for entry in found} == {"reconstruction loss"}
    assert {entry.layers for entry in found if not entry.single} >= {"encode/conv_in", "encode/down.0"}


def test_parts_that_did_not_fail_are_not_looked_at(built):
    assert blame(built, [], threads=1) == []


def test_weights_are_blamed_where_no_activation_is():
    found = [Blame(DECODER, "decode/up.0", "PSNR", 30.0, 29.9, False), Blame(DECODER, "x", "PSNR", 30.0, 30.0, True)]
    assert "weights" in describe(found)


def test_works_in_a_folder_that_cannot_be_written(built, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = sorted(built.path.parent.iterdir())
    assert blame(built, [DECODER], threads=1)
    assert sorted(built.path.parent.iterdir()) == before
