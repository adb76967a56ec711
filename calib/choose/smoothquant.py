"""Smoothing: outliers of an activation moved into the weight behind it, channel by channel, at no cost at run time.

    x W  =  (x / s) (s W),   s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)     (Xiao et al. 2022, arXiv:2211.10438)

The division is done by what makes x: for qkv and fc1 the AdaLN scale and shift (a factor on the output of `cond`, which
runs once per class), for proj the values, which are columns of qkv's weight. fc2's input comes out of GELU, which lets
no factor pass, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.layers import Layer, constant, read_weight
from calib.statistics import Floats, Statistics

ROLES = ("qkv", "proj", "fc1")
ALPHAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Tried in a search; 0 stands for no smoothing."""
# Rows of adaln (N, D, 6, C) that make the input of a layer: scale and shift.
_ADALN_ROWS = {"qkv": (2, 4), "fc1": (3, 5)}


def block_of(layer: str) -> int:
    """`step/blocks.3.fc1` -> 3."""
    return int(layer.split("blocks.")[1].split(".")[0])


def smoothing_factors(weight: NDArray[Any], statistics: Statistics, alpha: float | None) -> NDArray[np.float32]:
    """S (K,) for a weight (K, N) whose input has these statistics per channel.

    `alpha`: None searches `ALPHAS` for the least expected error of the product under uniform noise in both factors:
    the activation's step times the norm of the weight, plus the weight's steps times the norm of the activation.
    """
    weight = np.asarray(weight, np.float64)
    largest, power = statistics.channel_abs_max, statistics.channel_mean_square
    assert largest is not None and power is not None
    reach = np.maximum(largest.astype(np.float64), 1e-6)
    best, least = np.ones(len(weight)), np.inf
    for candidate in ALPHAS if alpha is None else (alpha,):
        factors = _factors(np.abs(weight).max(1), reach, candidate)
        error = _expected_error(weight * factors[:, None], reach / factors, power / factors**2)
        if error < least:
            best, least = factors, error
    return best.astype(np.float32)


def _factors(weight: Floats, reach: Floats, alpha: float) -> Floats:
    if alpha == 0:
        return np.ones(len(reach))
    factors: Floats = reach**alpha / np.maximum(weight, 1e-6) ** (1 - alpha)
    clipped: Floats = np.clip(factors / np.exp(np.log(factors).mean()), 1e-2, 1e2)
    return clipped


def _expected_error(weight: Floats, reach: Floats, power: Floats) -> float:
    activation_step = 2 * reach.max() / 255
    weight_steps = np.abs(weight).max(0) / 127
    return float(activation_step**2 * (weight**2).sum() + (weight_steps**2).sum() * power.sum()) / 12


def smoothable(layers: Iterable[Layer]) -> list[Layer]:
    """Those whose input comes out of something that takes a factor."""
    return [layer for layer in layers if layer.role in ROLES and "blocks." in layer.name]


def fold(models: Mapping[str, ir.Model], layers: Iterable[Layer], smoothing: Mapping[str, NDArray[np.float32]]) -> None:
    """Put the factors s (K,) by layer name into `cond` and into the weights of `step`, in place."""
    by_name = {layer.name: layer for layer in layers}
    if not smoothing:
        return
    output = next(value for value in models["cond"].graph.outputs if value.name == "adaln")
    assert output.shape is not None
    _, depth, rows, width = (int(d) if isinstance(d, int) else 0 for d in output.shape)
    adaln = np.ones((1, depth, rows, width), np.float32)
    for name, factors in sorted(smoothing.items()):  # one order, or roundings differ: a file has another
        layer = by_name[name]
        scaled = np.asarray(read_weight(layer.weight), np.float32) * factors[:, None]
        _replace(layer.weight, scaled)
        if layer.role in _ADALN_ROWS:
            for row in _ADALN_ROWS[layer.role]:
                adaln[0, block_of(name), row] /= factors
        else:
            _divide_values(by_name[name.removesuffix("proj") + "qkv"], factors)
    _scale_output(models["cond"].graph, output, adaln)


def _divide_values(qkv: Layer, factors: NDArray[np.float32]) -> None:
    """The last third of qkv's columns makes the values, of which proj's input is a mean."""
    width = len(factors)
    weight = np.array(read_weight(qkv.weight), np.float32)
    weight[:, 2 * width :] /= factors
    _replace(qkv.weight, weight)
    bias = qkv.bias_vector
    if bias is None:
        return
    values = np.array(read_weight(bias), np.float32)
    values[2 * width :] /= factors
    _replace(bias, values)


def _replace(value: ir.Value, array: NDArray[np.float32]) -> None:
    assert value.dtype is not None
    value.const_value = ir.tensor(array.astype(value.dtype.numpy()), name=value.name)


def _scale_output(graph: ir.Graph, output: ir.Value, factors: NDArray[np.float32]) -> None:
    name = output.name or ""
    value = graph.initializers[f"{name}.smoothing"] = constant(f"{name}.smoothing", factors)
    output.name = f"{name}.plain"
    scaled = ir.Value(name=name, type=output.type, shape=output.shape)
    node = ir.node("Mul", [output, value], outputs=[scaled], name=f"{name}.smooth")
    producer = output.producer()
    assert producer is not None
    output.replace_all_uses_with(scaled, replace_graph_outputs=True)
    node.replace_input_with(0, output)
    graph.insert_after(producer, node)
