"""What a layer costs, by the way it is computed: on the CPU measured, alone, in a graph of one product."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.calibration import INPUT, OUTPUT, Calibration
from calib.choose.options import QuantisationOptions
from calib.graphs.layers import Layer, constant, read_weight
from calib.rewrite.integers import quantize
from calib.statistics import Statistics
from engines.backends.onnxruntime.library import cpu_session
from engines.spec.config import ModelConfig
from engines.spec.policy import FLOAT

LEAST_RUNS, LEAST_SECONDS = 3, 0.02
Shape = tuple[int, ...]


def input_shapes(layer: Layer, config: ModelConfig, guided: bool = True) -> list[Shape]:
    """Of a layer's input for one image: one per scale for layers of `step`, else one."""
    sides = config.patch_nums if layer.graph == "step" else (1,)
    shape = layer.input.shape
    assert shape is not None, layer.name
    return [
        _resolved(shape, {"B": 1, "N": 1 + guided, "L": side * side, "M": following * following})
        for side, following in zip(sides, (*sides[1:], sides[-1]), strict=True)
    ]


def multiply_adds(layer: Layer, config: ModelConfig) -> float:
    """Multiplications that `layer` takes for one guided image, each with its addition."""
    weight, shape = layer.weight.const_value, layer.node.outputs[0].shape
    assert weight is not None and shape is not None
    inputs = input_shapes(layer, config)
    if layer.is_conv:
        *_, height, width = _resolved(shape, {"B": 1})
        return float(math.prod(weight.shape.numpy()) * height * width * len(inputs))
    return float(sum(math.prod(shape) for shape in inputs) * weight.shape.numpy()[1])


class Stopwatch:
    """Seconds that ONNX Runtime's CPU takes for layers; equal products are timed once."""

    def __init__(self, config: ModelConfig, threads: int | None) -> None:
        self._config, self._threads = config, threads
        self._known: dict[tuple[Any, ...], float] = {}

    def seconds(self, layer: Layer, way: str) -> float:
        """What `layer`, computed in one `way`, takes for one guided image, over all scales."""
        shapes = input_shapes(layer, self._config)
        options = tuple((name, str(value.value)) for name, value in sorted(layer.node.attributes.items()))
        weight = layer.weight.const_value
        assert weight is not None
        key = (way, layer.node.op_type, weight.shape.numpy(), layer.bias_vector is None, options, *shapes)
        if key not in self._known:
            self._known[key] = self._time(layer, way, shapes)
        return self._known[key]

    def _time(self, layer: Layer, way: str, shapes: list[Shape]) -> float:
        rng = np.random.default_rng(0)
        samples = [rng.standard_normal(shape, np.float32) for shape in shapes]
        model, alone = _alone(layer)
        if way != FLOAT:
            quantize(model, [alone], {alone.name: way}, _statistics(alone, samples), QuantisationOptions())
        graph = ir.serde.serialize_model(model).SerializeToString()
        session = cpu_session(graph, self._threads, f"timing {layer.name}")
        return sum(_best(session, sample) for sample in samples)


def _best(session: Any, sample: NDArray[np.float32]) -> float:
    """The shortest of some runs."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", sample)
    binding.bind_output("y", "cpu")
    session.run_with_iobinding(binding)
    spent: list[float] = []
    while len(spent) < LEAST_RUNS or sum(spent) < LEAST_SECONDS:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        spent.append(time.perf_counter() - start)
    return min(spent)


def _alone(layer: Layer) -> tuple[ir.Model, Layer]:
    """A model of this product alone, in float32: x -> y."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=layer.input.shape)
    constants = []

    def copied(value: ir.Value) -> ir.Value:
        constants.append(constant(value.name or "", np.asarray(read_weight(value), np.float32)))
        return constants[-1]

    inputs = [x, *(None if value is None else copied(value) for value in layer.node.inputs[1:])]
    nodes = [ir.node(layer.node.op_type, inputs, {n: a.value for n, a in layer.node.attributes.items()})]
    if layer.bias is not None and layer.bias_vector is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], copied(layer.bias_vector)]))
    for number, node in enumerate(nodes):
        out = node.outputs[0]
        out.name, out.dtype, out.shape = f"out_{number}", ir.DataType.FLOAT, layer.node.outputs[0].shape
    last = nodes[-1].outputs[0]
    y = ir.Value(name="y", type=last.type, shape=last.shape)  # an output of its own: the layer's may be quantised
    nodes.append(ir.node("Identity", [last], outputs=[y]))
    graph = ir.Graph([x], [y], nodes=nodes, initializers=constants, opset_imports={"": 20}, name=layer.graph)
    return ir.Model(graph, ir_version=10), Layer(layer.graph, layer.name, nodes[0])


def _statistics(layer: Layer, samples: Iterable[NDArray[np.float32]]) -> Calibration:
    """Of normal values: how long a kernel takes does not depend on them."""
    seen = Statistics()
    for sample in samples:
        seen.add(sample, 0, None)
    return Calibration("", {}, tensors={f"{layer.name}:{which}": seen for which in (INPUT, OUTPUT)})


def _resolved(shape: ir.Shape, sizes: Mapping[str, int]) -> Shape:
    """Numbers for symbols, which may be products: `N*L`."""
    return tuple(
        dim if isinstance(dim, int) else math.prod(sizes[part] for part in str(dim.value).split("*")) for dim in shape
    )
