"""The sampler of the reference, written for reading rather than for tracing.

One uniform number per token decides the draw, so that every runtime can be held against the same
tokens. The official sampler (`models/helpers.py`) keeps all ties at the k-th value; this one keeps
exactly k, lowest index first. The order is: temperature, top-k, softmax, top-p, inverse CDF.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engines.spec.sampling import RECOMMENDED, Sampling


def tensors_of(sampling: Sampling, images: int) -> dict[str, Any]:
    """The options that a bundle recommends, by name: tensors (images,) of the dtype that graphs take."""
    return {
        option.name: torch.full((images,), getattr(sampling, option.name), dtype=getattr(torch, option.dtype))
        for option in RECOMMENDED
    }


def sample(
    logits: Tensor, uniforms: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, max_top_k: int
) -> Tensor:
    """Draw one token per position.

    Args:
        logits: (B, L, V) float32.
        uniforms: (B, L) float32 in [0, 1).
        temperature: (B,) float32 > 0.
        top_k: (B,) int64; 0 keeps the whole vocabulary (within `max_top_k` where top_p is on).
        top_p: (B,) float32; 0 and 1 keep everything.
        max_top_k: length of the sorted list.

    Returns:
        (B, L) int64.

    """
    rows = [
        _sample_image(logits[b] / temperature[b], uniforms[b], int(top_k[b]), float(top_p[b]), max_top_k)
        for b in range(logits.shape[0])
    ]
    return torch.stack(rows)


def mixture(
    logits: Tensor,
    noise: Tensor,
    *,
    gain: float,
    tau: float,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    max_top_k: int,
) -> Tensor:
    """How much each entry of the codebook weighs where entries are mixed: Gumbel-softmax, `more_smooth` of the official
    code, over what top-k and top-p keep.

    As there, an entry as likely as the last one that is kept is kept too.

    Args:
        logits: (B, L, V) float32.
        noise: (B, L, V) float32 in (0, 1).
        gain: factor of the logits at this scale.
        tau: temperature of the softmax at this scale.
        temperature: (B,), as `sample`; so are top_k, top_p and max_top_k.
        top_k: (B,).
        top_p: (B,).
        max_top_k: length of the sorted list.

    Returns:
        (B, L, V) float32, sums of 1.

    """
    rows = []
    for b in range(logits.shape[0]):
        z = logits[b] / temperature[b]
        values, _, probabilities = _kept(z, int(top_k[b]), float(top_p[b]), max_top_k)
        least = values.masked_fill(probabilities == 0, torch.inf).amin(-1, keepdim=True)
        scores = (z * gain - (-noise[b].log()).log()) / tau
        rows.append(scores.masked_fill(z < least, -torch.inf).softmax(-1))
    return torch.stack(rows)


def _sample_image(z: Tensor, uniforms: Tensor, top_k: int, top_p: float, max_top_k: int) -> Tensor:
    _, indices, probabilities = _kept(z, top_k, top_p, max_top_k)
    return indices.gather(1, _inverse_cdf(probabilities, uniforms).unsqueeze(1)).squeeze(1)


def _kept(z: Tensor, top_k: int, top_p: float, max_top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What top-k and top-p keep of (L, V): values, indices, and unnormalised probabilities that are 0 for the others.

    Each is (L, K), likeliest first; in the order of the vocabulary where all of it is kept.
    """
    if top_k == 0 and top_p in (0, 1):
        return z, torch.arange(z.shape[-1], device=z.device).expand_as(z), z.softmax(-1)
    values, indices = z.sort(dim=-1, descending=True, stable=True)
    kept = min(top_k or max_top_k, max_top_k)
    probabilities = values[:, :kept].softmax(-1)
    if 0 < top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        nucleus = before < top_p
        nucleus[:, 0] = True
        probabilities = probabilities * nucleus
    return values[:, :kept], indices, probabilities


def _inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """(L, K) unnormalised, (L,) -> int64 (L,): the first entry whose running sum exceeds u * total."""
    cdf = probabilities.cumsum(-1)
    below = (cdf <= uniforms.unsqueeze(1) * cdf[:, -1:]).sum(-1)
    last = (probabilities > 0).long().cumsum(-1).argmax(-1)  # rounding may lead past the last entry with any mass
    return torch.minimum(below, last)
