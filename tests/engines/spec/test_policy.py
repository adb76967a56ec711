import dataclasses

import onnx_ir as ir
import pytest

from calib.graphs.layers import find_layers
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.errors import UsageError
from engines.sizing.models import official
from engines.spec.choices import DEFAULT_LEVEL
from engines.spec.policy import (
    BLOCK,
    EDGES,
    FLOAT,
    FOUR_BITS,
    LEVELS,
    METHODS,
    PER_BLOCK,
    PER_CLASS,
    PER_TOKEN,
    STATIC,
    adaln_way,
    assign,
    block_size,
    role_of,
    usual_level,
)


@pytest.fixture(scope="module")
def layers():
    bundle = Bundle.open(DEMO_BUNDLE, verify=False)
    graphs = ("cond", "step", "decode", "encode")
    return [layer.name for graph in graphs for layer in find_layers(ir.load(bundle.graph_path(graph)), graph)]


def by_role(layers, ways):
    """One way per role: all layers of a role are computed alike."""
    roles = {}
    for layer in layers:
        if layer in EDGES:
            assert ways[layer] == FLOAT
            continue
        assert roles.setdefault(role_of(layer), ways[layer]) == ways[layer]
    return roles


@pytest.mark.parametrize("level", LEVELS)
def test_levels_on_the_cpu(layers, level):
    mlp = {1: (FLOAT, FLOAT), 2: (PER_TOKEN, PER_TOKEN), 3: (STATIC, STATIC)}[level]
    attention = FLOAT if level == 1 else STATIC
    assert by_role(layers, assign(layers, "onnxruntime", level)) == {
        "conv": STATIC,
        "qkv": attention,
        "proj": attention,
        "fc1": mlp[0],
        "fc2": mlp[1],
        "head": STATIC if level == 3 else PER_BLOCK,
        "adaln": PER_BLOCK,
        "word_embed": FLOAT,
    }


@pytest.mark.parametrize("level", LEVELS)
def test_levels_on_nvidia(layers, level):
    """Q/DQ or nothing: TensorRT knows none of the other ways."""
    roles = by_role(layers, assign(layers, "tensorrt", level))
    static = {1: {"conv"}, 2: {"conv", "qkv", "proj", "fc1"}, 3: {"conv", "qkv", "proj", "fc1", "fc2", "head"}}[level]
    assert {role for role, way in roles.items() if way == STATIC} == static
    assert set(roles.values()) == {STATIC, FLOAT}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_levels_of_int4(layers, target, level):
    """Roles with 4-bit weights; all others are as in INT8 by default, but for AdaLN."""
    roles = by_role(layers, assign(layers, target, level, precision="int4"))
    four = {1: {"qkv", "proj"}, 2: {"qkv", "proj", "fc2"}, 3: {"qkv", "proj", "fc1", "fc2"}}[level]
    assert {role for role, way in roles.items() if way == FOUR_BITS} == four
    assert roles["adaln"] == PER_CLASS
    usual = by_role(layers, assign(layers, target, DEFAULT_LEVEL))
    assert all(roles[role] == usual[role] for role in roles.keys() - four - {"adaln"})


def test_patterns_of_int4(layers):
    ways = assign(layers, "onnxruntime", 1, precision="int4", include=["step/head", "cond/*"], exclude=["step/*.qkv"])
    assert (ways["step/head"], ways["cond/head"]) == (FOUR_BITS, PER_CLASS)
    weights = assign(layers, "onnxruntime", 1, precision="int4", adaln=PER_BLOCK, include=["cond/*"])
    assert weights["cond/head"] == FOUR_BITS
    assert ways["step/blocks.0.attention.qkv"] == FLOAT


@pytest.mark.parametrize(
    ("classes", "target", "way"),
    [
        (1000, "onnxruntime", PER_CLASS),
        (1000, "tensorrt", PER_CLASS),
        (21841, "onnxruntime", PER_BLOCK),
        (21841, "tensorrt", FOUR_BITS),
    ],
)
def test_a_table_of_classes_is_taken_where_it_is_small(classes, target, way):
    d16 = official("d16")
    config = dataclasses.replace(d16, transformer=dataclasses.replace(d16.transformer, num_classes=classes))
    assert adaln_way(config, target) == way


@pytest.mark.parametrize(("K", "block"), [(1920, 128), (192, 64), (96, 32), (32, 32), (40, 32)])
def test_blocks_divide_the_channels(K, block):
    assert block_size(K, "int4") == block
    assert block_size(K, "int8") == BLOCK


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_patterns(layers, target):
    plain = assign(layers, target, 1)
    ways = assign(layers, target, 1, include=["step/blocks.?.fc2", "step/word_*"], exclude=["*conv1", "*.1.fc2"])
    changed = {name: way for name, way in ways.items() if way != plain[name]}
    assert {name for name, way in changed.items() if way == STATIC} == {
        *(f"step/blocks.{block}.fc2" for block in (0, 2, 3)),
        "step/word_embed",
    }
    back = {name for name, way in changed.items() if way == FLOAT}
    assert back == {layer for layer in layers if layer.endswith("conv1")}
    assert set(ways.values()) <= set(METHODS)


def test_adaln_has_no_static_ranges(layers):
    with pytest.raises(UsageError, match="runs once"):
        assign(layers, "onnxruntime", 2, include=["cond/*"])


def test_nothing_at_all(layers):
    assert set(assign(layers, "onnxruntime", 3, exclude=["*"]).values()) == {FLOAT}


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_a_pattern_that_fits_nothing_is_refused(layers, which):
    with pytest.raises(UsageError, match=r"no layer is called like 'step/block\.0\.fc1'"):
        assign(layers, "onnxruntime", 2, **{which: ["step/*", "step/block.0.fc1"]})
    with pytest.raises(UsageError):  # case matters
        assign(layers, "onnxruntime", 2, **{which: ["STEP/*"]})


@pytest.mark.parametrize(
    ("model", "precision", "level"), [("demo", "int8", 2), ("demo", "int4", 1), ("d16", "int4", 2), ("d30", "int4", 2)]
)
def test_the_usual_level(model, precision, level):
    assert usual_level(official(model), precision) == level
