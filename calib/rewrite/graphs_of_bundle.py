"""What a user decides about an INT8 build, and float graphs rewritten by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from calib.calibration import Calibration
from calib.choose.selection import Bounds
from calib.choose.smoothquant import fold
from calib.graphs.layers import find_layers
from calib.rewrite.quantize import Ranges, quantize
from engines.spec import choices, policy


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """What a user decides about an INT8 build."""

    target: str = "onnxruntime"
    """`onnxruntime` (CPU) or `tensorrt` (both of NVIDIA's products)."""
    form: str = "stepwise"
    """Of the result: `stepwise`, `fused` or `both`. The base has the stepwise one in any case."""
    level: int = 2
    """What is quantised where no bound decides it."""
    bounds: Bounds = field(default_factory=Bounds)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ranges: Ranges = field(default_factory=Ranges)

    @property
    def base_precision(self) -> str:
        """Of the float bundle that the graphs come from."""
        return choices.HIGH_PRECISIONS[self.target]


def rewritten(
    models: Mapping[str, ir.Model], ways: Mapping[str, str], calibration: Calibration, options: Int8Options
) -> Iterator[tuple[str, ir.Model]]:
    """Quantise float graphs in place, one after another; layers without a way stay as they are.

    Only layers with static ranges are smoothed: factors are chosen for those, and a range per token is worse for them
    (demo, level 2: KL 2.8e-3 with fc1 smoothed, 2.7e-3 without). `cond` must be among the graphs with `step`.
    """
    layers = {graph: find_layers(model, graph) for graph, model in models.items()}
    chosen = {name for name, way in ways.items() if way != policy.FLOAT}
    if "step" in models:
        fold(models, layers["step"], {n: s for n, s in calibration.smoothing.items() if ways.get(n) == policy.STATIC})
    for graph, model in models.items():
        here = [layer for layer in layers[graph] if layer.name in chosen]
        quantize(model, here, ways, calibration, options.target, options.ranges)
        yield graph, model
