"""What the check of a bundle found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engines.judging.agreement import Agreement, mean_agreement
from engines.judging.figures import KINDS, JudgedFigure, judged_figures
from engines.judging.thresholds import bounds
from engines.spec.contract import PARTS


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the check of one form found; a figure that the form does not show is None."""

    precision: str
    """Whose thresholds it is judged by."""
    recorded: Mapping[str, float] = field(default_factory=dict)
    """What the build of the bundle measured, which INT8 is judged by beside its thresholds; empty in a build."""
    emulated: bool = False
    """Whether the rounding of a GPU was emulated. Which tokens the encoder gives is not judged then, as in BF16."""
    images: int
    max_logit_error: float | None = None
    """Largest difference among the reference's top logits, with the reference's tokens forced."""
    kl: float | None = None
    """KL(reference || engine) in nats, mean over tokens, with the reference's tokens forced."""
    top1: float | None = None
    """Share of tokens whose most likely entry is the same, with the reference's tokens forced."""
    draws: float
    """Share of tokens drawn alike, with the reference's tokens forced."""
    features_error: float | None = None
    """RMS by which the feature maps of the reference's tokens differ, by the RMS of the reference's maps."""
    decoder_psnr: float | None = None
    """PSNR in dB of the images that the decoder makes of the reference's feature maps."""
    image_psnr: float
    """PSNR in dB of the final images, with the reference's tokens forced."""
    encoder_tokens: float | None = None
    """Share of the tokens of the reference's images; one flip at a coarse scale changes all finer ones."""
    reconstruction_loss: float | None = None
    """By how many dB the image is reconstructed worse from the engine's tokens than from the reference's."""
    heaviest: float | None = None
    """With smoothing, the share of tokens whose heaviest codebook entry is the same."""
    smooth_psnr: float | None = None
    """PSNR in dB of the median image mixed at scale 1 alone, with the reference's tokens forced at the others."""
    mixing_error: float | None = None
    """The median of `mixing_errors`: where an entry weighs most by a hair, another engine may choose its neighbour."""
    free_tokens: float
    """Share of tokens alike when the engine runs freely; a single flip near the start changes all that follows."""
    free_identical: int
    """Images whose tokens are all the same when the engine runs freely."""
    first_difference: int | None
    """First scale at which a freely drawn token differs."""
    image_ssim: float
    """Structural similarity of the final images, with the reference's tokens forced."""
    decoder_ssim: float | None = None
    """Structural similarity of the images that the decoder makes of the reference's feature maps."""
    scales: tuple[Agreement, ...] = ()
    """How the logits of each scale compare; empty where the form shows none."""
    mixing_errors: tuple[float, ...] = ()
    """With smoothing, per scale: RMS of the difference by the RMS of the reference's mixed entries."""

    @property
    def total(self) -> Agreement:
        """How the logits of all scales compare. Raises `ZeroDivisionError` where the form shows none."""
        return mean_agreement(self.scales)

    def figures(self) -> list[JudgedFigure]:
        """Every figure that is judged, beside the threshold of the precision."""
        worst = max(range(len(self.scales)), key=lambda scale: self.scales[scale].kl) if self.scales else None
        values = {kind.name: getattr(self, kind.name) for kind in KINDS if getattr(self, kind.name) is not None}
        return judged_figures(values, self._bounds, worst)

    @property
    def _bounds(self) -> dict[str, float]:
        unjudged = {"encoder_tokens": 0.0} if self.emulated else {}
        return bounds(self.precision, self.recorded) | unjudged

    @property
    def failures(self) -> list[str]:
        """One line per figure that misses its threshold."""
        return [str(figure) for figure in self.figures() if not figure.kept]

    @property
    def passed(self) -> bool:
        """True where every figure keeps its threshold."""
        return not self.failures

    @property
    def failed_parts(self) -> tuple[str, ...]:
        """Parts of the model (`spec.contract.PARTS`) that miss a threshold; none of a form that shows no part alone."""
        missed = {figure.kind.part for figure in self.figures() if not figure.kept} if self.scales else set()
        return tuple(part for part in PARTS if part in missed)

    def summary(self) -> str:
        """All figures on one line."""
        return ", ".join(f"{figure.kind.what} {figure.shown}" for figure in self.figures())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: what is not finite (the PSNR of equal images) is None, a figure that is not shown lacks."""
        absent = {kind.name for kind in KINDS if getattr(self, kind.name) is None}
        shown = {name: value for name, value in asdict(self).items() if name not in absent}
        more = {"passed": self.passed, "failures": self.failures, "thresholds": self._bounds}
        finite: dict[str, Any] = _finite(shown | more | ({"total": asdict(self.total)} if self.scales else {}))
        return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
