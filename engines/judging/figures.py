"""The figures by which a bundle is judged: their names, how each is written, and how it stands to its threshold.

Terminal, page, Markdown and JSON all show this list; what a page writes differently is its typography alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from engines.spec.contract import DECODER, ENCODER, TRANSFORMER

AT_MOST, AT_LEAST = "<=", ">="
SMOOTHING = "smoothing"
"""The part that smoothing's figures belong to: none of `engines.spec.contract.PARTS`, which INT8 layers lie in."""
SHARE, PSNR, LOSS, NUMBER = "share", "psnr", "loss", "number"
"""What a value is, which decides how it is written: a share of 1, dB of images, dB that are lost, a plain number."""


@dataclass(frozen=True)
class FigureKind:
    """What a figure is called and how its values are written."""

    name: str
    """The field of `Thresholds` and of `Report`."""
    part: str
    """The part of the model that it judges, one of `engines.spec.contract.PARTS`, or `SMOOTHING`."""
    title: str
    """Its name in tables, with its unit where values are written without one."""
    what: str
    """Its name in sentences."""
    measure: str
    """`SHARE`, `PSNR`, `LOSS` or `NUMBER`."""
    sign: str
    """`AT_MOST` or `AT_LEAST`."""


KINDS = (
    FigureKind("max_logit_error", TRANSFORMER, "Largest logit error", "largest logit error", NUMBER, AT_MOST),
    FigureKind("kl", TRANSFORMER, "KL divergence, nats", "KL", NUMBER, AT_MOST),
    FigureKind("top1", TRANSFORMER, "Top-1 agreement", "top-1 agreement", SHARE, AT_LEAST),
    FigureKind("draws", TRANSFORMER, "Draws alike", "draws alike", SHARE, AT_LEAST),
    FigureKind("features_error", DECODER, "Feature maps' error", "error of the feature maps", NUMBER, AT_MOST),
    FigureKind("decoder_psnr", DECODER, "Decoder alone, PSNR", "decoder PSNR", PSNR, AT_LEAST),
    FigureKind("image_psnr", DECODER, "Image, PSNR", "image PSNR", PSNR, AT_LEAST),
    FigureKind("encoder_tokens", ENCODER, "Encoder tokens alike", "encoder tokens alike", SHARE, AT_LEAST),
    FigureKind(
        "reconstruction_loss",
        ENCODER,
        "Encoder's loss, dB",
        "loss of the encoder's reconstruction in dB",
        LOSS,
        AT_MOST,
    ),
    FigureKind("heaviest", SMOOTHING, "Smoothing's heaviest entries alike", "heaviest entries alike", SHARE, AT_LEAST),
    FigureKind("smooth_psnr", SMOOTHING, "Smoothed image, PSNR", "PSNR of the smoothed image", PSNR, AT_LEAST),
    FigureKind("mixing_error", SMOOTHING, "Smoothing's mixing error", "mixing error", NUMBER, AT_MOST),
)
"""In the order in which they are shown."""


@dataclass(frozen=True)
class JudgedFigure:
    """A value beside its threshold; as text, what to say where it misses that."""

    kind: FigureKind
    value: float
    bound: float
    where: str = ""
    """The place that is to blame most, for messages."""

    @property
    def kept(self) -> bool:
        """Whether the value keeps its threshold; NaN never does."""
        return self.value <= self.bound if self.kind.sign == AT_MOST else self.value >= self.bound

    @property
    def judged(self) -> bool:
        """False where the precision asks for nothing: a threshold that every value keeps."""
        return self.kind.sign == AT_MOST or self.bound > 0

    @property
    def what(self) -> str:
        """The name in a sentence, with the place that is to blame most."""
        return f"{self.kind.what} ({self.where})" if self.where else self.kind.what

    @property
    def shown(self) -> str:
        """The value in plain characters, as terminals and Markdown show it."""
        if not math.isfinite(self.value):
            return "identical pixels" if self.kind.measure == PSNR and self.value > 0 else "not finite"
        formats = {SHARE: "{:.2%}", PSNR: "{:.1f} dB", LOSS: "{:.2f}", NUMBER: "{:.2g}"}
        return formats[self.kind.measure].format(self.value)

    @property
    def wanted(self) -> str:
        """The threshold in plain characters, without digits that mean nothing."""
        bound = {SHARE: f"{100 * self.bound:g}%", PSNR: f"{self.bound:g} dB"}.get(self.kind.measure, f"{self.bound:g}")
        return f"{self.kind.sign} {bound}" if self.judged else "not judged"

    @property
    def margin(self) -> str:
        """How good the value is, or how far from its threshold, in the measure that tells most; empty where none does.

        Of shares it says how many differ: far above a low threshold is not yet good.
        """
        room, measure = self.value - self.bound, self.kind.measure
        if not (self.judged and math.isfinite(room)):
            return ""
        if measure == SHARE:
            if not self.kept:
                return f"{100 * room:+.2f} points"
            differ = 1 - self.value
            if differ > 0.1:
                return f"{differ:.0%} differ"
            return f"1 in {1 / differ:,.0f} differs" if differ > 0 else "none differs"
        if measure == PSNR:
            return f"{room:+.1f} dB"
        if measure == LOSS:
            return f"{0 - room:+.2f} dB"
        if self.value <= 0:
            return "exact"
        if self.kept:
            return f"{_two_digits(self.bound / self.value)} × smaller"
        return f"{_two_digits(self.value / self.bound)} × too large" if self.bound > 0 else "too large"

    def __str__(self) -> str:
        return f"{self.what} is {self.value:.6g}, must be {self.kind.sign} {self.bound:g}"


def judged_figures(
    values: Mapping[str, float], thresholds: Mapping[str, float], worst_scale: int | None = None
) -> list[JudgedFigure]:
    """Every figure that there is, beside its threshold; both by the names of `KINDS`.

    `worst_scale`: the scale whose KL is the largest, which messages name.
    """
    where = {} if worst_scale is None else {"kl": f"worst at scale {worst_scale}"}
    return [
        JudgedFigure(kind, values[kind.name], thresholds[kind.name], where.get(kind.name, ""))
        for kind in KINDS
        if kind.name in values
    ]


def _two_digits(value: float) -> str:
    """`2.0`, `13`, `1,800`, `4.3e+07`."""
    rounded = float(f"{value:.1e}")
    return f"{rounded:.1f}" if rounded < 10 else f"{rounded:,.0f}" if rounded < 1e6 else f"{value:.1e}"
