"""What the ONNX files of a bundle look like: tensors, types, weights, and nothing of the machine that made them."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import WEIGHTS
from tests.bundles import shared_bundle

BUNDLES = ("demo_fp32", "demo_fp16", "demo_bf16", "tiny_both")
HALF = {"demo_fp16": TensorProto.FLOAT16, "demo_bf16": TensorProto.BFLOAT16}
LEAKS = (b"/work", b"/home", b"/tmp", b"/root", b"site-packages", b'File "', b".py", b"torch")
MATMULS = ("MatMul", "Gemm")


@pytest.fixture(scope="module")
def folders(demo_fp32_bundle, demo_fp16_bundle, demo_bf16_bundle):
    paths = (demo_fp32_bundle, demo_fp16_bundle, demo_bf16_bundle, shared_bundle("tiny-fp32"))
    return dict(zip(BUNDLES, paths, strict=True))


@pytest.fixture(params=HALF)
def half(request, folders):
    """A bundle in half precision: its folder and that type."""
    return folders[request.param], HALF[request.param]


@pytest.fixture(scope="module", params=BUNDLES)
def folder(request, folders):
    return folders[request.param]


def load(folder, graph):
    return onnx.load(folder / f"{graph}.onnx", load_external_data=False)


def types_of(graph):
    """Element type of every value in a graph, by name."""
    values = [*graph.input, *graph.output, *graph.value_info]
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def external(model):
    """(offset, length) in the weight file, by tensor."""
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            assert entry["location"] == WEIGHTS
            found[tensor.name] = (int(entry["offset"]), int(entry["length"]))
    return found


def test_tensors_are_those_of_the_contract(folder):
    bundle = Bundle.open(folder)
    for graph in bundle.graphs:
        model = load(folder, graph)
        for infos, values in zip(bundle.tensors(graph), (model.graph.input, model.graph.output), strict=True):
            wanted = [(info.name, np.dtype(info.dtype), info.shape) for info in infos]
            got = [
                (
                    value.name,
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
                    tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            assert got == wanted, graph


def test_manifest_shows_the_tensors_of_each_graph(folder):
    bundle = Bundle.open(folder)
    table = json.loads((folder / "manifest.json").read_text())["graphs"]
    assert set(table) == set(bundle.graphs)
    for graph in bundle.graphs:
        for side, infos in zip(("inputs", "outputs"), bundle.tensors(graph), strict=True):
            assert [(row["name"], row["dtype"], tuple(row["shape"])) for row in table[graph][side]] == [
                (info.name, info.dtype, info.shape) for info in infos
            ]


@pytest.mark.parametrize(("bundle", "dtype"), [("demo_fp32", TensorProto.FLOAT), *HALF.items()])
def test_cache_has_the_type_of_the_precision(bundle, dtype, folders):
    types = types_of(load(folders[bundle], "step").graph)
    cache = {name: kind for name, kind in types.items() if name.startswith(("past_", "new_"))}
    assert len(cache) == 16  # k and v, in and out, of four blocks
    assert set(cache.values()) == {dtype}


def test_opset_is_exactly_20_and_the_standard_one(folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "copy")  # the checker reads no weights that have a second hard link
    for graph in Bundle.open(folder).graphs:
        model = load(folder, graph)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)], graph
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}
        onnx.checker.check_model(str(folder / f"{graph}.onnx"))


def test_operators_are_whole(folders):
    """Layer norms and GELUs stay one node each; attention is MatMul, Softmax, MatMul; no Resize, no cumulative sum."""
    operators = [node.op_type for node in load(folders["demo_fp32"], "step").graph.node]
    assert operators.count("LayerNormalization") == 2 * 4 + 1
    assert operators.count("Gelu") == 4
    assert operators.count("Softmax") == 4
    assert operators.count("TopK") == 1
    # What TensorRT 10.3 lacks, or runtimes disagree about.
    assert not {"Attention", "CumSum", "Resize", "Loop", "If", "Scan", "RandomUniform", "Multinomial"} & set(operators)


def test_nothing_tells_of_the_machine_that_built_it(folder):
    for file in folder.iterdir():
        if file.suffix in (".onnx", ".json"):
            found = [leak for leak in LEAKS if leak in file.read_bytes().replace(b'"torch"', b"")]  # a builder version
            assert not found, file.name


def test_every_large_tensor_lies_in_the_one_weight_file_once(folder):
    size = (folder / WEIGHTS).stat().st_size
    regions = set()
    for graph in Bundle.open(folder).graphs:
        model = load(folder, graph)
        outside = external(model)
        for tensor in model.graph.initializer:
            if tensor.name not in outside:
                assert len(tensor.raw_data) < 1024, f"{graph}: {tensor.name}"
        regions |= set(outside.values())
    ends = 0
    for offset, length in sorted(regions):
        assert offset % 4096 == 0
        assert ends <= offset, "two tensors overlap"
        ends = offset + length
    assert ends <= size
    with (folder / WEIGHTS).open("rb") as file:
        contents = set()
        for offset, length in regions:
            file.seek(offset)
            contents.add(file.read(length))
    assert len(contents) == len(regions), "a tensor is stored twice"


def test_fused_and_stepwise_graphs_share_their_weights(folders):
    folder = folders["tiny_both"]
    stepwise = {region for graph in ("cond", "step", "decode") for region in external(load(folder, graph)).values()}
    fused = set(external(load(folder, "fused")).values())
    assert sum(length for _, length in stepwise & fused) > 0.9 * sum(length for _, length in stepwise)
    assert sum(length for _, length in fused - stepwise) < 0.05 * sum(length for _, length in stepwise)


def test_every_value_has_a_type(folder):
    """What `calib.graphs.emulate` relies on."""
    for graph in Bundle.open(folder).graphs:
        model = load(folder, graph)
        types = types_of(model.graph)
        assert not [name for node in model.graph.node for name in node.output if name and not types.get(name)], graph


@pytest.mark.parametrize("graph", ["cond", "step", "decode", "encode"])
def test_products_are_computed_in_half_precision(graph, half):
    """Every GEMM and convolution, except those of the sampler (prefix sums) and of the quantiser."""
    folder, dtype = half
    graph = load(folder, graph).graph
    types = types_of(graph)
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    typed = [node for node in products if types[node.output[0]] == dtype]
    for node in typed:
        assert {types[name] for name in node.input} == {dtype}, node.name
    rest = [node for node in products if node not in typed]
    for node in rest:
        assert {types[name] for name in [*node.input, *node.output]} == {TensorProto.FLOAT}, node.name
    if graph.name == "step":  # qkv, proj, fc1, fc2 and two of attention in each block; the head and the word embedding
        assert len(typed) == 4 * (4 + 2) + 2
        weights = {
            name for node in rest for name in node.input if name in {tensor.name for tensor in graph.initializer}
        }
        assert len(weights) == 6, "triangles of the two prefix sums, kernel and bias of phi"
    elif graph.name == "encode":  # the rest quantises
        assert len(typed) == 34 + 2 * 3
    else:
        assert typed
        assert not rest


@pytest.mark.parametrize("graph", ["cond", "step", "decode", "encode"])
def test_half_precision_graphs_normalise_in_fp32(graph, half):
    model = load(half[0], graph)
    types = types_of(model.graph)
    sensitive = (
        "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Softmax", "ReduceL2", "TopK", "Exp",
        "ArgMin", "ArgMax",
    )  # fmt: skip
    for node in model.graph.node:
        if node.op_type in sensitive:
            assert types[node.input[0]] == TensorProto.FLOAT, f"{node.op_type} {node.name}"


def test_half_precision_steps_keep_residual_stream_sampler_and_quantiser_in_fp32(half):
    graph = load(half[0], "step").graph
    types = types_of(graph)
    for name in ("x", "x_next", "f_hat", "f_hat_out", "logits", "adaln", "head_adaln", "uniforms"):
        assert types[name] == TensorProto.FLOAT, name
    convolutions = [node for node in graph.node if node.op_type == "Conv"]  # phi
    assert [types[node.input[1]] for node in convolutions] == [TensorProto.FLOAT]


def test_half_precision_halves_the_weights(half, folders):
    sizes = [(folder / WEIGHTS).stat().st_size for folder in (half[0], folders["demo_fp32"])]
    assert sizes[0] < 0.6 * sizes[1]
