"""How NVIDIA's parser reads our graphs: every product in the type that the policy gives it, and nothing around it.

A plan computes what the parsed network says, since the network is strongly typed. So this is where a type that was
lost on the way, a cast that breaks a fusion, or a LayerNorm that fell to pieces would show. No GPU is needed.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.bundle.bundle import DEMO_BUNDLE
from engines.bundle.manifest import Manifest
from engines.spec import contract

PRECISIONS = tuple(contract.CACHE_DTYPES)
GRAPHS = contract.graphs_of("both")
LOW = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
HIGH = "FLOAT"
CONTRACT = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
CONTRACT |= {"int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}
FLOATS = {"FLOAT", "HALF", "BF16"}
MOVES = {"SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE", "CONCATENATION", "IDENTITY", "GATHER", "SELECT"}
"""Layers that compute nothing: what goes in comes out, elsewhere."""

pytestmark = pytest.mark.slow
CONFIG = Manifest.read(DEMO_BUNDLE).config
D, S = CONFIG.transformer.depth, CONFIG.num_scales


class Network:
    """A parsed graph, as far as types are concerned."""

    def __init__(self, library, file):
        from engines.backends.tensorrt.build import parse

        self.trt = library.trt
        self._builder = self.trt.Builder(library.logger)  # has to outlive the network
        self.network = parse(library, self._builder, file)
        self.layers = [self.network.get_layer(index) for index in range(self.network.num_layers)]
        self.producer = {out.name: layer for layer in self.layers for out in self.outputs(layer)}
        self.users = {}
        for layer in self.layers:
            for tensor in self.inputs(layer):
                self.users.setdefault(tensor.name, []).append(layer)

    def kind(self, layer):
        return layer.type.name

    def of(self, *kinds):
        return [layer for layer in self.layers if self.kind(layer) in kinds]

    def inputs(self, layer):
        tensors = (layer.get_input(index) for index in range(layer.num_inputs))
        return [tensor for tensor in tensors if tensor is not None]

    def outputs(self, layer):
        return [layer.get_output(index) for index in range(layer.num_outputs)]

    def types(self, layer):
        return tuple(tensor.dtype.name for tensor in self.inputs(layer))

    def is_float_cast(self, layer):
        return self.kind(layer) == "CAST" and {*self.types(layer), layer.get_output(0).dtype.name} <= FLOATS

    def before(self, tensor):
        """The layers that computed what `tensor` holds, past those that only move it; graph inputs have none."""
        layer = self.producer.get(tensor.name)
        if layer is None:
            return []
        if self.kind(layer) not in MOVES:
            return [layer]
        # A gather's and a slice's other inputs are places, not values.
        sources = self.inputs(layer) if self.kind(layer) == "CONCATENATION" else self.inputs(layer)[:1]
        return [found for source in sources for found in self.before(source)]

    def is_constant(self, tensor):
        """A constant as a whole, not rows that were looked up in one."""
        layer = self.producer.get(tensor.name)
        while layer is not None and self.kind(layer) in MOVES - {"GATHER", "CONCATENATION"}:
            layer = self.producer.get(layer.get_input(0).name)
        return layer is not None and self.kind(layer) == "CONSTANT"

    def after(self, tensor):
        """The layers that compute with what `tensor` holds."""
        found = []
        for layer in self.users.get(tensor.name, []):
            if self.kind(layer) in MOVES:
                found += self.after(layer.get_output(0))
            else:
                found.append(layer)
        return found


@pytest.fixture(scope="module")
def network(rtx, demo_graphs):
    kept = {}

    def get(precision, graph):
        if (precision, graph) not in kept:
            kept[precision, graph] = Network(rtx, demo_graphs(precision) / f"{graph}.onnx")
        return kept[precision, graph]

    return get


def both(test):
    return pytest.mark.parametrize("precision", PRECISIONS)(pytest.mark.parametrize("graph", GRAPHS)(test))


# --- what is expected, from the model alone -----------------------------------------------------------------------


def decoder_and_encoder():
    """Convolutions, group norms and attention blocks of the two halves of the VQ-VAE."""
    from support import demo_reference

    vae = demo_reference().vae
    from torch import nn

    from var_export.model.autoencoder import AttnBlock, Norm

    halves = {"decode": (vae.post_quant_conv, vae.decoder), "encode": (vae.encoder, vae.quant_conv)}
    return {
        graph: tuple(
            sum(isinstance(module, kind) for part in parts for module in part.modules())
            for kind in (nn.Conv2d, Norm, AttnBlock)
        )
        for graph, parts in halves.items()
    }


@pytest.fixture(scope="module")
def expected():
    """By graph: products in the compute type and in FP32, convolutions in both, normalisations, softmaxes."""
    vae = decoder_and_encoder()
    # A block: qkv, two of attention, proj, fc1, fc2. Around them: the head, and the embedding of the next scale.
    # In FP32: two prefix sums in two levels each, the resampling up and down.
    step = {"low": 6 * D + 2, "high": 4 + 2, "conv_high": 1, "norm": 2 * D + 1, "softmax": D}
    counts = {
        "cond": {"low": D + 1},
        "step": step,
        "accumulate": {"high": S - 1, "conv_high": S},  # the last scale is not resampled
        # Resampling down and the nearest entry of the codebook; what is taken off before the next scale.
        "encode": {"high": (S - 1) + S + (S - 1), "conv_high": S - 1},
    }
    for graph, (convolutions, norms, attention) in vae.items():
        counts.setdefault(graph, {}).update(
            {"low": 2 * attention, "conv_low": convolutions, "norm": norms, "softmax": attention}
        )
    # Every scale, and what the last one prepares for the next left out.
    counts["fused"] = Counter(counts["cond"]) + Counter(counts["decode"])
    for key, count in step.items():
        counts["fused"][key] += S * count
    counts["fused"].subtract({"low": 1, "high": 1})
    keys = ("low", "high", "conv_low", "conv_high", "norm", "softmax")
    return {graph: {key: count.get(key, 0) for key in keys} for graph, count in counts.items()}


# --- what is found ------------------------------------------------------------------------------------------------


@both
def test_inputs_and_outputs_are_those_of_the_contract(graph, precision, network):
    parsed = network(precision, graph).network
    inputs, outputs = contract.resolve(contract.GRAPHS[graph], CONFIG, precision)
    for infos, get, count in (
        (inputs, parsed.get_input, parsed.num_inputs),
        (outputs, parsed.get_output, parsed.num_outputs),
    ):
        found = {tensor.name: tensor for tensor in map(get, range(count))}
        assert {name: tensor.dtype.name for name, tensor in found.items()} == {
            info.name: CONTRACT[info.dtype] for info in infos
        }
        for info in infos:
            shape = tuple(found[info.name].shape)
            wanted = tuple(-1 if isinstance(dim, str) else dim for dim in info.shape)
            assert len(shape) == len(wanted)
            if infos is inputs:
                assert shape == wanted, info.name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_cache_has_the_compute_type(precision, network):
    parsed = network(precision, "step").network
    tensors = [parsed.get_input(index) for index in range(parsed.num_inputs)]
    tensors += [parsed.get_output(index) for index in range(parsed.num_outputs)]
    cache = [tensor for tensor in tensors if tensor.name.startswith(("past_", "new_"))]
    assert len(cache) == 4 * D
    assert {tensor.dtype.name for tensor in cache} == {LOW[precision]}


@both
def test_every_product_has_the_type_of_the_policy(graph, precision, network, expected):
    """So no FP32 product is left in an FP16 engine but those that are meant to be."""
    found, counts = network(precision, graph), Counter()
    for layer in found.of("MATRIX_MULTIPLY"):
        a, b = found.types(layer)
        assert a == b == layer.get_output(0).dtype.name, layer.name
        counts["matmul", a] += 1
    for layer in found.of("CONVOLUTION"):
        assert set(found.types(layer)) == {layer.get_output(0).dtype.name}, layer.name
        counts["conv", found.types(layer)[0]] += 1
    want = Counter()
    for what, low, high in (("matmul", "low", "high"), ("conv", "conv_low", "conv_high")):
        want[what, LOW[precision]] += expected[graph][low]
        want[what, HIGH] += expected[graph][high]
    assert +counts == +want


@both
def test_normalisation_and_softmax_are_whole_and_in_fp32(graph, precision, network, expected):
    """One layer each, as a runtime recognises them, not a dozen of their parts."""
    found = network(precision, graph)
    norms, softmaxes = found.of("NORMALIZATION"), found.of("SOFTMAX")
    assert (len(norms), len(softmaxes)) == (expected[graph]["norm"], expected[graph]["softmax"])
    for layer in (*norms, *softmaxes):
        assert set(found.types(layer)) == {HIGH}, layer.name
        assert layer.get_output(0).dtype.name == HIGH, layer.name


@both
def test_attention_is_two_products_around_a_softmax(graph, precision, network):
    """What a runtime fuses into one kernel. The casts of the softmax are all that stands between them."""
    found = network(precision, graph)
    for softmax in found.of("SOFTMAX"):
        (before,) = found.before(softmax.get_input(0))
        (after,) = found.after(softmax.get_output(0))
        if precision != "fp32":
            assert (found.kind(before), found.kind(after)) == ("CAST", "CAST")
            assert found.types(before) == (LOW[precision],)
            assert after.get_output(0).dtype.name == LOW[precision]
            (before,) = found.before(before.get_input(0))
            (after,) = found.after(after.get_output(0))
        assert (found.kind(before), found.kind(after)) == ("MATRIX_MULTIPLY", "MATRIX_MULTIPLY")
        assert set(found.types(before) + found.types(after)) == {LOW[precision]}


@both
def test_no_cast_is_taken_back(graph, precision, network):
    """To a type and straight back: the precision is lost, and time with it."""
    found = network(precision, graph)
    casts = [layer for layer in found.layers if found.is_float_cast(layer)]
    for layer in casts:
        for earlier in found.before(layer.get_input(0)):
            assert not found.is_float_cast(earlier), f"{earlier.name} -> {layer.name}"
        assert found.types(layer)[0] != layer.get_output(0).dtype.name, f"{layer.name} casts to the type it has"
    if precision == "fp32":
        assert not casts


def test_a_cast_that_is_taken_back_would_be_seen(rtx, tmp_path):
    """The judge of the tests around this one, on a graph that is wrong."""
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["low", "shape"], ["moved"]),
        helper.make_node("Cast", ["moved"], ["high"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["high", "weight"], ["y"]),
    ]
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    constants = {"shape": np.array([2, 4]), "weight": np.eye(4, dtype=np.float32)}
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "stray", [given], [result], stored)
    file = tmp_path / "stray.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)

    found = Network(rtx, file)
    (back,) = [layer for layer in found.of("CAST") if layer.get_output(0).dtype.name == HIGH]
    (forth,) = found.before(back.get_input(0))
    assert found.is_float_cast(back)
    assert found.is_float_cast(forth)
    (product,) = found.of("MATRIX_MULTIPLY")
    assert found.types(product) == (HIGH, HIGH)
    assert [found.is_constant(tensor) for tensor in found.inputs(product)] == [False, True]


@both
def test_a_product_gets_its_operands_by_one_cast_at_most(graph, precision, network):
    """The residual stream, or a softmax, becomes the compute type right before the product; weights have it already."""
    found = network(precision, graph)
    for layer in found.of("MATRIX_MULTIPLY", "CONVOLUTION"):
        for tensor in found.inputs(layer):
            for before in found.before(tensor):
                if found.is_float_cast(before):
                    assert before.get_output(0).dtype.name == found.types(layer)[0]
                    assert all(found.kind(first) != "CONSTANT" for first in found.before(before.get_input(0))), (
                        f"{layer.name} casts a weight in every run"
                    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_weights_of_a_block_are_constants_of_the_network(precision, network):
    """Four products of a block with a weight, two without: those of attention."""
    found = network(precision, "step")
    weighted = [layer for layer in found.of("MATRIX_MULTIPLY") if any(map(found.is_constant, found.inputs(layer)))]
    by_type = Counter(found.types(layer)[0] for layer in weighted)
    sampler = Counter({HIGH: 4})  # the triangles of its prefix sums
    assert by_type == sampler + Counter({LOW[precision]: 4 * D + 2})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_polygraphy_sees_the_same_network(precision, rtx, demo_graphs, network):
    """NVIDIA's own tool, in a process of its own, through its own loader."""
    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    script = (
        "import json, sys\n"
        "from polygraphy.backend.trt import network_from_onnx_path\n"
        "found = {}\n"
        "for file in sys.argv[1:]:\n"
        "    builder, network, parser = network_from_onnx_path(file, strongly_typed=True)\n"
        "    found[file] = (network.num_layers, network.num_inputs, network.num_outputs)\n"
        "print(json.dumps(found))\n"
    )
    files = {graph: str(demo_graphs(precision) / f"{graph}.onnx") for graph in GRAPHS}
    result = subprocess.run(
        [sys.executable, "-c", script, *files.values()],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        cwd=Path(files["step"]).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout.splitlines()[-1])
    for graph, file in files.items():
        parsed = network(precision, graph).network
        assert theirs[file] == [parsed.num_layers, parsed.num_inputs, parsed.num_outputs], graph
