"""Fidelity of a loaded bundle against a run of the PyTorch reference, without torch.

Logits are judged teacher-forced: the reference's tokens are forced at every place, so that one flipped
draw does not spoil all that follows. The reference run is a set of arrays (`engines.spec.golden_run`): the
golden run of the bundle, or a fresh one made by `var_export`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array
from engines.draw.pipeline import Pipeline
from engines.draw.results import Result, ScaleView
from engines.judging.agreement import Agreement, agreement, mean_agreement
from engines.judging.reports import Report
from engines.judging.similarity import psnr, ssim
from engines.spec.choices import STEPWISE
from engines.spec.golden_run import MIXED_SCALE, SMOOTH_CHECK
from engines.spec.sampling import RECOMMENDED


@dataclass(frozen=True)
class Runs:
    """What the engine drew for a report."""

    forced: Result
    """Images drawn with the reference's tokens forced: the first run of the engine."""
    free: Result
    """Images drawn from the same uniform numbers alone, each token as the engine chooses it."""


def verify(
    pipeline: Pipeline,
    golden: Mapping[str, Array],
    on_runs: Callable[[Runs], None] = lambda runs: None,
) -> Report:
    """Hold a pipeline against a reference run: of either form its draws and images, of the stepwise one each stage.

    `golden`: arrays of `engines.spec.golden_run`; `on_runs`: called with what the engine drew, for whoever shows it.
    """
    config, tokens, image = pipeline.config, golden["tokens"], golden["image"]
    comparison = _LogitComparison(pipeline, golden) if pipeline.form == STEPWISE else None
    runs = Runs(_run(pipeline, golden, forced=tokens, on_scale=comparison), _run(pipeline, golden))
    on_runs(runs)
    same = runs.free.tokens == tokens
    differing = [scale for scale in range(config.num_scales) if not same[:, config.scale_slice(scale)].all()]
    return Report(
        precision=pipeline.bundle.precision,
        images=len(tokens),
        draws=float((runs.forced.drawn == tokens).mean()),
        image_psnr=psnr(runs.forced.images, image),
        image_ssim=ssim(runs.forced.images, image),
        free_tokens=float(same.mean()),
        free_identical=int(same.all(axis=1).sum()),
        first_difference=differing[0] if differing else None,
        **({} if comparison is None else _stages(pipeline, golden, comparison.scales(runs.forced.drawn == tokens))),
        **_smoothing(pipeline, golden),
    )


def _stages(pipeline: Pipeline, golden: Mapping[str, Array], scales: list[Agreement]) -> dict[str, Any]:
    """The figures of a `Report` that need logits, the decoder alone or the encoder: of the stepwise form."""
    total = mean_agreement(scales)
    decoded, encoded = pipeline.decode_features(golden["f_hat"]), pipeline.encode(golden["image"])
    return {
        "scales": tuple(scales),
        "max_logit_error": total.max_abs,
        "kl": total.kl,
        "top1": total.top1,
        "decoder_psnr": psnr(decoded, golden["image"]),
        "decoder_ssim": ssim(decoded, golden["image"]),
        "encoder_tokens": float((encoded == golden["encoded"]).mean()),
        "reconstruction_loss": reconstruction_loss(pipeline, golden, encoded),
    }


def _smoothing(pipeline: Pipeline, golden: Mapping[str, Array]) -> dict[str, Any]:
    """The figures of a `Report` about smoothing; none of a bundle that was built without it.

    First with the reference's tokens forced, so that each scale mixes from the same logits; then without, at one scale.
    """
    if not pipeline.bundle.smooth:
        return {}
    config = pipeline.config
    squares = np.zeros((config.num_scales, 2))  # of the differences, and of what is wanted

    def compare(view: ScaleView) -> None:
        wanted = golden["mixed"][view.images, config.scale_slice(view.scale)].astype(np.float64)
        squares[view.scale] += np.square(view.read_mixed() - wanted).sum(), np.square(wanted).sum()

    stepwise = pipeline.form == STEPWISE
    settings = {"smooth": True, "top_k": pipeline.bundle.max_top_k, **SMOOTH_CHECK}
    run = _run(pipeline, golden, forced=golden["tokens"], on_scale=compare if stepwise else None, **settings)
    mask = np.ones(golden["tokens"].shape, bool)
    mask[:, config.scale_slice(MIXED_SCALE)] = False
    images = _run(pipeline, golden, forced=(golden["tokens"], mask), **settings).images
    close = [psnr(image, wanted) for image, wanted in zip(images, golden["smooth_image"], strict=True)]
    figures: dict[str, Any] = {
        "heaviest": float((run.drawn == golden["heaviest"]).mean()),
        "smooth_psnr": float(np.median(close)),
    }
    if stepwise:
        errors = np.sqrt(squares[:, 0] / squares[:, 1])
        figures |= {"mixing_error": float(np.median(errors)), "mixing_errors": tuple(errors.tolist())}
    return figures


def _run(pipeline: Pipeline, golden: Mapping[str, Array], **options: Any) -> Result:
    """Draw the images of a reference run again."""
    settings: dict[str, Any] = {option.name: golden[option.name] for option in RECOMMENDED} | options
    return pipeline.generate(golden["classes"].tolist(), seeds=golden["seeds"].tolist(), **settings)


def logits_agreement(pipeline: Pipeline, golden: Mapping[str, Array]) -> list[Agreement]:
    """Per scale, teacher-forced: the half of `verify` that is about the transformer. Draws are not judged.

    The images are not decoded.
    """
    comparison, last = _LogitComparison(pipeline, golden), pipeline.config.num_scales - 1

    def compare(view: ScaleView) -> None:
        comparison(view)
        if view.scale == last:
            raise _Seen

    for start in range(0, len(golden["tokens"]), pipeline.max_batch):
        part = {name: array[start : start + pipeline.max_batch] for name, array in golden.items()}
        comparison.golden = part
        with contextlib.suppress(_Seen):
            _run(pipeline, part, forced=part["tokens"], on_scale=compare)
    return comparison.scales()


class _Seen(Exception):  # noqa: N818
    """Ends a run before its decoder."""


class _LogitComparison:
    """Sees the logits of each scale of a run with the reference's tokens forced."""

    def __init__(self, pipeline: Pipeline, golden: Mapping[str, Array]) -> None:
        self.golden = golden
        self._config = pipeline.config
        self._parts: list[list[Agreement]] = [[] for _ in range(pipeline.config.num_scales)]

    def __call__(self, view: ScaleView) -> None:
        here = self._config.scale_slice(view.scale)
        names = ("top_index", "top_logit", "log_sum_exp")
        reference = {name: self.golden[name][view.images, here] for name in names}
        self._parts[view.scale].append(agreement(reference, view.read_logits()))

    def scales(self, drawn_alike: NDArray[np.bool_] | None = None) -> list[Agreement]:
        """One agreement per scale; with its share of draws alike where they are given, (B, T)."""
        found = [mean_agreement(parts) for parts in self._parts]
        if drawn_alike is not None:
            for scale, agreement in enumerate(found):
                agreement.draws = float(drawn_alike[:, self._config.scale_slice(scale)].mean())
        return found


def reconstruction_loss(pipeline: Pipeline, golden: Mapping[str, Array], encoded: NDArray[np.int64]) -> float:
    """PSNR from the reference's tokens less that from the engine's, both decoded by the engine; in dB."""
    wanted = golden["encoded"].astype(np.int64)
    if np.array_equal(encoded, wanted):
        return 0.0
    return psnr(pipeline.decode(wanted), golden["image"]) - psnr(pipeline.decode(encoded), golden["image"])
