"""The PyTorch reference for a bundle that exists: fresh runs to verify against, and a rival for speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.bundle.bundle import Bundle
from engines.errors import CheckpointError
from engines.fidelity.speed import Draw
from engines.spec.config import ModelConfig
from engines.spec.sampling import Sampling
from engines.spec.uniforms import uniforms
from var_export.checkpoint.labels import NONE
from var_export.checkpoint.load import Checkpoint, load_checkpoint
from var_export.golden import run_reference
from var_export.model.reference import Reference
from var_export.model.sampling import tensors_of

TOP = 4096  # logits kept per token: the whole vocabulary of the official models


def checkpoint_for(bundle: Bundle, model: str, **parts: Any) -> Checkpoint:
    """A checkpoint of the bundle's architecture; `parts`: `vae`, `key`, `config`, `overrides` of `load_checkpoint`.

    Raises `CheckpointError` where it has another architecture.
    """
    checkpoint = load_checkpoint(model, **parts, labels=NONE, name=bundle.config.name)
    differing = _differences(checkpoint.config, bundle.config)
    if differing:
        raise CheckpointError(
            f"{model} does not fit {bundle.path}: {'; '.join(differing)}; "
            "give the checkpoint that the bundle was built from, with the same --vae, --key, --config and --set"
        )
    return checkpoint


def same_weights(bundle: Bundle, checkpoint: Checkpoint) -> bool:
    """Whether the bundle says that it was built from these very files."""
    return bundle.checkpoint_sha256 == checkpoint.sha256


def fresh_requests(config: ModelConfig, images: int, seed: int) -> tuple[list[int], list[int]]:
    """Classes and seeds of a run that is not the golden one; the same for the same `seed`."""
    classes = np.random.default_rng(seed).integers(config.transformer.num_classes, size=images)
    return classes.tolist(), [seed + k for k in range(images)]


def live_run(
    reference: Reference, bundle: Bundle, *, images: int, seed: int, report: Callable[[int], None] = lambda done: None
) -> dict[str, NDArray[Any]]:
    """What `engines.fidelity.checks.verify` compares with, made now, with the logits of the whole vocabulary."""
    classes, seeds = fresh_requests(bundle.config, images, seed)
    top = min(bundle.config.vae.vocab_size, TOP)
    return run_reference(
        reference,
        classes,
        seeds,
        bundle.sampling,
        bundle.max_top_k,
        smooth=bundle.smooth,
        top=top,
        report=report,
    )


def draw_with(
    reference: Reference,
    sampling: Sampling,
    max_top_k: int,
    *,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
) -> Draw:
    """Images of the reference, which is on `device`, from classes and seeds to pixels on the host.

    `autocast`: what PyTorch computes products in, where not in the type of the weights.
    """

    def draw(classes: Sequence[int], seeds: Sequence[int]) -> NDArray[np.int64]:
        with torch.autocast((device or torch.device("cpu")).type, autocast, enabled=autocast is not None):
            return in_type(classes, seeds)

    def in_type(classes: Sequence[int], seeds: Sequence[int]) -> NDArray[np.int64]:
        settings = tensors_of(sampling.fitted(max_top_k), len(classes))
        drawn = reference.generate(
            torch.tensor(classes, device=device),
            torch.from_numpy(uniforms(seeds, reference.config.num_tokens)).to(device),
            max_top_k=max_top_k,
            # But for cfg on the host: the sampler reads them there, and would wait for the device at every scale.
            **settings | {"cfg": settings["cfg"].to(device)},
        )
        drawn.image.cpu().numpy()
        tokens: NDArray[np.int64] = drawn.tokens.cpu().numpy()
        return tokens

    return draw


def _differences(given: ModelConfig, wanted: ModelConfig) -> list[str]:
    """`vae.ch is 160 instead of 32`, for each field that differs."""
    a, b = _flat(given.to_dict()), _flat(wanted.to_dict())
    return [f"{key} is {a[key]} instead of {b[key]}" for key in a if key != "name" and a[key] != b[key]]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat
