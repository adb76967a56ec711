"""What a user decides about a quantised build."""

from __future__ import annotations

from dataclasses import dataclass, field

from calib.choose.ranges import Ranges
from calib.choose.selection import Bounds
from engines.spec import choices


@dataclass(frozen=True, kw_only=True)
class QuantisationOptions:
    """What a user decides about an INT8 or INT4 build."""

    precision: str = choices.INT8
    target: str = "onnxruntime"
    """`onnxruntime` (CPU) or `tensorrt` (both of NVIDIA's products)."""
    form: str = "stepwise"
    """Form of the bundle: `stepwise`, `fused` or `both`. Its base has the stepwise one in any case."""
    level: int | None = None
    """Which layers are quantised where no bound decides it: see `engines.spec.policy.assign`, and by default
    `usual_level` beside it."""
    bounds: Bounds = field(default_factory=Bounds)
    include: tuple[str, ...] = ()
    """Shell patterns over names of layers to quantise with static ranges, in INT4 with 4-bit weights."""
    exclude: tuple[str, ...] = ()
    """Shell patterns over names of layers to leave in float; they win."""
    ranges: Ranges = field(default_factory=Ranges)
    reduce_range: bool = False
    """Give weights 7 bits in place of 8: x86 processors without VNNI multiply those exactly with their fast kernels."""

    @property
    def largest_weight(self) -> int:
        """The largest integer of a weight. A pair of products with 255 and 64 fits 16 bits, with 127 it does not."""
        return 64 if self.reduce_range else 127

    @property
    def base_precision(self) -> str:
        """Precision of the float bundle that the graphs come from."""
        return choices.HIGH_PRECISIONS[self.target]
