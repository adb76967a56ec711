"""Fidelity of a loaded bundle against a run of the PyTorch reference (DESIGN: no torch needed).

Logits are judged teacher-forced: the reference's tokens are forced at every place, so that one flipped
draw does not spoil all that follows. The reference run is a set of arrays (`engines.contract.GOLDEN_ARRAYS`): the
golden run of the bundle, or a fresh one made by `var_export`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array
from engines.contract import DECODER, ENCODER, TRANSFORMER
from engines.loop import ScaleView
from engines.pipeline import OnScale, Pipeline
from engines.results import Result
from engines.similarity import psnr, ssim
from engines.thresholds import AT_LEAST, AT_MOST, THRESHOLDS, Check

SAMPLING = ("cfg", "temperature", "top_k", "top_p")


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
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True where every figure keeps its threshold."""
        return not self.failures

    @property
    def failed_parts(self) -> tuple[str, ...]:
        """Parts of the model, of `engines.contract.PARTS`, whose figures miss a threshold."""
        return tuple(dict.fromkeys(check.part for check in self.checks() if not check.kept))

    def checks(self) -> tuple[Check, ...]:
        """Every figure that is judged, beside the threshold of the precision."""
        total, limit = self.total, THRESHOLDS[self.precision]
        worst = max(range(len(self.scales)), key=lambda s: self.scales[s].kl)
        loss = "loss of the encoder's reconstruction in dB"
        table = (
            ("max_logit_error", TRANSFORMER, "largest logit error", total.max_abs, AT_MOST),
            ("kl", TRANSFORMER, f"KL (worst at scale {worst})", total.kl, AT_MOST),
            ("top1", TRANSFORMER, "top-1 agreement", total.top1, AT_LEAST),
            ("draws", TRANSFORMER, "draws alike", total.draws, AT_LEAST),
            ("decoder_psnr", DECODER, "decoder PSNR", self.decoder_psnr, AT_LEAST),
            ("image_psnr", DECODER, "image PSNR", self.image_psnr, AT_LEAST),
            ("encoder_tokens", ENCODER, "encoder tokens alike", self.encoder_tokens, AT_LEAST),
            ("reconstruction_loss", ENCODER, loss, self.reconstruction_loss, AT_MOST),
        )
        return tuple(Check(*row, bound=getattr(limit, row[0])) for row in table)

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
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True where every figure keeps its threshold."""
        return not self.failures

    def checks(self) -> tuple[Check, ...]:
        """Every figure that is judged, beside the threshold of the precision."""
        limit = THRESHOLDS[self.precision]
        return (
            Check("draws", TRANSFORMER, "draws alike", self.draws, AT_LEAST, limit.draws),
            Check("image_psnr", DECODER, "image PSNR", self.image_psnr, AT_LEAST, limit.image_psnr),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite (the PSNR of equal images) becomes None."""
        finite: dict[str, Any] = _finite(asdict(self) | {"passed": self.passed})
        return finite


@dataclass(frozen=True)
class Runs:
    """What the engine drew for a report."""

    forced: Result
    """With the reference's tokens forced: the first run of the engine."""
    free: Result
    """From the same uniform numbers alone."""


def verify_fused(
    pipeline: Pipeline,
    golden: Mapping[str, Array],
    precision: str | None = None,
    on_runs: Callable[[Runs], None] = lambda runs: None,
) -> FusedReport:
    """Hold a fused pipeline against a reference run, as `verify` does."""
    forced, free = _both_runs(pipeline, golden)
    on_runs(Runs(forced, free))
    same = free.tokens == golden["tokens"]
    report = FusedReport(
        precision=precision or pipeline.bundle.precision,
        images=len(same),
        draws=float((forced.drawn == golden["tokens"]).mean()),
        free_tokens=float(same.mean()),
        free_identical=int(same.all(axis=1).sum()),
        image_psnr=psnr(forced.images, golden["image"]),
        image_ssim=ssim(forced.images, golden["image"]),
    )
    report.failures = _missed(report)
    return report


def _missed(report: Report | FusedReport) -> list[str]:
    """One line per figure that misses its threshold."""
    return [str(check) for check in report.checks() if not check.kept]


def _both_runs(
    pipeline: Pipeline, golden: Mapping[str, Array], on_scale: OnScale | None = None
) -> tuple[Result, Result]:
    """Draw the images of a reference run with its tokens forced, and freely."""
    return _forced_run(pipeline, golden, on_scale), _run(pipeline, golden)


def _forced_run(pipeline: Pipeline, golden: Mapping[str, Array], on_scale: OnScale | None) -> Result:
    return _run(pipeline, golden, forced=golden["tokens"], on_scale=on_scale)


def _run(pipeline: Pipeline, golden: Mapping[str, Array], **options: Any) -> Result:
    settings: dict[str, Any] = {name: golden[name] for name in SAMPLING}
    return pipeline.generate(golden["classes"].tolist(), seeds=golden["seeds"].tolist(), **settings, **options)


def verify(
    pipeline: Pipeline,
    golden: Mapping[str, Array],
    precision: str | None = None,
    on_runs: Callable[[Runs], None] = lambda runs: None,
) -> Report:
    """Hold a stepwise pipeline against a reference run.

    Args:
        pipeline: what to judge.
        golden: arrays of `contract.GOLDEN_ARRAYS`.
        precision: whose thresholds to judge by; the bundle's own, unless the pipeline emulates another.
        on_runs: called with what the engine drew, for whoever shows it.

    """
    config = pipeline.config
    comparison = _Comparison(pipeline, golden)
    forced, free = _both_runs(pipeline, golden, comparison)
    on_runs(Runs(forced, free))
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
    )
    report.failures = _missed(report)
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
