"""Collaborative drawing: a large model drafts the first, coarse scales of an image, and a small one refines it.

Most of an image's content is decided at the coarse scales, and most of the work is done at the fine ones (CoDe, arXiv
2411.17787). Both models speak of the same tokens: the small one takes the large one's as if they were its own, which
fills its cache, and goes on from there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.draw.request import Classes, Forced, PreviewScales, Request, Seeds, make_request, preview_sets
from engines.draw.results import Preview, Result, Stop, Timings
from engines.errors import UsageError
from engines.judging.thresholds import THRESHOLDS
from engines.spec.choices import STEPWISE, TOGETHER

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from engines.bundle.manifest import Manifest
    from engines.draw.pipeline import Pipeline
    from engines.editing.mask import Mask
    from engines.spec.config import ModelConfig
    from engines.spec.sampling import SamplingOptions


REFINE_FROM = "refine_from"


class Collaboration(AbstractContextManager["Collaboration"]):
    """Two pipelines that draw together, as an `ImageSource`.

    Both have to share the VQ-VAE's codebook and the sides of their token maps; their transformers may differ in all but
    the number of classes. Safe for one thread.
    """

    def __init__(
        self,
        drafter: Callable[[], Pipeline],
        refiner: Callable[[], Pipeline],
        *,
        refine_from: int,
        sequential: bool = False,
    ) -> None:
        """Loads both, or the drafter alone where they are `sequential`.

        Args:
            drafter: loads what draws the scales before `refine_from`, without smoothing.
            refiner: loads what draws the others and decodes.
            refine_from: the first scale of the refiner, 1 to the last one.
            sequential: never hold both in memory: the one that is needed takes the place of the other. Whether they fit
                each other is then seen when the refiner is loaded first.

        Raises `UsageError` where the models do not fit each other, and what loading raises.

        """
        self._load, self.refine_from = {"drafter": drafter, "refiner": refiner}, refine_from
        self._held: dict[str, Pipeline] = {}
        self._sequential = sequential
        self.facts: dict[str, str] = {}
        """What a saved picture says of the refiner, once that was loaded."""
        self._runtimes: dict[str, dict[str, Any]] = {}
        try:
            self.bundle = self._loaded("drafter").bundle
            self._manifest = self.bundle.manifest
            _check_scale(self._manifest, refine_from)
            self.max_batch = TOGETHER
            if not sequential:
                self.max_batch = min(self._loaded(role).max_batch for role in self._load)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        classes: Classes,
        *,
        seeds: Seeds = 0,
        forced: Forced | None = None,
        stop: Stop | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """As `Pipeline.generate`; options that are not given are what the drafter's bundle recommends."""
        request = self._request(classes, seeds, forced, sampling)
        rest, timings = self._drafted(request, stop)
        result = self._loaded("refiner").generate(request.classes, seeds=request.seeds, **rest)
        timings.add(result.timings)
        texts = tuple({**text, **self.facts} for text in request.texts(self.bundle))
        return dataclasses.replace(result, timings=timings, texts=texts)

    def stream(
        self,
        classes: Classes,
        *,
        seeds: Seeds = 0,
        forced: Forced | None = None,
        preview_scales: PreviewScales = None,
        stop: Stop | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Preview]:
        """As `Pipeline.stream`; nothing is shown before the drafter is done, whose time the first whole images have."""
        request = self._request(classes, seeds, forced, sampling)
        wanted = preview_sets(preview_scales, len(request), self.bundle.config.num_scales)
        return self._stream(request, [sorted(scales) for scales in wanted], stop)

    def _stream(self, request: Request, wanted: Sequence[Sequence[int]], stop: Stop | None) -> Iterator[Preview]:
        rest, timings = self._drafted(request, stop)
        refining = self._loaded("refiner")
        for preview in refining.stream(request.classes, seeds=request.seeds, preview_scales=wanted, **rest):
            if preview.timings is not None:
                timings.add(preview.timings)
                preview, timings = dataclasses.replace(preview, timings=timings), Timings()
            yield preview

    def _request(self, classes: Classes, seeds: Seeds, forced: Forced | None, sampling: SamplingOptions) -> Request:
        """What is asked for, checked before anything is drawn. Raises `UsageError`."""
        request = make_request(self._manifest, classes, seeds=seeds, forced=forced, **sampling)
        if request.sampling["smooth"].any():
            raise UsageError("smoothing mixes what tokens cannot say, so another model cannot refine it; leave it out")
        return request

    def keeping(self, squares: NDArray[np.uint8], redrawn: Mask) -> dict[str, Any]:
        """See `engines.draw.results.ImageSource`."""
        return self._loaded("drafter").keeping(squares, redrawn)  # who is needed next; both encode alike

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See `engines.draw.results.ImageSource`."""
        return self._loaded("refiner").reconstruct(images)

    def describe_runtime(self) -> dict[str, Any]:
        """See `engines.draw.results.ImageSource`: the drafter's, and the refiner's once that was loaded."""
        described = dict(self._runtimes["drafter"])
        return described | {"refiner": self._runtimes["refiner"]} if "refiner" in self._runtimes else described

    def close(self) -> None:
        """Free both."""
        while self._held:
            self._held.popitem()[1].close()

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _loaded(self, role: str) -> Pipeline:
        """One of the two, in the place of the other where they are sequential."""
        if role not in self._held:
            if self._sequential:
                self.close()
            pipeline = self._load[role]()
            try:
                self._check_form(pipeline)
                if role == "refiner" and not self.facts:
                    self._check(pipeline)
            except BaseException:
                pipeline.close()
                raise
            self._held[role], self._runtimes[role] = pipeline, pipeline.describe_runtime()
        return self._held[role]

    def _check_form(self, pipeline: Pipeline) -> None:
        """Raises `UsageError` where a model draws all scales in one call."""
        if pipeline.form != STEPWISE:
            raise UsageError(
                f"{pipeline.bundle.path} is loaded in the fused form, and two models need the scales one by one; load "
                "with form='stepwise'"
            )

    def _check(self, refining: Pipeline) -> None:
        """Raises `UsageError` unless the drafter's tokens mean the same to the refiner."""
        drafter, refiner = self.bundle, refining.bundle
        check_sizes(drafter.manifest, refiner.manifest, self.refine_from)
        golden = {name: drafter.golden[name][:1] for name in ("tokens", "f_hat")}
        error = float(np.abs(refining.accumulate(golden["tokens"]) - golden["f_hat"]).max())
        if not error <= THRESHOLDS["fp32"].features_error * max(1.0, float(np.abs(golden["f_hat"]).max())):
            raise UsageError(
                f"{refiner.name} cannot refine {drafter.name}: they were built with different VQ-VAEs (feature maps of "
                f"the same tokens differ by {error:.2g})"
            )
        self.facts = refiner_facts(refiner.manifest, self.refine_from)
        self._manifest = joint_manifest(drafter.manifest, refiner.manifest)

    def _drafted(self, request: Request, stop: Stop | None) -> tuple[dict[str, Any], Timings]:
        """What the refiner's `generate` takes beside classes and seeds, and the drafter's times."""
        drafted, timings = self._loaded("drafter").draft(request, self.refine_from, stop)
        timings.scales += [0.0] * (self.bundle.config.num_scales - self.refine_from)
        B, T = len(request), self.bundle.config.num_tokens
        tokens = np.zeros((B, T), np.int64) if request.forced_tokens is None else request.forced_tokens.copy()
        mask = np.zeros((B, T), bool) if request.forced_mask is None else request.forced_mask.copy()
        tokens[:, : drafted.shape[1]], mask[:, : drafted.shape[1]] = drafted, True
        rest: dict[str, Any] = {"forced": (tokens, mask), **request.sampling}
        if stop is not None:
            rest["stop"] = _after(stop, self.refine_from, self.bundle.config.num_scales)
        return rest, timings


def refiner_facts(refiner: Manifest, refine_from: int) -> dict[str, str]:
    """What a saved picture says of the refiner, beside what it says of the drafter."""
    return {
        "refiner": refiner.name,
        "refiner_key": refiner.build_key,
        "refiner_precision": refiner.precision,
        REFINE_FROM: str(refine_from),
    }


def joint_manifest(drafter: Manifest, refiner: Manifest) -> Manifest:
    """What both can draw: the drafter's, with as long a list of likely tokens as both bundles sort."""
    return dataclasses.replace(drafter, max_top_k=min(drafter.max_top_k, refiner.max_top_k))


def _check_scale(drafter: Manifest, refine_from: int) -> None:
    last = drafter.config.num_scales - 1
    if not 1 <= refine_from <= last:
        raise UsageError(f"refine_from must be a scale from 1 to {last}, got {refine_from}")


def check_sizes(drafter: Manifest, refiner: Manifest, refine_from: int) -> None:
    """Raises `UsageError` where a model cannot refine what the other drafts, by its sizes alone."""
    _check_scale(drafter, refine_from)
    given, wanted = _sizes(refiner.config), _sizes(drafter.config)
    for what, value in wanted.items():
        if given[what] != value:
            raise UsageError(f"{refiner.name} cannot refine {drafter.name}: its {what} is {given[what]}, not {value}")


def _sizes(config: ModelConfig) -> dict[str, Any]:
    """What two models must share, in words."""
    return {
        "number of classes": config.transformer.num_classes,
        "list of patch_nums": config.patch_nums,
        "vocabulary": config.vae.vocab_size,
        "image size": config.image_size,
    }


def _after(stop: Stop, scale: int, scales: int) -> Stop:
    """Asks before each scale from one on, so that every scale of an image is asked for once."""
    asked = itertools.count()
    return lambda: next(asked) % scales >= scale and stop()
