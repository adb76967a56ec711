"""What a bundle of each precision must reach to be called as good as the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from engines.judging.figures import AT_MOST, KINDS
from engines.spec.choices import QUANTISED


@dataclass(frozen=True)
class Thresholds:
    """What bundles of one precision must reach: logit error in logits, KL in nats, PSNR and loss in dB, shares of 1."""

    max_logit_error: float
    kl: float
    top1: float
    draws: float
    features_error: float
    decoder_psnr: float
    image_psnr: float
    encoder_tokens: float
    reconstruction_loss: float
    heaviest: float
    smooth_psnr: float
    mixing_error: float


# FP32: room for another CPU's rounding, orders of magnitude below what a wrong graph gives. Draws get more room: where
# the sorted list holds near-ties, rounding alone reorders them (d16 with random weights: 0.2 % of the draws in FP32;
# with rounding after every operation 50 % in FP16 and 84 % in BF16, at a KL of 7e-7 and 4e-5; a wrong graph draws 1 in
# 900 alike). So do the most likely entries: 0.3 % and 3 % of them change there (and d36 is 3 times as sensitive).
# FP16 and BF16: what arithmetic with that rounding gives on the demo (decoder 47 and 42 dB), with room. The encoder is
# judged by what its tokens look like, and below FP16 by nothing else: a code that wins by a hair at a coarse scale
# changes every finer one and no image (one image of d16 with random weights kept 18 % in BF16, at a loss of 0 dB).
# Feature maps are summed in float32 in every precision.
# Smoothing: some times what was measured (docs/performance-fidelity.md); unmixed entries are an error of 0.06 or more.
THRESHOLDS = {
    "fp32": Thresholds(5e-3, 1e-6, 0.999, 0.99, 1e-4, 60.0, 60.0, 0.999, 0.01, 0.999, 60.0, 0.001),
    "fp16": Thresholds(2.0, 1e-2, 0.98, 0.2, 1e-4, 40.0, 40.0, 0.9, 0.2, 0.98, 40.0, 0.03),
    "bf16": Thresholds(4.0, 5e-2, 0.85, 0.05, 1e-4, 30.0, 30.0, 0.0, 0.5, 0.9, 30.0, 0.15),
    "int8": Thresholds(8.0, 2e-2, 0.85, 0.03, 1e-4, 28.0, 28.0, 0.0, 1.5, 0.85, 28.0, 0.25),
    "int4": Thresholds(16.0, 1e-1, 0.75, 0.03, 1e-4, 28.0, 28.0, 0.0, 1.5, 0.75, 28.0, 0.25),
}


def bounds(precision: str, recorded: Mapping[str, float]) -> dict[str, float]:
    """The thresholds of a precision by name, or closer ones that follow from what the build measured.

    Those of INT8 hold for any model, a trained one is much better, and damage would hide in between. Integers are exact
    on every processor, so a device may differ from the build by no more than roundings that tip: `recorded` figures are
    taken with room for those. Half precision has no such bounds: a GPU rounds where the build's CPU did not.
    """
    known = asdict(THRESHOLDS[precision])
    if precision not in QUANTISED:
        return known
    closer = {kind: _ROOM[kind.name](recorded[kind.name]) for kind in KINDS if kind.name in _ROOM.keys() & recorded}
    return known | {
        kind.name: (min if kind.sign == AT_MOST else max)(bound, known[kind.name]) for kind, bound in closer.items()
    }


_ROOM: Mapping[str, Callable[[float], float]] = {
    "kl": lambda measured: 2 * measured + 1e-4,
    "top1": lambda measured: measured - (1 - measured) - 0.01,
    "decoder_psnr": lambda measured: measured - 3,
    "image_psnr": lambda measured: measured - 3,
    "reconstruction_loss": lambda measured: measured + 0.5,
}
"""How far each figure of INT8 may lie from the build's, given that one."""
