"""Two sets of images held against each other by what the model itself has: its VQ-VAE and its tokens.

    images --> encode --> tokens --> accumulate --> f_hat --> mean and deviation of each channel --> Fréchet distance
    tokens that were drawn, or those --> a histogram for each scale --> total variation

No weights of another model are needed, nor PyTorch, so that a device can do it alone. A bundle's `encode` graph gives
tokens and not the encoder's features before they are quantised. So features are the feature maps that the tokens add up
to, which is what the decoder makes its image of. Both sets go through the same bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.evaluation.distances import Gaussian, frechet, scale_histograms, total_variation
from engines.evaluation.halves import REPLICATES, Apart, Rows, Summarise, hold_apart
from engines.evaluation.samples import TOKENS, Samples, read_tokens
from engines.progress import Progress, Steps, silent

if TYPE_CHECKING:
    from engines.draw.converting import Converter
    from engines.spec.config import ModelConfig

_PART = 64
"""Images that are read at once."""


@dataclass(frozen=True)
class Described:
    """A set of images in numbers."""

    features: NDArray[np.float32]
    """(N, 2 Z): of each latent channel, the mean over the feature map, then the deviations."""
    tokens: NDArray[np.int64]
    """(N, T), coarse to fine: those that were drawn where they are known, else the encoder's."""


@dataclass(frozen=True)
class Between:
    """How far two sets are apart."""

    features: Apart
    """The Fréchet distance of the features."""
    tokens: Apart
    """The total variation of the tokens' histograms, mean over all scales."""
    scales: tuple[Apart, ...]
    """The same of each scale."""

    def rows(self) -> list[tuple[str, Apart]]:
        """Every figure with its name, in the order in which they are shown."""
        named = [("features of the VQ-VAE", self.features), ("tokens, all scales", self.tokens)]
        return named + [(f"tokens, scale {number}", each) for number, each in enumerate(self.scales)]


def pooled(f_hat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Feature maps (B, Z, S, S) as features (B, 2 Z): of each channel its mean, then its deviation, over the map.

    Pooled, since the covariance of whole maps (8,192 numbers at 256 pixels) asks for more images than anyone draws.
    """
    flat = f_hat.reshape(*f_hat.shape[:2], -1)
    return np.concatenate([flat.mean(-1), flat.std(-1)], axis=1).astype(np.float32)


def describe(
    samples: Samples, converter: Converter, drawn: Path | None = None, *, progress: Progress = silent
) -> Described:
    """A set of images in numbers, by the VQ-VAE of a bundle.

    Args:
        samples: images, or the tokens that were drawn, whose feature maps are then used as they are.
        converter: a `Pipeline`, whose bundle has `encode` and `accumulate`.
        drawn: the file of `var-run --save-tokens` that belongs to images.
        progress: told how far it is.

    Raises:
        UsageError: what lies there is damaged, or of another model; or `drawn` has another number of images.
    """
    config, what = converter.config, f"features of {samples.path.name}"
    tokens = read_tokens(drawn or samples.path, config) if drawn or samples.kind == TOKENS else None
    if tokens is not None and len(tokens) != samples.count:
        raise UsageError(f"{drawn} has {len(tokens)} images, and {samples.path} {samples.count}: give those of one job")
    features: list[NDArray[np.float32]] = []
    encoded: list[NDArray[np.int64]] = []
    done = 0
    for part in _parts(samples, config, tokens):
        progress(what, Steps(done, samples.count))
        own = part if samples.kind == TOKENS else converter.encode(part)
        encoded.append(own)
        features.append(pooled(converter.accumulate(own)))
        done += len(part)
    return Described(np.concatenate(features), np.concatenate(encoded) if tokens is None else tokens)


def _parts(samples: Samples, config: ModelConfig, tokens: NDArray[np.int64] | None) -> Any:
    if samples.kind != TOKENS:
        return samples.images(_PART, config.image_size)
    assert tokens is not None
    return (tokens[start : start + _PART] for start in range(0, len(tokens), _PART))


def check_kinds(one: Samples, other: Samples) -> None:
    """Raise `UsageError` where two sets are of kinds that cannot be held against each other."""
    if (one.kind == TOKENS) != (other.kind == TOKENS):
        raise UsageError(
            f"{one.path} and {other.path}: one has tokens and the other images; give two of a kind, "
            "and tokens of images with --tokens"
        )
    if one.side != other.side and None not in (one.side, other.side):
        raise UsageError(f"{one.path} has {one.side} pixels and {other.path} {other.side}: give sets of one size")


def tokens_apart(
    one: NDArray[np.int64], other: NDArray[np.int64], scale_lengths: Sequence[int], *, replicates: int = REPLICATES
) -> list[Apart]:
    """How far the histograms of tokens (N, T) and (M, T) are apart: all scales, then each. Raises as `hold_apart`."""
    vocabulary = int(max(one.max(), other.max())) + 1  # entries that neither has change nothing

    def summary(tokens: NDArray[np.int64]) -> Summarise:
        return lambda rows: scale_histograms(tokens[rows], scale_lengths, vocabulary)

    def distance(a: Any, b: Any) -> NDArray[np.float64]:
        scales = [total_variation(*pair) for pair in zip(a, b, strict=True)]
        return np.array([np.mean(scales), *scales])

    return hold_apart(summary(one), summary(other), (len(one), len(other)), distance, replicates=replicates)


def between(
    one: Described,
    other: Described,
    config: ModelConfig,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Progress = silent,
) -> Between:
    """How far two sets of one model are apart; arguments of `hold_apart`, which says what may be raised."""

    def summary(described: Described) -> Summarise:
        def of(rows: Rows) -> tuple[Gaussian, list[NDArray[np.float64]]]:
            histograms = scale_histograms(described.tokens[rows], config.scale_lengths, config.vae.vocab_size)
            return Gaussian.of(described.features[rows]), histograms

        return of

    def distance(a: Any, b: Any) -> NDArray[np.float64]:
        scales = [total_variation(*pair) for pair in zip(a[1], b[1], strict=True)]
        return np.array([frechet(a[0], b[0]), np.mean(scales), *scales])

    counts = len(one.tokens), len(other.tokens)
    features, tokens, *scales = hold_apart(
        summary(one), summary(other), counts, distance, replicates=replicates, seed=seed, progress=progress
    )
    return Between(features, tokens, tuple(scales))
