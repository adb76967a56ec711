"""The sampler of the reference, written for reading rather than for tracing.

One uniform number per token decides the draw, so that every runtime can be held against the same
tokens. The official sampler (`models/helpers.py`) keeps all ties at the k-th value; this one keeps
exactly k, lowest index first. The order is: temperature, top-k, softmax, top-p, inverse CDF.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def _sample_image(logits: Tensor, uniforms: Tensor, top_k: int, top_p: float, max_top_k: int) -> Tensor:
    if top_k == 0 and top_p in (0, 1):
        return _inverse_cdf(logits.softmax(-1), uniforms)
    values, indices = logits.sort(dim=-1, descending=True, stable=True)
    kept = min(top_k or max_top_k, max_top_k)
    probabilities = values[:, :kept].softmax(-1)
    if 0 < top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        nucleus = before < top_p
        nucleus[:, 0] = True
        probabilities = probabilities * nucleus
    return indices.gather(1, _inverse_cdf(probabilities, uniforms).unsqueeze(1)).squeeze(1)


def _inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """(L, K) unnormalised, (L,) -> int64 (L,): the first entry whose running sum exceeds u * total."""
    cdf = probabilities.cumsum(-1)
    below = (cdf <= uniforms.unsqueeze(1) * cdf[:, -1:]).sum(-1)
    last = (probabilities > 0).long().cumsum(-1).argmax(-1)  # rounding may lead past the last entry with any mass
    return torch.minimum(below, last)
