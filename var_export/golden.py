"""The golden run: what the PyTorch reference draws and thinks, so that a device without torch can check itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.spec.config import ModelConfig, mixing
from engines.spec.golden_run import MIXED_SCALE, SMOOTH_CHECK
from engines.spec.sampling import Sampling
from engines.spec.uniforms import noise, uniforms
from var_export.model.reference import Drawn, Reference
from var_export.model.sampling import mixture, tensors_of

TOP = 256
IMAGES = 4
# From d30 on: an image of d36 at 512 px takes PyTorch minutes on a CPU, and the check runs it twice more.
IMAGES_LARGE = 2
LARGE = 8 * 10**11  # weights of the blocks times tokens: 1.4e11 for d16, 4.6e11 for d24, 9e11 for d30, 5.1e12 for d36


def golden_requests(config: ModelConfig) -> tuple[list[int], list[int]]:
    """Classes spread over the label set, and seeds, of the golden run."""
    sizes = config.transformer
    large = 12 * sizes.depth * sizes.width**2 * config.num_tokens > LARGE
    images = min(IMAGES, IMAGES_LARGE) if large else IMAGES
    classes = [(88 + k * sizes.num_classes // images) % sizes.num_classes for k in range(images)]
    return classes, list(range(images))


def run_reference(
    reference: Reference,
    classes: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    max_top_k: int,
    *,
    smooth: bool = False,
    top: int = TOP,
    report: Callable[[int], None] = lambda image: None,
) -> dict[str, NDArray[Any]]:
    """Draw with the reference, image by image, and keep what `engines.spec.golden_run.GOLDEN_ARRAYS` lists.

    `smooth`: and what `SMOOTH_ARRAYS` does. `report` is called with the number of each image before it is drawn.
    """
    kept: dict[str, list[NDArray[Any]]] = {}
    settings = tensors_of(sampling.fitted(max_top_k), 1)
    T, V = reference.config.num_tokens, reference.config.vae.vocab_size
    for image, (label, seed) in enumerate(zip(classes, seeds, strict=True)):
        report(image)
        drawn = reference.generate(
            torch.tensor([label]),
            torch.from_numpy(uniforms([seed], T)),
            max_top_k=max_top_k,
            keep_logits=True,
            **settings,
        )
        logits = torch.cat(drawn.logits, dim=1)
        # Stable, so that equal logits keep the order that argmax and the sampler give them.
        order = logits.sort(dim=-1, descending=True, stable=True)
        arrays = {
            "classes": np.array([label], np.int64),
            "seeds": np.array([seed], np.uint64),
            **{name: value.numpy() for name, value in settings.items()},
            "tokens": drawn.tokens.numpy(),
            "f_hat": drawn.f_hat.numpy(),
            "image": drawn.image.numpy(),
            "top_index": order.indices[..., :top].numpy().astype(np.int32),
            "top_logit": order.values[..., :top].numpy(),
            "log_sum_exp": logits.double().logsumexp(-1).numpy(),
            "encoded": reference.encode(drawn.image).numpy(),
        }
        if smooth:
            checked = dataclasses.replace(sampling, top_k=max_top_k, **SMOOTH_CHECK)
            arrays |= _smoothed(reference, drawn, torch.from_numpy(noise([seed], T, V)), checked)
        for name, array in arrays.items():
            kept.setdefault(name, []).append(array)
    return {name: np.concatenate(parts) for name, parts in kept.items()}


@torch.inference_mode()
def _smoothed(reference: Reference, drawn: Drawn, noise: Tensor, sampling: Sampling) -> dict[str, NDArray[Any]]:
    """`SMOOTH_ARRAYS` of one image, from the logits of its run. `sampling` keeps as many as are sorted."""
    config, quantize = reference.config, reference.vae.quantize
    kept = {name: value for name, value in tensors_of(sampling, 1).items() if name != "cfg"}
    parts = []
    for scale, logits in enumerate(drawn.logits):
        gain, tau = mixing(config, scale)
        here = config.scale_slice(scale)
        parts.append(mixture(logits, noise[:, here], gain=gain, tau=tau, max_top_k=sampling.top_k, **kept))
    weights = torch.cat(parts, dim=1)
    mixed = weights @ quantize.embedding.weight
    here = config.scale_slice(MIXED_SCALE)
    hard = quantize.contribution(drawn.tokens[:, here], MIXED_SCALE)
    soft = quantize.spread(mixed[:, here], MIXED_SCALE)
    return {
        "heaviest": weights.argmax(-1).numpy(),
        "mixed": mixed.numpy(),
        "smooth_image": reference.vae.decode(drawn.f_hat - hard + soft).numpy(),
    }
