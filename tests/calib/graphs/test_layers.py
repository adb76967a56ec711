import collections

import numpy as np
import onnx_ir as ir
import pytest
from support import tiny_config, tiny_state

from calib.graphs.layers import find_layers, layer_name, read_weight
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.spec.contract import PART_OF
from tests.bundles import shared_bundle

NO_PRODUCTS = ("embed", "_emb", "scale_mul", "pos_", "quant_resi")  # looked up, added or part of the quantiser


def layers_of(bundle):
    return [layer for graph in bundle.graphs for layer in find_layers(ir.load(bundle.graph_path(graph)), graph)]


def by_name(bundle):
    layers = layers_of(bundle)
    named = {layer.name: layer for layer in layers}
    assert len(named) == len(layers)
    return named


@pytest.fixture(scope="module")
def layers(tiny_fp32):
    return by_name(tiny_fp32)


@pytest.mark.slow
def test_every_trained_product_is_found_and_nothing_else(layers):
    """Told from the state dicts, which know nothing of graphs."""
    wanted = collections.Counter()
    for state in tiny_state(tiny_config(patch_nums=(1, 2, 3, 4))):
        for name, value in state.items():
            if value.ndim >= 2 and (name == "word_embed.weight" or not any(part in name for part in NO_PRODUCTS)):
                shape = tuple(value.shape)
                wanted[shape if len(shape) == 4 else shape[::-1]] += 1
    found = collections.Counter(tuple(read_weight(layer.weight).shape) for layer in layers.values())
    assert found == wanted


def test_a_weight_is_the_trained_one(layers):
    var, vae = tiny_state(tiny_config(patch_nums=(1, 2, 3, 4)))
    for layer, trained in (
        ("step/blocks.1.attention.qkv", var["blocks.1.attn.mat_qkv.weight"].T),
        ("step/blocks.0.fc2", var["blocks.0.ffn.fc2.weight"].T),
        ("step/head", var["head.weight"].T),
        ("decode/conv_in", vae["decoder.conv_in.weight"]),
        ("decode/post_quant_conv", vae["post_quant_conv.weight"]),
        ("encode/quant_conv", vae["quant_conv.weight"]),
        ("encode/down.1.attn.0.qkv", vae["encoder.down.1.attn.0.qkv.weight"]),
    ):
        np.testing.assert_array_equal(read_weight(layers[layer].weight), trained.numpy(), err_msg=layer)


@pytest.mark.slow
def test_names_and_roles_are_the_same_in_another_precision_and_size(layers):
    trained = Bundle.open(DEMO_BUNDLE)
    assert trained.precision == "fp16"
    demo = by_name(trained)
    assert {name for name in layers if "/down." not in name and "/up." not in name} <= demo.keys()
    assert all(demo[name].role == layer.role for name, layer in layers.items() if name in demo)


@pytest.mark.parametrize("graph", ["fused", "accumulate"])
def test_other_graphs_have_none(graph):
    bundle = Bundle.open(shared_bundle("tiny-fp32"))
    assert find_layers(ir.load(bundle.graph_path(graph)), graph) == []


def test_roles(layers):
    roles = collections.Counter((layer.name.split("/")[0], layer.role) for layer in layers.values())
    for role in ("qkv", "proj", "fc1", "fc2"):
        assert roles.pop(("step", role)) == 2
    assert roles.pop(("step", "head")) == roles.pop(("step", "word_embed")) == 1
    assert roles.pop(("cond", "adaln")) == 3
    assert roles.keys() == {("decode", "conv"), ("encode", "conv")}
    assert all(layer.is_conv == (len(layer.weight.shape) == 4) for layer in layers.values())


def test_shared_adaln_is_one_product(tiny_shared_adaln):
    layers = find_layers(ir.load(tiny_shared_adaln.graph_path("cond")), "cond")
    assert sorted(read_weight(layer.weight).shape for layer in layers) == [(64, 128), (64, 384)]
    assert {layer.role for layer in layers} == {"adaln"}


def test_a_bias_is_the_constant_vector_behind_a_product(layers):
    var, _ = tiny_state(tiny_config(patch_nums=(1, 2, 3, 4)))
    for layer in layers.values():
        if layer.is_conv:
            assert layer.bias is None
        else:
            add = layer.bias
            (vector,) = [value.const_value.numpy() for value in add.inputs if value.const_value is not None]
            assert vector.shape == read_weight(layer.weight).shape[1:]
            assert add.inputs[0] is layer.node.outputs[0] or add.inputs[1] is layer.node.outputs[0]
            if layer.name == "step/blocks.1.fc1":
                np.testing.assert_array_equal(vector, var["blocks.1.ffn.fc1.bias"].numpy())


def product(addend):
    """A graph with one MatMul and what follows."""
    graph = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[N, 4] x, float[N, 3] rest) => (float[N, 3] y)
        <float[4, 3] fc1.weight = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[3] bias = {{1,2,3}},
         float[1, 3] row = {{1,2,3}}>
        {{ h = MatMul(x, fc1.weight)
           {addend} }}""".replace("fc1.weight", "fc1_weight")
    )
    graph.graph.initializers["fc1_weight"].name = "blocks.0.fc1.weight"
    return graph


@pytest.mark.parametrize(
    ("after", "has"),
    [
        ("y = Add(h, bias)", True),
        ("y = Add(bias, h)", True),
        ("y = Add(h, row)", False),
        ("y = Add(h, rest)", False),
        ("y = Mul(h, bias)", False),
        ("z = Add(h, bias) y = Mul(z, h)", False),
    ],
)
def test_what_counts_as_a_bias(after, has):
    (layer,) = find_layers(product(after), "step")
    assert layer.name == "step/blocks.0.fc1"
    assert (layer.bias is not None) is has


def test_names():
    assert layer_name("step", "trunk.blocks.3.fc1.weight") == "step/blocks.3.fc1"
    assert layer_name("step", "word_embed.weight") == "step/word_embed"
    assert layer_name("decode", "layers.0.weight") == "decode/post_quant_conv"
    assert layer_name("encode", "layers.1.weight") == "encode/quant_conv"
    assert layer_name("decode", "layers.1.up.0.block.2.conv2.weight") == "decode/up.0.block.2.conv2"
    assert set(PART_OF) == {"cond", "step", "decode", "encode"}


def test_a_weight_in_a_file_with_a_second_name_can_be_read(own_bundle, layers):
    file = own_bundle.path / "weights.bin"
    (own_bundle.path.parent / "second").hardlink_to(file)
    again = by_name(own_bundle)
    for name, layer in again.items():
        np.testing.assert_array_equal(read_weight(layer.weight), read_weight(layers[name].weight))
