"""What a check of a bundle's fidelity found, and how each figure stands to its threshold."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from engines.fidelity.thresholds import AT_LEAST, AT_MOST, THRESHOLDS, Check
from engines.spec.contract import DECODER, ENCODER, TRANSFORMER


@dataclass
class Agreement:
    """How an engine's logits compare with the reference's, over some tokens."""

    tokens: int
    max_abs: float
    """Largest difference among the reference's top logits."""
    cosine: float
    """Of the reference's top logits with the engine's, each centred, mean over tokens."""
    kl: float
    """KL(reference || engine) in nats, mean over tokens; the tail beyond the top logits counts as one event."""
    top1: float
    """Share of tokens whose most likely entry is the same."""
    draws: float = math.nan
    """Share of tokens drawn alike from the same uniform numbers."""


@dataclass
class Smoothing:
    """How an engine's mixing of codebook entries compares with the reference's, teacher-forced."""

    heaviest: float
    """Share of tokens whose heaviest entry is the same."""
    image_psnr: float
    """Of images mixed at scale 1 alone, with the reference's tokens forced at the others: dB, of the median image."""
    errors: list[float] | None
    """Per scale: RMS of the difference by the RMS of the reference's mixed entries; None where they are not shown."""

    @property
    def error(self) -> float:
        """The median scale's: where an entry weighs most by a hair, another engine may choose its neighbour."""
        return float(np.median(self.errors or math.nan))


SMOOTHING_FIGURES = ("heaviest", "smooth_psnr", "mixing_error")
Row = tuple[str, str, str, float, str]
"""Of a `Check`, all but its bound."""


def _of_smoothing(smoothing: Smoothing | None) -> list[Row]:
    if smoothing is None:
        return []
    rows: list[Row] = [("heaviest", TRANSFORMER, "heaviest entries alike", smoothing.heaviest, AT_LEAST)]
    rows.append(("smooth_psnr", TRANSFORMER, "PSNR of the smoothed image", smoothing.image_psnr, AT_LEAST))
    if smoothing.errors is not None:
        rows.append(("mixing_error", TRANSFORMER, "mixing error", smoothing.error, AT_MOST))
    return rows


@dataclass
class Report:
    """The outcome of `verify`."""

    precision: str
    images: int
    scales: list[Agreement]
    total: Agreement
    free_tokens: float
    """Token agreement when the engine runs freely; a single flip near the start changes all that follows."""
    free_identical: int
    """Images whose tokens are all the same when the engine runs freely."""
    first_difference: int | None
    """First scale at which a freely drawn token differs."""
    decoder_psnr: float
    decoder_ssim: float
    image_psnr: float
    """Of the final image with the reference's tokens forced."""
    image_ssim: float
    encoder_tokens: float
    """Share of the tokens of the reference's images; one flip at a coarse scale changes all finer ones."""
    reconstruction_loss: float
    """By how many dB the image is reconstructed worse from the engine's tokens than from the reference's."""
    smoothing: Smoothing | None = None
    """Of a bundle that was built with it."""
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True where every figure keeps its threshold."""
        return not self.failures

    @property
    def failed_parts(self) -> tuple[str, ...]:
        """Parts of the model (`spec.contract.PARTS`) that miss a threshold; smoothing's figures do not count."""
        judged = [check for check in self.checks() if check.figure not in SMOOTHING_FIGURES]
        return tuple(dict.fromkeys(check.part for check in judged if not check.kept))

    def checks(self) -> tuple[Check, ...]:
        """Every figure that is judged, beside the threshold of the precision."""
        total, limit = self.total, THRESHOLDS[self.precision]
        worst = max(range(len(self.scales)), key=lambda s: self.scales[s].kl)
        loss = "loss of the encoder's reconstruction in dB"
        table: tuple[Row, ...] = (
            ("max_logit_error", TRANSFORMER, "largest logit error", total.max_abs, AT_MOST),
            ("kl", TRANSFORMER, f"KL (worst at scale {worst})", total.kl, AT_MOST),
            ("top1", TRANSFORMER, "top-1 agreement", total.top1, AT_LEAST),
            ("draws", TRANSFORMER, "draws alike", total.draws, AT_LEAST),
            ("decoder_psnr", DECODER, "decoder PSNR", self.decoder_psnr, AT_LEAST),
            ("image_psnr", DECODER, "image PSNR", self.image_psnr, AT_LEAST),
            ("encoder_tokens", ENCODER, "encoder tokens alike", self.encoder_tokens, AT_LEAST),
            ("reconstruction_loss", ENCODER, loss, self.reconstruction_loss, AT_MOST),
            *_of_smoothing(self.smoothing),
        )
        return tuple(Check(*row, bound=getattr(limit, row[0])) for row in table)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite (the PSNR of equal images) becomes None."""
        report = asdict(self) | {"passed": self.passed, "thresholds": asdict(THRESHOLDS[self.precision])}
        report["total"] |= {"psnr": self.image_psnr}
        if self.smoothing is not None:
            report["smoothing"] |= {"error": self.smoothing.error}
        finite: dict[str, Any] = _finite(report)
        return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class FusedReport:
    """The outcome of `verify_fused`: the fused form shows draws and images, no logits."""

    precision: str
    images: int
    draws: float
    """Share of tokens drawn alike, with the reference's tokens forced."""
    free_tokens: float
    free_identical: int
    image_psnr: float
    """With the reference's tokens forced."""
    image_ssim: float
    smoothing: Smoothing | None = None
    """Of a bundle that was built with it."""
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True where every figure keeps its threshold."""
        return not self.failures

    def checks(self) -> tuple[Check, ...]:
        """Every figure that is judged, beside the threshold of the precision."""
        limit = THRESHOLDS[self.precision]
        table: tuple[Row, ...] = (
            ("draws", TRANSFORMER, "draws alike", self.draws, AT_LEAST),
            ("image_psnr", DECODER, "image PSNR", self.image_psnr, AT_LEAST),
            *_of_smoothing(self.smoothing),
        )
        return tuple(Check(*row, bound=getattr(limit, row[0])) for row in table)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite (the PSNR of equal images) becomes None."""
        finite: dict[str, Any] = _finite(asdict(self) | {"passed": self.passed})
        return finite
