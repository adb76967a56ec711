"""The golden run drawn again: the same images, with the reference's tokens forced, beside what it computed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array, Backend
from engines.bundle.bundle import Bundle
from engines.draw.results import Result, ScaleView
from engines.judging.agreement import Agreement, agreement, mean_agreement
from engines.judging.similarity import psnr
from engines.spec.config import ModelConfig
from engines.spec.sampling import RECOMMENDED


class Engines(Protocol):
    """What a golden run is drawn again with: a `Pipeline`, which explains each of these."""

    bundle: Bundle
    backend: Backend
    config: ModelConfig
    form: str
    max_batch: int

    @property
    def generate(self) -> Callable[..., Result]:
        """Draws images."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Images to tokens."""

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Tokens to images."""

    def decode_features(self, f_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Feature maps to images."""

    def describe_runtime(self) -> dict[str, Any]:
        """Versions, and what it computes on."""


def draw_again(engines: Engines, golden: Mapping[str, Array], **options: Any) -> Result:
    """Draw the images of a golden run, with its classes, seeds and sampling; `options` of `generate` come on top."""
    settings: dict[str, Any] = {option.name: golden[option.name] for option in RECOMMENDED} | options
    return engines.generate(golden["classes"].tolist(), seeds=golden["seeds"].tolist(), **settings)


def logits_agreement(engines: Engines, golden: Mapping[str, Array], *, seconds: float = math.inf) -> list[Agreement]:
    """Per scale, with the reference's tokens forced: what `LogitComparison` finds. Draws are not judged.

    The images are not decoded. Once `seconds` are over, the scale that runs is the last one.
    """
    comparison, last = LogitComparison(engines.config, golden), engines.config.num_scales - 1
    until = time.monotonic() + seconds

    def compare(view: ScaleView) -> None:
        comparison(view)
        if view.scale == last or time.monotonic() > until:
            raise _Seen

    for start in range(0, len(golden["tokens"]), engines.max_batch):
        part = {name: array[start : start + engines.max_batch] for name, array in golden.items()}
        comparison.golden = part
        with contextlib.suppress(_Seen):
            draw_again(engines, part, forced=part["tokens"], on_scale=compare)
    return comparison.scales()


class _Seen(Exception):  # noqa: N818
    """Ends a run before its decoder."""


class LogitComparison:
    """Sees the logits of each scale of a run with the reference's tokens forced."""

    def __init__(self, config: ModelConfig, golden: Mapping[str, Array]) -> None:
        self.golden = golden
        self._config = config
        self._parts: list[list[Agreement]] = [[] for _ in range(config.num_scales)]

    def __call__(self, view: ScaleView) -> None:
        """See `OnScale`."""
        here = self._config.scale_slice(view.scale)
        names = ("top_index", "top_logit", "log_sum_exp")
        reference = {name: self.golden[name][view.images, here] for name in names}
        self._parts[view.scale].append(agreement(reference, view.read_logits()))

    def scales(self, drawn_alike: NDArray[np.bool_] | None = None) -> list[Agreement]:
        """One agreement per scale that ran; with its share of draws alike where they are given, (B, T)."""
        found = [mean_agreement(parts) for parts in self._parts if parts]
        if drawn_alike is not None:
            for scale, scale_agreement in enumerate(found):
                scale_agreement.draws = float(drawn_alike[:, self._config.scale_slice(scale)].mean())
        return found


def reconstruction_loss(engines: Engines, golden: Mapping[str, Array], encoded: NDArray[np.int64]) -> float:
    """PSNR from the reference's tokens less that from the engine's, both decoded by the engine; in dB.

    A token that the codebook does not have counts as the nearest that it has.
    """
    encoded = np.clip(encoded, 0, engines.config.vae.vocab_size - 1)
    wanted = golden["encoded"].astype(np.int64)
    if np.array_equal(encoded, wanted):
        return 0.0
    return psnr(engines.decode(wanted), golden["image"]) - psnr(engines.decode(encoded), golden["image"])
