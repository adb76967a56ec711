"""Collaborative drawing: a large model drafts the first, coarse scales of an image, and a small one refines it.

Most of an image's content is decided at the coarse scales, and most of the work is done at the fine ones (CoDe, arXiv
2411.17787). Both models speak of the same tokens: the small one takes the large one's as if they were its own, which
fills its cache, and goes on from there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.draw.request import Classes, Forced, PreviewScales, Request, Seeds, make_request
from engines.draw.results import Preview, Result, Stop, Timings
from engines.errors import UsageError
from engines.judging.thresholds import THRESHOLDS
from engines.spec.choices import TOGETHER

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
        try:
            self.bundle = self._loaded("drafter").bundle
            last = self.bundle.config.num_scales - 1
            if not 1 <= refine_from <= last:
                raise UsageError(f"refine_from must be a scale from 1 to {last}, got {refine_from}")
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
        request = make_request(self.bundle, classes, seeds=seeds, forced=forced, **sampling)
        rest, timings = self._drafted(request, stop)
        result = self._loaded("refiner").generate(request.classes, seeds=request.seeds, **rest)
        timings.scales += [0.0] * (self.bundle.config.num_scales - self.refine_from)
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
        """As `Pipeline.stream`; nothing is shown before the drafter is done."""
        request = make_request(self.bundle, classes, seeds=seeds, forced=forced, **sampling)
        rest, _ = self._drafted(request, stop)
        refining = self._loaded("refiner")
        yield from refining.stream(request.classes, seeds=request.seeds, preview_scales=preview_scales, **rest)

    def keeping(self, squares: NDArray[np.uint8], redrawn: Mask) -> dict[str, Any]:
        """See `engines.draw.results.ImageSource`."""
        return self._loaded("refiner").keeping(squares, redrawn)

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See `engines.draw.results.ImageSource`."""
        return self._loaded("refiner").reconstruct(images)

    def describe_runtime(self) -> dict[str, Any]:
        """See `engines.draw.results.ImageSource`: the drafter's; the refiner runs in the same way."""
        return self._loaded("drafter").describe_runtime()

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
            self._held[role] = self._load[role]()
            if role == "refiner" and not self.facts:
                self._check(self._held[role])
        return self._held[role]

    def _check(self, refining: Pipeline) -> None:
        """Raises `UsageError` unless the drafter's tokens mean the same to the refiner."""
        drafter, refiner = self.bundle, refining.bundle
        check_sizes(drafter.manifest, refiner.manifest)
        golden = {name: drafter.golden[name][:1] for name in ("tokens", "f_hat")}
        error = float(np.abs(refining.accumulate(golden["tokens"]) - golden["f_hat"]).max())
        if not error <= THRESHOLDS["fp32"].features_error * max(1.0, float(np.abs(golden["f_hat"]).max())):
            raise UsageError(
                f"{refiner.name} cannot refine {drafter.name}: they were built with different VQ-VAEs (feature maps of "
                f"the same tokens differ by {error:.2g})"
            )
        self.facts = refiner_facts(refiner.manifest, self.refine_from)

    def _drafted(self, request: Request, stop: Stop | None) -> tuple[dict[str, Any], Timings]:
        """What the refiner's `generate` takes beside classes and seeds, and the drafter's times."""
        if request.sampling["smooth"].any():
            raise UsageError("smoothing mixes what tokens cannot say, so another model cannot refine it; leave it out")
        drafted, timings = self._loaded("drafter").draft(request, self.refine_from, stop)
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


def check_sizes(drafter: Manifest, refiner: Manifest) -> None:
    """Raises `UsageError` where a model cannot refine what the other drafts, by its sizes alone."""
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
