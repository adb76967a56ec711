"""How far the values of half-precision graphs reach in the golden run, computed in float32: what half may not hold.

Every value that the shipped graphs hold in half precision leaves them as one number, its largest magnitude; so even
a fused graph of all scales runs in little more memory than it takes to draw.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.changed import ChangedGraphs
from calib.graphs.emulate import HALF
from calib.graphs.layers import layer_of, load_graph
from calib.observe.watching import watched
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.draw.rerun import draw_again
from engines.spec.choices import FUSED, STEPWISE

_SUFFIX = ".reach"


@dataclass(frozen=True)
class Reach:
    """One value of a half-precision graph, at the scale where it reaches furthest."""

    graph: str
    """The graph of the stepwise form that it belongs to, one of `engines.spec.contract.PART_OF`."""
    value: str
    """The name that the value has in that graph."""
    layer: str
    """The layer that it comes from: the nearest product with a trained weight before it."""
    scale: int | None
    """None in graphs that run once for all scales."""
    largest: float
    """Its largest magnitude; NaN where not all of it is finite."""
    is_output: bool
    """Whether it leaves the graph in half precision: keys and values of the cache do."""
    of_layer: bool
    """Whether it is the output of the layer itself, not of something behind it."""

    def __str__(self) -> str:
        size = "is not finite" if math.isnan(self.largest) else f"reaches {self.largest:,.0f}"
        return f"{self.layer}{'' if self.scale is None else f' at scale {self.scale}'} {size}"


def measure(bundle: Bundle, threads: int | None = None) -> list[Reach]:
    """How far each half-precision value of a bundle reaches in the golden run; empty for bundles in FP32."""
    if bundle.high_precision not in HALF:
        return []
    half = HALF[bundle.high_precision]
    files = ("cond", "step", "decode", "encode") if STEPWISE in bundle.forms else (FUSED, "encode")
    values: dict[str, dict[str, ir.Value]] = {}  # of each file, by name
    for file in files:
        graph = load_graph(bundle.graph_path(file)).graph
        values[file] = {value.name or "": value for value in _computed(graph, half)}
    sources = {file: {name: _source_of(value, file) for name, value in here.items()} for file, here in values.items()}
    furthest: dict[tuple[str, str], Reach] = {}

    def watch(file: str, at: int, shown: Mapping[str, NDArray[Any]]) -> None:
        for output, number in shown.items():
            name = output.removesuffix(_SUFFIX)
            (graph, value, scale), largest = home(file, name, at), float(number)
            known = furthest.get((graph, value))
            if known is None or math.isnan(largest) or largest > known.largest:  # no number is above NaN
                layer, of_layer = sources[file][name]
                is_output = values[file][name].is_graph_output()
                furthest[graph, value] = Reach(graph, value, layer, scale, largest, is_output, of_layer)

    def prepare(model: ir.Model) -> None:
        for value in _computed(model.graph, half):
            _add_reach(model.graph, value, half)

    wanted = {file: [f"{name}{_SUFFIX}" for name in names] for file, names in values.items()}
    with ChangedGraphs(bundle, emulated=True, rounded=False, beside=bundle.path) as graphs:
        backend = OnnxRuntimeBackend(
            threads=threads, sessions=watched(graphs, wanted, bundle.config, watch, prepare=prepare)
        )
        with Pipeline(bundle, backend, form=bundle.forms[0], max_batch=1) as pipeline:
            draw_again(pipeline, bundle.golden, forced=bundle.golden["tokens"])
            pipeline.encode(bundle.golden["image"])
    return list(furthest.values())


def home(file: str, name: str, scale: int | None = None) -> tuple[str, str, int | None]:
    """The graph of the stepwise form that a value belongs to, its name there, and its scale.

    In the fused graph a value's name begins with its part: `scale3.add_12`, `decode.conv2d`. `scale`: as observed.
    """
    if file != FUSED:
        return file, name, scale if file == "step" else None
    part, _, rest = name.partition(".")
    return ("step", rest, int(part[5:])) if part.startswith("scale") else (part, rest, None)


def _computed(graph: ir.Graph, half: ir.DataType) -> list[ir.Value]:
    """What nodes give in half precision; not what they restore from 8 bits, which has the range that was calibrated."""
    return [v for node in graph if node.op_type != "DequantizeLinear" for v in node.outputs if v.dtype == half]


def _add_reach(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    """A further value: the largest magnitude, NaN where one is NaN or infinite. (ReduceMax alone passes over NaN.)"""
    magnitude = ir.node("Abs", [value])
    largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
    total = ir.node("ReduceSum", magnitude.outputs, {"keepdims": 0})
    nothing = ir.node("Sub", [total.outputs[0], total.outputs[0]])
    reach = ir.node("Add", [largest.outputs[0], nothing.outputs[0]])
    for number, node in enumerate((magnitude, largest, total, nothing, reach)):
        node.outputs[0].name, node.outputs[0].dtype = f"{value.name}{_SUFFIX}.{number}", half
        graph.append(node)
    reach.outputs[0].name, reach.outputs[0].shape = f"{value.name}{_SUFFIX}", ir.Shape([])


def _source_of(value: ir.Value, file: str) -> tuple[str, bool]:
    """The nearest layer that a value comes from (its graph's name where there is none), and whether it is its output.

    A layer's output is its product, and the sum of that and its bias.
    """
    seen, waiting = {value}, deque([(value, 0)])
    while waiting:
        here, steps = waiting.popleft()
        node = here.producer()
        if node is None:
            continue
        layer = layer_of(node, file)
        if layer is not None:
            added = value.producer()
            biased = (
                added is not None and added.op_type == "Add" and any(v and v.is_initializer() for v in added.inputs)
            )
            return layer, steps == 0 or (steps == 1 and biased)
        for before in node.inputs:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append((before, steps + 1))
    return file, False
