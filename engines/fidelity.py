"""Fidelity of a loaded bundle against a run of the PyTorch reference (DESIGN: no torch needed).

Logits are judged teacher-forced: the reference's tokens are forced at every place, so that one flipped
draw does not spoil all that follows. The reference run is a set of arrays (`engines.contract.GOLDEN_ARRAYS`): the
golden run of the bundle, or a fresh one made by `var_export`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array
from engines.contract import PARTS
from engines.loop import ScaleView
from engines.pipeline import OnScale, Pipeline
from engines.results import Result
from engines.similarity import psnr, ssim

SAMPLING = ("cfg", "temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Thresholds:
    """What a bundle of one precision must reach. `max_logit_error` is in logits, KL in nats, PSNR in dB."""

    max_logit_error: float
    kl: float
    top1: float
    draws: float
    decoder_psnr: float
    image_psnr: float
    encoder_tokens: float
    reconstruction_loss: float
    heaviest: float
    mixing_error: float


# FP32: room for another CPU's rounding, orders of magnitude below what a wrong graph gives. Draws get more room: where
# the sorted list holds near-ties, rounding alone reorders them (d16 with random weights: 0.2 % of the draws in FP32;
# with rounding after every operation 50 % in FP16 and 84 % in BF16, at a KL of 7e-7 and 4e-5; a wrong graph draws 1 in
# 900 alike). So do the most likely entries: 0.3 % and 3 % of them change there (and d36 is 3 times as sensitive).
# FP16 and BF16: what arithmetic with that rounding gives on the demo (decoder 47 and 42 dB), with room. The encoder is
# judged by what its tokens look like, and below FP16 by nothing else: a code that wins by a hair at a coarse scale
# changes every finer one and no image (one image of d16 with random weights kept 18 % in BF16, at a loss of 0 dB).
THRESHOLDS = {
    "fp32": Thresholds(5e-3, 1e-6, 0.999, 0.99, 60.0, 60.0, 0.999, 0.01, 0.999, 0.001),
    "fp16": Thresholds(2.0, 1e-2, 0.98, 0.2, 40.0, 40.0, 0.9, 0.2, 0.98, 0.03),
    "bf16": Thresholds(4.0, 5e-2, 0.85, 0.05, 30.0, 30.0, 0.0, 0.5, 0.9, 0.2),
    "int8": Thresholds(8.0, 2e-2, 0.85, 0.03, 28.0, 28.0, 0.0, 1.5, 0.85, 0.4),
}


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
    errors: list[float] | None
    """Per scale: RMS of the difference by the RMS of the reference's mixed entries; None where they are not shown."""

    @property
    def error(self) -> float:
        """The median scale's: where an entry weighs most by a hair, another engine may choose its neighbour."""
        return float(np.median(self.errors or math.nan))


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
        """Parts of the model, of `PARTS`, whose figures miss a threshold."""
        return tuple(failures_by_part(self, THRESHOLDS[self.precision]))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite (the PSNR of equal images) becomes None."""
        report = asdict(self) | {"passed": self.passed, "thresholds": asdict(THRESHOLDS[self.precision])}
        report["total"] |= {"psnr": self.image_psnr}
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite (the PSNR of equal images) becomes None."""
        finite: dict[str, Any] = _finite(asdict(self) | {"passed": self.passed})
        return finite


def verify_fused(pipeline: Pipeline, golden: Mapping[str, Array], precision: str | None = None) -> FusedReport:
    """Hold a fused pipeline against a reference run, as `verify` does."""
    forced, free = _both_runs(pipeline, golden)
    same = free.tokens == golden["tokens"]
    report = FusedReport(
        precision=precision or pipeline.bundle.precision,
        images=len(same),
        draws=float((forced.drawn == golden["tokens"]).mean()),
        free_tokens=float(same.mean()),
        free_identical=int(same.all(axis=1).sum()),
        image_psnr=psnr(forced.images, golden["image"]),
        image_ssim=ssim(forced.images, golden["image"]),
        smoothing=_smoothing(pipeline, golden),
    )
    limit = THRESHOLDS[report.precision]
    report.failures = _missed(
        ("draws alike", report.draws, ">=", limit.draws),
        ("image PSNR", report.image_psnr, ">=", limit.image_psnr),
        *_smoothing_checks(report.smoothing, limit),
    )
    return report


def _both_runs(
    pipeline: Pipeline, golden: Mapping[str, Array], on_scale: OnScale | None = None
) -> tuple[Result, Result]:
    """Draw the images of a reference run with its tokens forced, and freely."""
    return _forced_run(pipeline, golden, on_scale), _run(pipeline, golden)


def _forced_run(pipeline: Pipeline, golden: Mapping[str, Array], on_scale: OnScale | None) -> Result:
    return _run(pipeline, golden, forced=golden["tokens"], on_scale=on_scale)


def _smoothing(pipeline: Pipeline, golden: Mapping[str, Array]) -> Smoothing | None:
    """The reference's tokens are forced, so every scale mixes from what the reference mixed from."""
    if not pipeline.bundle.smooth:
        return None
    config = pipeline.config
    squares = np.zeros((config.num_scales, 2))  # of the differences, and of what is wanted

    def compare(view: ScaleView) -> None:
        wanted = golden["mixed"][view.images, config.scale_slice(view.scale)].astype(np.float64)
        squares[view.scale] += np.square(view.read_mixed() - wanted).sum(), np.square(wanted).sum()

    stepwise = pipeline.form == "stepwise"
    run = _run(pipeline, golden, forced=golden["tokens"], smooth=True, on_scale=compare if stepwise else None)
    errors = np.sqrt(squares[:, 0] / squares[:, 1]).tolist() if stepwise else None
    return Smoothing(float((run.drawn == golden["heaviest"]).mean()), errors)


def _run(pipeline: Pipeline, golden: Mapping[str, Array], **options: Any) -> Result:
    settings: dict[str, Any] = {name: golden[name] for name in SAMPLING}
    return pipeline.generate(golden["classes"].tolist(), seeds=golden["seeds"].tolist(), **settings, **options)


def verify(pipeline: Pipeline, golden: Mapping[str, Array], precision: str | None = None) -> Report:
    """Hold a stepwise pipeline against a reference run.

    Args:
        pipeline: what to judge.
        golden: arrays of `contract.GOLDEN_ARRAYS`.
        precision: whose thresholds to judge by; the bundle's own, unless the pipeline emulates another.

    """
    config = pipeline.config
    comparison = _Comparison(pipeline, golden)
    forced, free = _both_runs(pipeline, golden, comparison)
    tokens = golden["tokens"]
    decoded = pipeline.decode_features(golden["f_hat"])
    encoded = pipeline.encode(golden["image"])

    scales = comparison.scales()
    for scale, agreement in enumerate(scales):
        here = config.scale_slice(scale)
        agreement.draws = float((forced.drawn[:, here] == tokens[:, here]).mean())
    same = free.tokens == tokens
    differing = [s for s in range(config.num_scales) if not same[:, config.scale_slice(s)].all()]
    report = Report(
        precision=precision or pipeline.bundle.precision,
        images=len(tokens),
        scales=scales,
        total=mean_agreement(scales),
        free_tokens=float(same.mean()),
        free_identical=int(same.all(axis=1).sum()),
        first_difference=differing[0] if differing else None,
        decoder_psnr=psnr(decoded, golden["image"]),
        decoder_ssim=ssim(decoded, golden["image"]),
        image_psnr=psnr(forced.images, golden["image"]),
        image_ssim=ssim(forced.images, golden["image"]),
        encoder_tokens=float((encoded == golden["encoded"]).mean()),
        reconstruction_loss=reconstruction_loss(pipeline, golden, encoded),
        smoothing=_smoothing(pipeline, golden),
    )
    report.failures = failures(report, THRESHOLDS[report.precision])
    return report


def logits_agreement(pipeline: Pipeline, golden: Mapping[str, Array]) -> list[Agreement]:
    """Per scale, teacher-forced: the half of `verify` that is about the transformer. Draws are not judged.

    The images are not decoded.
    """
    comparison, last = _Comparison(pipeline, golden), pipeline.config.num_scales - 1

    def compare(view: ScaleView) -> None:
        comparison(view)
        if view.scale == last:
            raise _Seen

    for start in range(0, len(golden["tokens"]), pipeline.max_batch):
        part = {name: array[start : start + pipeline.max_batch] for name, array in golden.items()}
        comparison.golden = part
        with contextlib.suppress(_Seen):
            _forced_run(pipeline, part, compare)
    return comparison.scales()


class _Seen(Exception):  # noqa: N818
    """Ends a run before its decoder."""


class _Comparison:
    """Sees the logits of each scale of a run with the reference's tokens forced."""

    def __init__(self, pipeline: Pipeline, golden: Mapping[str, Array]) -> None:
        self.golden = golden
        self._config = pipeline.config
        self._parts: list[list[Agreement]] = [[] for _ in range(pipeline.config.num_scales)]

    def __call__(self, view: ScaleView) -> None:
        here = self._config.scale_slice(view.scale)
        names = ("top_index", "top_logit", "log_sum_exp")
        reference = {name: self.golden[name][view.images, here] for name in names}
        self._parts[view.scale].append(_agreement(reference, view.read_logits()))

    def scales(self) -> list[Agreement]:
        return [mean_agreement(parts) for parts in self._parts]


def reconstruction_loss(pipeline: Pipeline, golden: Mapping[str, Array], encoded: NDArray[np.int64]) -> float:
    """PSNR from the reference's tokens less that from the engine's, both decoded by the engine; in dB."""
    wanted = golden["encoded"].astype(np.int64)
    if np.array_equal(encoded, wanted):
        return 0.0
    return psnr(pipeline.decode(wanted), golden["image"]) - psnr(pipeline.decode(encoded), golden["image"])


def failures(report: Report, limit: Thresholds) -> list[str]:
    """One line per figure that misses its threshold, with the scale to blame where there is one."""
    return [line for lines in failures_by_part(report, limit).values() for line in lines]


def failures_by_part(report: Report, limit: Thresholds) -> dict[str, list[str]]:
    """`failures`, by the part of the model that misses; parts without any are absent."""
    total = report.total
    worst = max(range(len(report.scales)), key=lambda s: report.scales[s].kl)
    found = (
        _missed(
            ("largest logit error", total.max_abs, "<=", limit.max_logit_error),
            (f"KL (worst at scale {worst})", total.kl, "<=", limit.kl),
            ("top-1 agreement", total.top1, ">=", limit.top1),
            ("draws alike", total.draws, ">=", limit.draws),
            *_smoothing_checks(report.smoothing, limit),
        ),
        _missed(
            ("decoder PSNR", report.decoder_psnr, ">=", limit.decoder_psnr),
            ("image PSNR", report.image_psnr, ">=", limit.image_psnr),
        ),
        _missed(
            ("encoder tokens alike", report.encoder_tokens, ">=", limit.encoder_tokens),
            ("loss of the encoder's reconstruction in dB", report.reconstruction_loss, "<=", limit.reconstruction_loss),
        ),
    )
    return {part: lines for part, lines in zip(PARTS, found, strict=True) if lines}


Check = tuple[str, float, str, float]


def _smoothing_checks(smoothing: Smoothing | None, limit: Thresholds) -> list[Check]:
    if smoothing is None:
        return []
    checks: list[Check] = [("heaviest entries alike", smoothing.heaviest, ">=", limit.heaviest)]
    if smoothing.errors is not None:
        checks.append(("mixing error", smoothing.error, "<=", limit.mixing_error))
    return checks


def _missed(*checks: Check) -> list[str]:
    return [
        f"{what} is {value:.6g}, must be {sign} {bound:g}"
        for what, value, sign, bound in checks
        if not (value <= bound if sign == "<=" else value >= bound)  # NaN fails either way
    ]


def _agreement(reference: Mapping[str, Array], logits: Array) -> Agreement:
    """Reference arrays (B, L, ...) of one scale, engine logits (B, L, V)."""
    index = reference["top_index"].astype(np.int64)
    wanted = reference["top_logit"].astype(np.float64)
    got = np.take_along_axis(logits, index, axis=-1).astype(np.float64)
    log_p = wanted - reference["log_sum_exp"].astype(np.float64)[..., None]
    log_q = got - _log_sum_exp(logits)[..., None]
    p, q = np.exp(log_p), np.exp(log_q)
    kl = (p * (log_p - log_q)).sum(-1)
    if index.shape[-1] < logits.shape[-1]:  # the tail
        rest_p, rest_q = (np.clip(1 - x.sum(-1), 1e-12, 1) for x in (p, q))
        kl = kl + rest_p * np.log(rest_p / rest_q)
    a, b = wanted - wanted.mean(-1, keepdims=True), got - got.mean(-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.where(norms == 0, 1, norms)
    return Agreement(
        tokens=kl.size,
        max_abs=float(np.abs(wanted - got).max()),
        cosine=float(cosine.mean()),
        kl=float(kl.mean()),
        top1=float((logits.argmax(-1) == index[..., 0]).mean()),
    )


def _log_sum_exp(logits: Array) -> NDArray[np.float64]:
    high = logits.max(-1, keepdims=True).astype(np.float64)
    total: NDArray[np.float64] = np.log(np.exp(logits - high).sum(-1)) + high[..., 0]
    return total


def mean_agreement(parts: list[Agreement]) -> Agreement:
    """Of several sets of tokens: means by their number, the largest of the errors."""
    weights = np.array([part.tokens for part in parts], np.float64)
    means = {
        name: float(np.average([getattr(part, name) for part in parts], weights=weights))
        for name in ("cosine", "kl", "top1", "draws")
    }
    return Agreement(tokens=int(weights.sum()), max_abs=float(np.max([part.max_abs for part in parts])), **means)
