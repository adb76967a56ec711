"""The fused graph, stitched from the graphs that are there already: traced, or quantised. Torch-free.

    labels --> [cond] --> x, adaln
                            |
          +-----------------v------------------+
          | [step] once per scale, unrolled:    |
          |   past_k = Concat(all new_k before) |
          |   up, down, pos_next, phi_index     |  constants of the scale
          |   t = cfg * scale / (scales - 1)    |
          +-----------------+------------------+
                            v
                  tokens, f_hat --> [decode] --> image

Tracing all scales of d16 by torch.export takes minutes (160 blocks); stitching takes a second, and the fused form
cannot differ from the stepwise one. Weights are shared by name: a block's are in the file once, used by every scale.
INT8 graphs are stitched after they are quantised: each scale has the Q/DQ pairs and integer weights of `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from calib.graphs.layers import initializer
from engines.spec import contract
from engines.spec.config import ModelConfig, mixing, num_phi, phi_index
from engines.spec.sampling import IN_GRAPHS

STITCHED = ("cond", "step", "decode")
"""What becomes part of the fused graph."""
_SLICED = ("uniforms", "forced_tokens", "forced_mask", "noise")
"""Inputs of which each scale takes its part, where the graph has them."""
_EVERY_SCALE = (*(option.name for option in IN_GRAPHS if not option.per_scale), "cond_row", "uncond_row", "image_row")
"""Inputs that every scale takes as they are, where the graph has them."""
Rule = Callable[[ir.Node, Mapping[ir.Value, ir.Value]], ir.Value | None]
"""Given a node and the copies made so far: what stands for its output instead of a copy, or None."""


class _Stitcher:
    """A graph that grows by copies of other graphs' nodes."""

    def __init__(self, *, shared_integers: bool) -> None:
        """`shared_integers`: False gives each scale a name of its own for the same stored 8-bit weights.

        ONNX Runtime needs that where it replaces them (see engines/backends/onnxruntime/arithmetic.py): it does so
        once per node that reads them, and refuses the second time. They are in the weight file once in any case.
        """
        self._shared_integers = shared_integers
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """An initializer that holds `array`."""
        return self._initializer(name, ir.tensor(array, name=name))

    def node(self, op: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
        """A node with one output of that name."""
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64) if op == "Shape" else inputs[0].type
        self.nodes.append(node)
        return node.outputs[0]

    def copy(
        self, graph: ir.Graph, prefix: str, given: Mapping[str, ir.Value], rule: Rule = lambda node, values: None
    ) -> dict[str, ir.Value]:
        """Copy the nodes of `graph`, its inputs replaced by `given`; returns its outputs by name."""
        values = {value: given[value.name or ""] for value in graph.inputs if value.name in given}
        for name, value in graph.initializers.items():
            assert value.const_value is not None
            shared = self._shared_integers or value.const_value.dtype != ir.DataType.INT8
            values[value] = self._initializer(f"{graph.name if shared else prefix}.{name}", value.const_value)
        for node in graph:
            instead = rule(node, values)
            if instead is not None:
                values[node.outputs[0]] = instead
                continue
            copy = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else values[value] for value in node.inputs],
                node.attributes.values(),
                num_outputs=len(node.outputs),
                name=f"{prefix}.{node.name}",
            )
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.name, new.type = f"{prefix}.{old.name}", old.type
                values[old] = new
            self.nodes.append(copy)
        return {value.name or "": values[value] for value in graph.outputs}

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self.initializers:
            self.initializers[name] = initializer(name, tensor)
        return self.initializers[name]


def _scale_rules(stitch: _Stitcher, scale: int, x: ir.Value, cache: dict[str, ir.Value]) -> Rule:
    """What changes when a `step` is inlined: the cache is a value that grows."""

    def rule(node: ir.Node, values: Mapping[ir.Value, ir.Value]) -> ir.Value | None:
        gone = next((v for v in node.inputs if v is not None and v.is_graph_input() and v not in values), None)
        if gone is None:
            return None
        if node.op_type == "Shape":  # the input is not there, but another has the same dimension
            axis = _SAME_IN_X[_dimension(gone, node)]
            return stitch.node("Shape", [x], f"{node.name}_{scale}", start=axis, end=axis + 1)
        last, past = node.inputs[-1], gone.name or ""
        assert last is not None and node.op_type == "Concat", node
        new = values[last]
        cache[past] = stitch.node("Concat", [cache[past], new], f"{past}_{scale}", axis=0) if scale else new
        return cache[past]

    return rule


_SAME_IN_X = {"N": 0, "L": 1}


def _dimension(value: ir.Value, node: ir.Node) -> str:
    """Which dimension of a graph input this Shape node asks for, by its name in the contract."""
    start, end = (node.attributes[name].as_int() for name in ("start", "end"))
    assert end == start + 1 and value.shape is not None, node
    return str(value.shape[start])


def fuse(
    config: ModelConfig,
    precision: str,
    graphs: Mapping[str, ir.Model],
    constants: Mapping[str, NDArray[np.float32]],
    *,
    smooth: bool = False,
) -> ir.Model:
    """Stitch `cond`, `step` and `decode` into one graph, which imports the operator sets that they import.

    What is not quantised computes in `precision`; `constants` are up_s, down_s and pos_s of each scale s; `smooth`:
    `step` was traced with it.
    """
    specs, result = contract.resolve(contract.FUSED, config, precision, smooth=smooth)
    inputs = {
        info.name: ir.Value(
            name=info.name, type=ir.TensorType(ir.DataType.from_numpy(np.dtype(info.dtype))), shape=ir.Shape(info.shape)
        )
        for info in specs
    }
    stitch = _Stitcher(shared_integers=precision != "fp32")  # FP32 is for ONNX Runtime, FP16 for TensorRT
    cond = stitch.copy(graphs["cond"].graph, "cond", {"labels": inputs["labels"]})
    B = stitch.node("Shape", [inputs["cfg"]], "batch")
    sizes = stitch.constant("map_sizes", np.array([config.vae.z_channels, config.latent_size, config.latent_size]))
    map_shape = stitch.node("Concat", [B, sizes], "map_shape", axis=0)
    zero = stitch.constant("zero", np.zeros((1, 1, 1, 1), np.float32))
    f_hat = stitch.node("Expand", [zero, map_shape], "empty_map")
    step, x = graphs["step"].graph, cond["x"]
    maps: dict[str, list[ir.Value]] = {"tokens": [], "drawn": []}
    axis = stitch.constant("axis_1", np.array([1]))
    cache: dict[str, ir.Value] = {}
    for scale in range(config.num_scales):
        here = config.scale_slice(scale)
        bounds = [stitch.constant(f"at_{at}", np.array([at])) for at in (here.start, here.stop)]
        ratio = stitch.constant(f"ratio_{scale}", np.array(scale / (config.num_scales - 1), np.float32))
        following = min(scale + 1, config.num_scales - 1)  # what the last scale prepares is dropped below
        given = {name: inputs[name] for name in _EVERY_SCALE if name in inputs} | {
            "x": x,
            "adaln": cond["adaln"],
            "head_adaln": cond["head_adaln"],
            "f_hat": f_hat,
            **{
                name: stitch.node("Slice", [inputs[name], *bounds, axis], f"{name}_{scale}")
                for name in _SLICED
                if name in inputs
            },
            "guidance": stitch.node("Mul", [inputs["cfg"], ratio], f"guidance_{scale}"),
            "up": stitch.constant(f"up_{scale}", constants[f"up_{scale}"]),
            "down": stitch.constant(f"down_{following}", constants[f"down_{following}"]),
            "pos_next": stitch.constant(f"pos_{following}", constants[f"pos_{following}"]),
        }
        if num_phi(config):
            given["phi_index"] = stitch.constant(f"phi_{scale}", np.array([phi_index(config, scale)]))
        if smooth:
            given["mixing"] = stitch.constant(f"mixing_{scale}", np.array(mixing(config, scale), np.float32))
        out = stitch.copy(step, f"scale{scale}", given, _scale_rules(stitch, scale, x, cache))
        x, f_hat = out["x_next"], out["f_hat_out"]
        for name, parts in maps.items():
            parts.append(out[name])
    image = stitch.copy(graphs["decode"].graph, "decode", {"f_hat": f_hat})["image"]
    outputs = {name: stitch.node("Concat", parts, name, axis=1) for name, parts in maps.items()} | {"image": image}
    for info in result:
        value = outputs[info.name]
        value.name, value.shape = info.name, ir.Shape(info.shape)
        value.dtype = ir.DataType.from_numpy(np.dtype(info.dtype))
    return _model(stitch, list(inputs.values()), [outputs[info.name] for info in result], graphs)


def _model(
    stitch: _Stitcher, inputs: list[ir.Value], outputs: list[ir.Value], graphs: Mapping[str, ir.Model]
) -> ir.Model:
    """The stitched nodes as a model, which imports the newest of the operator sets that its parts import."""
    imported: dict[str, int] = {}
    for name in STITCHED:
        for domain, number in graphs[name].opset_imports.items():
            imported[domain] = max(number, imported.get(domain, 0))
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=stitch.nodes,
        initializers=list(stitch.initializers.values()),
        opset_imports=imported,
        name="fused",
    )
    model = ir.Model(
        graph, ir_version=graphs["step"].ir_version, producer_name="var-export", doc_string=contract.FUSED.meaning
    )
    common.RemoveUnusedNodesPass()(model)
    return model
