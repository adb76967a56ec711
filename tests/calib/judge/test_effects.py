import json

import pytest

from calib.choose.options import QuantisationOptions
from calib.graphs.layers import find_layers
from calib.judge.effects import Effect, Sensitivity, candidates
from engines.errors import UsageError

EFFECTS = [
    Effect("step/blocks.0.fc1", "fc1", "static", 0.5, kl=1e-3, top1=0.99),
    Effect("step/blocks.0.fc2", "fc2", "static", 0.5, kl=2e-3, top1=1.0),
    Effect("decode/conv_out", "conv", "static", 0.1, psnr=40.0),
    Effect("decode/up.0.block.0.conv1", "conv", "static", 0.1, psnr=30.0),
    Effect("decode/mid.block_1.conv1", "conv", "static", 0.1),
    Effect("encode/conv_in", "conv", "static", 0.1, reconstruction_loss=-0.1),
]


def test_is_kept_in_a_file(tmp_path):
    table = Sensitivity("key", effects=list(EFFECTS), float_kl=1e-12)
    table.save(tmp_path / "deep" / "s.json")
    assert Sensitivity.load(tmp_path / "deep" / "s.json", "key") == table
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["s.json"]


def test_what_was_measured_for_something_else_is_not_taken(tmp_path):
    file = tmp_path / "s.json"
    Sensitivity("key", effects=list(EFFECTS)).save(file)
    assert Sensitivity.load(file, "another") is None
    assert Sensitivity.load(tmp_path / "nothing.json", "key") is None
    document = json.loads(file.read_text())
    for damaged in (
        "{",
        "[]",
        json.dumps(document | {"format": "?"}),
        json.dumps(document | {"effects": [{"layer": 1}]}),
    ):
        file.write_text(damaged)
        assert Sensitivity.load(file, "key") is None


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        Sensitivity("key").save(tmp_path / "file" / "s.json")


def test_worst_first():
    table = Sensitivity("key", effects=list(EFFECTS))
    assert [e.layer for e in table.worst_first("transformer")] == ["step/blocks.0.fc2", "step/blocks.0.fc1"]
    assert [e.psnr for e in table.worst_first("decoder")] == [30.0, 40.0, None]
    assert [e.layer for e in table.worst_first("encoder")] == ["encode/conv_in"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("onnxruntime", {"adaln": ("per-block",), "conv": ("static",), "fc1": ("per-block", "per-token", "static")}),
        ("tensorrt", {"adaln": (), "conv": ("static",), "fc1": ("static",)}),
    ],
)
def test_ways_that_a_layer_may_be_computed_in(tiny_fp32, target, expected):
    import onnx_ir as ir

    ways = {}
    for graph in ("cond", "step", "decode"):
        for layer in find_layers(ir.load(tiny_fp32.graph_path(graph)), graph):
            ways[layer.name] = candidates(layer, QuantisationOptions(target=target))
    assert ways["decode/post_quant_conv"] == ways["step/word_embed"] == ()
    assert ways["decode/conv_out"] == expected["conv"]
    assert ways["step/blocks.0.fc1"] == ways["step/head"] == expected["fc1"]
    assert ways["cond/linears.0"] == expected["adaln"]
