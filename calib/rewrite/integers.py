"""Quantised layers put into a graph, in place.

For TensorRT, Q/DQ pairs where its builder fuses them: on the input and the weight of a product, nowhere else.

    x --> Q --> DQ --> [MatMul] <-- DQ <-- W int8, a scale per output channel        symmetric S8, scales in x's type
    x ---------------> [MatMul] <-- DQ <-- W int4, a scale per block of a channel    the product is in x's type
    class -----------> [Gather] <-- DQ <-- table int8, a scale per column            what AdaLN gives, without a product

For ONNX Runtime's CPU, what its loader turns into integer kernels:

    x --> Q --> DQ --> [Gemm] <-- DQ <-- W int8 | bias int32      U8 with a zero point; becomes QGemm, float output
    x --> Q --> DQ --> [Conv] --> Q --> DQ                        becomes QLinearConv, which has 8-bit output too
    x --> [MatMulNBits] <-- W, a scale per block of weights      each token has a range per block of channels
    class --> [Gather] <-- table of uint8                          what AdaLN gives, in place of its product

and, for a range per token (x is (M, K), a row a token; s (M, 1), so that x / s fits 8 bits with a fixed zero point):

    x ---> ReduceMax, ReduceMin --> s ------------------------------+
    |                               |                               |
    +-----------------------------> / --> Q --> DQ --> [Gemm] ----> * --> + bias      becomes QGemm, float output
                                       scale 1           ^
                                                         DQ <-- W int8, a scale per output channel

Why not onnxruntime.quantization's own rewriter: it holds model and weights in one protobuf message, which ends at
2 GiB (d24's step graph in FP32), and knows neither per-token products nor the Gemm form. A test holds scales, zero
points and integer weights against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.calibration import INPUT, OUTPUT, Calibration
from calib.choose.options import QuantisationOptions
from calib.choose.ranges import choose_range, scale_and_zero_point
from calib.choose.smoothquant import fold
from calib.graphs.layers import Layer, find_layers, read_weight
from calib.rewrite.blocks import put_blocks, put_four_bit_weight
from calib.rewrite.editor import Editor
from calib.rewrite.table import put_table
from calib.rewrite.weights import quantize_weight
from engines.spec.choices import TENSORRT
from engines.spec.policy import FLOAT, FOUR_BITS, PER_BLOCK, PER_CLASS, PER_TOKEN, STATIC

ZERO_POINTS, ZERO_POINT = {"fc2": 32}, 128
"""Of activations with a range per token, by role. fc2's come out of GELU, never below -0.17, and would leave half of
the integers unused."""
LEAST_SCALE = 1e-30
"""Of a token: one of zeros divides by it."""


def rewritten(
    models: Mapping[str, ir.Model], ways: Mapping[str, str], calibration: Calibration, options: QuantisationOptions
) -> Iterator[tuple[str, ir.Model]]:
    """Quantise float graphs in place, one after another; layers without a way stay as they are.

    Only layers with static ranges are smoothed: factors are chosen for those, and a range per token is worse for them
    (demo, level 2: KL 2.8e-3 with fc1 smoothed, 2.7e-3 without). `cond` must be among the graphs with `step`.
    """
    layers = {graph: find_layers(model, graph) for graph, model in models.items()}
    chosen = {name for name, way in ways.items() if way != FLOAT}
    if "step" in models:
        fold(models, layers["step"], {n: s for n, s in calibration.smoothing.items() if ways.get(n) == STATIC})
    for graph, model in models.items():
        here = [layer for layer in layers[graph] if layer.name in chosen]
        quantize(model, here, ways, calibration, options)
        yield graph, model


def quantize(
    model: ir.Model,
    layers: Iterable[Layer],
    ways: Mapping[str, str],
    calibration: Calibration | None,
    options: QuantisationOptions,
) -> None:
    """Rewrite a graph; floating weights that nothing uses any more are dropped.

    `layers` come from `find_layers` on this very model, `ways` has one of `engines.spec.policy.METHODS` for each by
    name, and `calibration` the statistics of every static one.
    """
    rewriter = _Rewriter(model, calibration, options)
    put = {
        STATIC: rewriter.static,
        PER_TOKEN: rewriter.per_token,
        PER_BLOCK: rewriter.per_block,
        FOUR_BITS: rewriter.four_bits,
        PER_CLASS: rewriter.per_class,
    }
    for layer in layers:
        if ways[layer.name] != FLOAT:
            put[ways[layer.name]](layer)
    rewriter.finish()


class _Rewriter(Editor):
    def __init__(self, model: ir.Model, calibration: Calibration | None, options: QuantisationOptions) -> None:
        super().__init__(model)
        self._calibration, self._ranges, self._precision = calibration, options.ranges, options.precision
        self._largest = options.largest_weight  # of a channel; products of blocks have kernels that never saturate
        self._symmetric = options.target == TENSORRT
        self._pairs: dict[ir.Value, tuple[ir.Value, np.float32]] = {}  # tensor -> its quantised self, scale

    def static(self, layer: Layer) -> None:
        node, weight = layer.node, layer.weight
        value, scale = self._quantized(layer.input, f"{layer.name}:{INPUT}")
        axis = 0 if layer.is_conv else 1
        array, scales = quantize_weight(read_weight(weight), axis, self._largest)
        dequantized = self._dequantized(weight.name or "", array, scales, axis, weight)
        self.graph.insert_before(node, dequantized)
        node.replace_input_with(0, value)
        node.replace_input_with(1, dequantized.outputs[0])
        if self._symmetric:
            return
        if layer.is_conv:
            self._integer_bias(node, layer.bias_vector, scale * scales)
            self._quantized_output(layer)
        else:
            self._gemm(layer, scale * scales)

    def _dequantized(
        self, name: str, array: NDArray[Any], scales: NDArray[np.float32], axis: int, like: ir.Value
    ) -> ir.Node:
        assert like.dtype is not None
        inputs: list[ir.Value | None] = [
            self.constant(f"{name}.quantized", array),
            self.constant(f"{name}.scale", scales.astype(like.dtype.numpy())),
            self.constant(f"{name}.zero_point", np.zeros(len(scales), array.dtype)),
        ]
        return self.node("DequantizeLinear", inputs, like, f"{name}.dequantized", axis=axis)

    def _quantized(self, value: ir.Value, statistics: str) -> tuple[ir.Value, np.float32]:
        """`value` behind a Q/DQ pair, made once for all layers that take it, and the scale."""
        if value not in self._pairs:
            pair, scale = self._pair(value, statistics)
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], pair)
            else:
                self.graph.insert_after(producer, pair)
            self._pairs[value] = pair[1].outputs[0], scale
        return self._pairs[value]

    def _pair(self, value: ir.Value, statistics: str) -> tuple[list[ir.Node], np.float32]:
        assert self._calibration is not None and value.dtype is not None
        low, high = choose_range(
            self._calibration.tensors[statistics],
            self._ranges.method,
            symmetric=self._symmetric,
            percentile=self._ranges.percentile,
        )
        scale, zero = scale_and_zero_point(low, high, symmetric=self._symmetric)
        integer = np.int8 if self._symmetric else np.uint8
        name = f"{value.name}.activation"
        scale_value = self.constant(f"{name}.scale", np.asarray(scale, value.dtype.numpy()))
        zero_value = self.constant(f"{name}.zero_point", np.asarray(zero, integer))
        q = self.node(
            "QuantizeLinear", [value, scale_value, zero_value], value, f"{name}.quantized",
            dtype=ir.DataType.from_numpy(np.dtype(integer)),
        )  # fmt: skip
        dq = self.node("DequantizeLinear", [q.outputs[0], scale_value, zero_value], value, f"{name}.dequantized")
        return [q, dq], np.float32(scale)

    def _integer_bias(self, node: ir.Node, bias: ir.Value | None, scales: NDArray[np.float32]) -> None:
        """The third input of a Conv or a Gemm that has one as int32, in steps of its products."""
        if bias is None:
            return
        scales = scales.astype(np.float32)
        array = np.rint(np.asarray(read_weight(bias), np.float64) / scales)
        array = array.clip(-(2**31) + 1, 2**31 - 1).astype(np.int32)
        dequantized = self._dequantized(bias.name or "", array, scales, 0, bias)
        self.graph.insert_before(node, dequantized)
        node.replace_input_with(2, dequantized.outputs[0])

    def _quantized_output(self, layer: Layer) -> None:
        value = layer.node.outputs[0]
        pair, scale = self._pair(value, f"{layer.name}:{OUTPUT}")
        users = [(use.node, use.idx) for use in value.uses() if use.node is not pair[0]]
        assert not value.is_graph_output()
        for user, at in users:
            user.replace_input_with(at, pair[1].outputs[0])
        self.graph.insert_after(layer.node, pair)
        self._pairs[pair[1].outputs[0]] = pair[1].outputs[0], scale

    def _gemm(self, layer: Layer, scales: NDArray[np.float32]) -> None:
        """MatMul and Add as Gemm: ONNX Runtime makes one of them anyway, before it looks for integer kernels."""
        node, bias, shape = layer.node, layer.bias_vector, layer.input.shape
        if shape is None or len(shape) != 2:
            return
        last = layer.bias or node
        inputs = [node.inputs[0], node.inputs[1], *([] if bias is None else [bias])]
        gemm = self.node("Gemm", inputs, last.outputs[0], f"{layer.name}.gemm")
        self.graph.insert_before(last, gemm)
        self._integer_bias(gemm, bias, scales)
        self.replace(last, gemm)
        if last is not node:
            self.graph.remove(node, safe=True)

    def per_token(self, layer: Layer) -> None:
        node, weight, out, shape = layer.node, layer.weight, layer.node.outputs[0], layer.input.shape
        array, scales = quantize_weight(read_weight(weight), 1, self._largest)
        dequantized = self._dequantized(weight.name or "", array, scales, 1, weight)
        nodes, value, row_scale = self._quantized_rows(layer)
        op = "Gemm" if shape is not None and len(shape) == 2 else "MatMul"
        product = self.node(op, [value, dequantized.outputs[0]], out, f"{layer.name}.product")
        scaled = self.node("Mul", [product.outputs[0], row_scale], out, f"{layer.name}.scaled")
        self.graph.insert_before(node, [*nodes, dequantized, product, scaled])
        self.replace(node, scaled)  # the bias is added behind it, as it was

    def _quantized_rows(self, layer: Layer) -> tuple[list[ir.Node], ir.Value, ir.Value]:
        """Nodes; the input behind its Q/DQ pair, each token in steps of its own scale; the scales (..., 1)."""
        x, name = layer.input, f"{layer.name}.activation"
        zero = ZERO_POINTS.get(layer.role, ZERO_POINT)
        assert x.shape is not None
        nodes: list[ir.Node] = []

        def make(op: str, *inputs: ir.Value, called: str) -> ir.Value:
            nodes.append(self.node(op, list(inputs), x, f"{name}.{called}"))
            return nodes[-1].outputs[0]

        last = self.constant(f"{name}.axes", np.array([-1]))
        above = self.constant(f"{name}.above", np.float32(1 / (255 - zero)))
        below = self.constant(f"{name}.below", np.float32(-1 / zero))
        high = make("Mul", make("ReduceMax", x, last, called="max"), above, called="high")
        low = make("Mul", make("ReduceMin", x, last, called="min"), below, called="low")
        least = self.constant(f"{name}.least", np.float32(LEAST_SCALE))
        scale = make("Max", high, low, least, called="row_scale")
        for node in nodes:
            node.outputs[0].shape = ir.Shape([*x.shape[:-1], 1])
        unit = make("Div", x, scale, called="unit")
        one, zero_point = self.constant(f"{name}.scale", np.float32(1)), self.constant(f"{name}.zero", np.uint8(zero))
        dtype = ir.DataType.UINT8
        q = self.node("QuantizeLinear", [unit, one, zero_point], x, f"{name}.quantized", dtype=dtype)
        dq = self.node("DequantizeLinear", [q.outputs[0], one, zero_point], x, f"{name}.dequantized")
        return [*nodes, q, dq], dq.outputs[0], scale

    def per_block(self, layer: Layer) -> None:
        put_blocks(self, layer, self._precision)

    def four_bits(self, layer: Layer) -> None:
        if self._symmetric:
            put_four_bit_weight(self, layer, self._precision)
        else:
            put_blocks(self, layer, self._precision, bits=4)

    def per_class(self, layer: Layer) -> None:
        put_table(self, layer, signed=self._symmetric)
