"""Fidelity of a loaded bundle against a run of the PyTorch reference, without torch.

Logits are judged teacher-forced: the reference's tokens are forced at every place, so that one flipped
draw does not spoil all that follows. The reference run is a set of arrays (`engines.spec.golden_run`): the
golden run of the bundle, or a fresh one made by `var_export`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backends.base import Array
from engines.draw.pipeline import Pipeline
from engines.draw.rerun import LogitComparison, draw_again, reconstruction_loss
from engines.draw.results import OnScale, Result, ScaleView
from engines.judging.agreement import Agreement, mean_agreement
from engines.judging.reports import Report
from engines.judging.similarity import psnr, ssim
from engines.spec.choices import STEPWISE
from engines.spec.config import ModelConfig
from engines.spec.golden_run import MIXED_SCALE, SMOOTH_CHECK


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
    on_share: Callable[[float], None] = lambda share: None,
) -> Report:
    """Hold every graph of a pipeline's form against a reference run, and of the stepwise form the logits too.

    `golden`: arrays of `engines.spec.golden_run`; `on_runs`: called with what the engine drew, for whoever shows it;
    `on_share`: called with the share of the drawing that is done, after each scale of the stepwise form.
    """
    config, tokens, image = pipeline.config, golden["tokens"], golden["image"]
    comparison = LogitComparison(pipeline.config, golden) if pipeline.form == STEPWISE else None
    told = _Share(config, 2 * len(tokens), on_share)
    forced = draw_again(pipeline, golden, forced=tokens, on_scale=comparison and told.after(comparison))
    runs = Runs(forced, draw_again(pipeline, golden, on_scale=comparison and told.after()))
    on_runs(runs)
    same = runs.free.tokens == tokens
    differing = [scale for scale in range(config.num_scales) if not same[:, config.scale_slice(scale)].all()]
    return Report(
        precision=pipeline.backend.judged_as(pipeline.bundle),
        recorded=pipeline.bundle.recorded(pipeline.form).run,
        images=len(tokens),
        draws=float((runs.forced.drawn == tokens).mean()),
        image_psnr=psnr(runs.forced.images, image),
        image_ssim=ssim(runs.forced.images, image),
        free_tokens=float(same.mean()),
        free_identical=int(same.all(axis=1).sum()),
        first_difference=differing[0] if differing else None,
        **({} if comparison is None else _logits(comparison.scales(runs.forced.drawn == tokens))),
        **_alone(pipeline, golden),
        **_smoothing(pipeline, golden),
    )


class _Share:
    """Counts the tokens of some images as their scales are drawn, and tells the share of all."""

    def __init__(self, config: ModelConfig, images: int, tell: Callable[[float], None]) -> None:
        self._config, self._total, self._tell = config, images * config.num_tokens, tell
        self._drawn = 0

    def after(self, look: OnScale = lambda view: None) -> OnScale:
        """What to call after each scale, which calls `look` first."""

        def count(view: ScaleView) -> None:
            look(view)
            self._drawn += (view.images.stop - view.images.start) * self._config.patch_nums[view.scale] ** 2
            self._tell(self._drawn / self._total)

        return count


def _logits(scales: list[Agreement]) -> dict[str, Any]:
    """The figures of a `Report` that need logits, which the stepwise form alone shows."""
    total = mean_agreement(scales)
    return {"scales": tuple(scales), "max_logit_error": total.max_abs, "kl": total.kl, "top1": total.top1}


def _alone(pipeline: Pipeline, golden: Mapping[str, Array]) -> dict[str, Any]:
    """The figures of the graphs that run alone, each given what the reference gave: decode, encode and accumulate."""
    decoded, encoded = pipeline.decode_features(golden["f_hat"]), pipeline.encode(golden["image"])
    f_hat = golden["f_hat"].astype(np.float64)
    error = pipeline.accumulate(golden["tokens"]) - f_hat
    return {
        "decoder_psnr": psnr(decoded, golden["image"]),
        "decoder_ssim": ssim(decoded, golden["image"]),
        "features_error": float(np.sqrt(np.square(error).mean() / (np.square(f_hat).mean() or 1.0))),
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
    run = draw_again(pipeline, golden, forced=golden["tokens"], on_scale=compare if stepwise else None, **settings)
    mask = np.ones(golden["tokens"].shape, bool)
    mask[:, config.scale_slice(MIXED_SCALE)] = False
    images = draw_again(pipeline, golden, forced=(golden["tokens"], mask), **settings).images
    close = [psnr(image, wanted) for image, wanted in zip(images, golden["smooth_image"], strict=True)]
    figures: dict[str, Any] = {
        "heaviest": float((run.drawn == golden["heaviest"]).mean()),
        "smooth_psnr": float(np.median(close)),
    }
    if stepwise:
        errors = np.sqrt(squares[:, 0] / squares[:, 1])
        figures |= {"mixing_error": float(np.median(errors)), "mixing_errors": tuple(errors.tolist())}
    return figures
