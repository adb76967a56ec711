"""INT8 in estimates: against graphs that calib quantises, byte by byte, and against sizes that were measured."""

import numpy as np
import onnx_ir as ir
import pytest

from calib.calibration import INPUT, OUTPUT, Calibration
from calib.choose.options import QuantisationOptions
from calib.choose.ranges import Ranges
from calib.graphs.layers import find_layers
from calib.rewrite.integers import quantize
from calib.statistics import Statistics
from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.errors import UsageError
from engines.sizing import cost
from engines.sizing.decoder import decode_operations
from engines.sizing.devices import CPU, find
from engines.sizing.estimate import Estimate
from engines.sizing.memory import memory
from engines.sizing.models import official
from engines.sizing.quantised import FLOATS, Quantisation, layer_names, weights_by_way
from engines.sizing.roofline import COMPUTE, Work, bound
from engines.sizing.workload import Workload
from engines.spec.policy import FLOAT, LEVELS, PER_BLOCK, PER_TOKEN, STATIC, adaln_way, assign
from tests.bundles import shared_bundle

D16 = official("d16")
GRAPHS = ("cond", "step", "decode")


def operations(config, graph, precision, quantisation=FLOATS):
    made = {
        "cond": lambda: cost.cond_operations(config, precision, 1),
        "step": lambda: cost.step_operations(config, precision, 0, images=1, rows=1, max_top_k=1),
        "decode": lambda: decode_operations(config, precision, 1),
    }
    return quantisation.apply(made[graph]())


def constants(model):
    """Bytes of the initializers, but for the ranges of activations: two numbers each."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if ".activation." not in value.name)


def calibrated(layers):
    """Statistics of noise for every layer: sizes do not depend on them."""
    noise = np.random.default_rng(0).standard_normal((4, 8, 8, 8)).astype(np.float32)
    calibration = Calibration("", {})
    for layer in layers:
        for which in (INPUT, OUTPUT):
            statistics = calibration.tensors[f"{layer.name}:{which}"] = Statistics()
            statistics.add(noise, 0, -1)
    return calibration


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def base(request):
    """Target, and a float bundle to make INT8 for it."""
    path = shared_bundle("tiny-fp32") if request.param == "onnxruntime" else DEMO_BUNDLE
    return request.param, Bundle.open(path, verify=False)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weights_are_those_of_quantised_graphs(base, graph, level, precision):
    """To the byte: what quantising takes off the constants of a graph is what an estimate takes off."""
    target, bundle = base
    adaln = adaln_way(bundle.config, target)
    ways = assign(layer_names(bundle.config), target, level, precision=precision, adaln=adaln)
    quantisation = Quantisation(target, ways, precision, bundle.config.transformer.num_classes + 1)
    model = ir.load(bundle.graph_path(graph))
    before, layers = constants(model), find_layers(model, graph)
    options = QuantisationOptions(precision=precision, target=target, ranges=Ranges(method="minmax"))
    quantize(model, layers, quantisation.ways, calibrated(layers), options)
    planned = [
        cost.total_weights(operations(bundle.config, graph, bundle.precision, chosen))
        for chosen in (FLOATS, quantisation)
    ]
    assert constants(model) - before == planned[1] - planned[0]
    in_float = (
        {"cond": LEVELS, "step": (1,), "decode": ()}[graph] if (target, precision) == ("tensorrt", "int8") else ()
    )
    assert (planned[1] == planned[0]) is (level in in_float)


def test_layers_are_those_of_the_graphs(base):
    _, bundle = base
    found = [layer.name for graph in GRAPHS for layer in find_layers(ir.load(bundle.graph_path(graph)), graph)]
    assert sorted(found) == sorted(layer_names(bundle.config))


def test_layers_of_shared_adaln():
    d36 = layer_names(official("d36"))
    assert [name for name in d36 if name.startswith("cond/")] == ["cond/shared", "cond/head"]


def test_sizes_that_were_measured():
    """docs/int8.md: TensorRT-RTX plans of d16, and the weight file of its CPU bundle, which has the encoder too."""
    half, eight = (memory(Workload(config=D16, precision=precision)) for precision in ("fp16", "int8"))
    assert half.transformer - eight.transformer == pytest.approx(549e6 - 415e6, rel=0.01)
    assert half.decoder == pytest.approx(134e6, rel=0.05)
    assert 0.8 * 77e6 < eight.decoder < 77e6
    assert half.allowance == eight.allowance  # kernels: 137 MB of either plan
    floats, cpu = (memory(Workload(config=D16, precision=p, target="onnxruntime")) for p in ("fp32", "int8"))
    assert cpu.weights / floats.weights == pytest.approx(0.2655, abs=0.003)
    assert sum(cpu.by_way.values()) < cpu.weights
    assert set(cpu.by_way) == {FLOAT, STATIC, PER_TOKEN, PER_BLOCK}
    assert set(eight.by_way) == {FLOAT, STATIC}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_cache_and_activations_are_in_the_high_precision(target):
    high = {"onnxruntime": "fp32", "tensorrt": "fp16"}[target]
    floats, eight = (memory(Workload(config=D16, precision=p, target=target, images=3)) for p in (high, "int8"))
    for part in ("kv_cache", "loop_buffers", "step_activations", "decoder_activations", "scale_constants"):
        assert getattr(floats, part) == getattr(eight, part), part


def test_products_are_the_same_in_another_type():
    device = find("l4")
    half, eight = (Estimate(Workload(config=D16, precision=precision), device) for precision in ("fp16", "int8"))
    for one, other in zip(half.calls, eight.calls, strict=True):
        assert sum(one.work.flops.values()) == sum(other.work.flops.values())
    last = eight.scales[-1].work.flops
    assert 0 < last["fp16"] < last["int8"]
    assert eight.decode.work.flops["int8"] > 0.95 * sum(half.decode.work.flops.values())
    assert 1.2 < eight.images_per_s / half.images_per_s < 2
    assert set(eight.cond.work.flops) == {"fp16"}


def test_the_tensor_cores_take_turns():
    device = find("t4")
    peaks = {kind: int(device.peak(kind)) for kind in ("int8", "fp16", "fp32")}
    turns = bound(Work("w", {"int8": peaks["int8"], "fp16": peaks["fp16"] // 2}, {}, {}), device)
    assert (turns.seconds, turns.bound_by) == (pytest.approx(1.5), COMPUTE)
    beside = bound(Work("w", peaks, {}, {}), device)
    assert beside.seconds == pytest.approx(2)


def test_more_is_smaller_and_faster():
    estimates = [
        Estimate(Workload(config=D16, precision="int8", level=level, images=8), find("l4")) for level in LEVELS
    ]
    half = Estimate(Workload(config=D16, images=8), find("l4"))
    totals, seconds = [[getattr(p, what) for p in (half, *estimates)] for what in ("memory", "seconds")]
    assert np.all(np.diff([memory.total for memory in totals]) < 0)
    assert np.all(np.diff(seconds) < 0)
    with pytest.raises(UsageError, match="level must be 1 to 3"):
        Workload(config=D16, precision="int8", level=4)


def test_layers_that_are_computed_in_other_ways_are_counted_apart():
    ways = {"step/blocks.3.fc1": STATIC, "step/blocks.7.fc1": PER_TOKEN, "step/head": FLOAT}
    ways["step/blocks.9.fc1"] = PER_BLOCK
    found = operations(D16, "step", "fp32", Quantisation("onnxruntime", ways))
    parts = {(op.dtype, op.weight.way): op for op in found if op.name == "block.fc1"}
    assert {key: op.count for key, op in parts.items()} == {
        ("fp32", FLOAT): 13, ("int8", STATIC): 1, ("int8", PER_TOKEN): 1, ("int8", PER_BLOCK): 1,
    }  # fmt: skip
    plain = operations(D16, "step", "fp32")
    assert sum(op.flops * op.count for op in found) == sum(op.flops * op.count for op in plain)
    K, N = 1024, 4096
    assert parts["int8", STATIC].weight_bytes == N * (K + 5 + 12)
    assert parts["int8", PER_TOKEN].weight_bytes == N * (K + 5 + 4)
    assert parts["int8", PER_BLOCK].weight_bytes == N * (K * 36 // 32 + 4)
    assert weights_by_way(found)[STATIC] == N * (K + 17)


def test_int8_is_a_remedy_where_it_helps():
    class Box:
        def __init__(self, usable):
            self.usable_bytes = usable

    half = Workload(config=D16, images=8)
    room = memory(Workload(config=D16, images=8, precision="int8")).total
    assert Estimate(half, Box(room)).remedies[-1] == "--precision int8"
    assert Estimate(half, Box(room - 1)).remedies[-1] == "--precision int4"  # which is named where INT8 is not enough
    as_built = Workload(config=D16, images=8, precision="int8", ways=assign(layer_names(D16), "tensorrt", 2))
    room = memory(Workload(config=D16, images=8, precision="int4")).total
    assert Estimate(as_built, Box(room)).remedies[-1] == "--precision int4"
    assert "--precision int4" not in Estimate(half, Box(room - 1)).remedies


def test_the_cpu_at_hand():
    cpu = find("CPU")
    assert (cpu.name, cpu.is_cpu, cpu.peaks) == (CPU, True, {})
    assert 0 < cpu.usable_bytes <= cpu.memory_bytes
    estimate = Estimate(Workload(config=D16, precision="int8").on(cpu), cpu)
    assert (estimate.workload.high, estimate.memory.allowance) == ("fp32", 0)
    document = estimate.to_dict()
    assert document["supported"] is True
    assert document["bound_seconds"] is None
    with pytest.raises(UsageError, match="--precision fp32, int8 or int4"):
        cpu.check("fp16")
