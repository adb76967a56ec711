"""How the logits of an engine agree with those of the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Agreement:
    """How an engine's logits compare with the reference's, over some tokens."""

    tokens: int
    max_abs: float
    """Largest difference among the reference's top logits."""
    cosine: float
    """Cosine of the reference's top logits with the engine's, each centred, mean over tokens."""
    kl: float
    """KL(reference || engine) in nats, mean over tokens; the tail beyond the top logits counts as one event."""
    top1: float
    """Share of tokens whose most likely entry is the same."""
    draws: float = math.nan
    """Share of tokens drawn alike from the same uniform numbers."""


def mean_agreement(parts: Sequence[Agreement]) -> Agreement:
    """Several sets of tokens as one: means by their number, the largest of the errors."""
    weights = np.array([part.tokens for part in parts], np.float64)
    means = {
        name: float(np.average([getattr(part, name) for part in parts], weights=weights))
        for name in ("cosine", "kl", "top1", "draws")
    }
    return Agreement(tokens=int(weights.sum()), max_abs=float(np.max([part.max_abs for part in parts])), **means)


def agreement(reference: Mapping[str, NDArray[Any]], logits: NDArray[Any]) -> Agreement:
    """Arrays of the golden run for some tokens, (B, L, ...), beside an engine's logits float32 (B, L, V)."""
    index = reference["top_index"].astype(np.int64)
    wanted = reference["top_logit"].astype(np.float64)
    got = np.take_along_axis(logits, index, axis=-1).astype(np.float64)
    log_p = wanted - reference["log_sum_exp"].astype(np.float64)[..., None]
    log_q = got - _log_sum_exp(logits)[..., None]
    p, q = np.exp(log_p), np.exp(log_q)
    kl = (p * (log_p - log_q)).sum(-1)
    if index.shape[-1] < logits.shape[-1]:  # the tail
        rest_p, rest_q = (np.clip(1 - x.sum(-1), 1e-12, 1) for x in (p, q))
        kl = kl + rest_p * np.log(rest_p / rest_q)
    a, b = wanted - wanted.mean(-1, keepdims=True), got - got.mean(-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = (a * b).sum(-1) / np.where(norms == 0, 1, norms)
    return Agreement(
        tokens=kl.size,
        max_abs=float(np.abs(wanted - got).max()),
        cosine=float(cosine.mean()),
        kl=float(kl.mean()),
        top1=float((logits.argmax(-1) == index[..., 0]).mean()),
    )


def _log_sum_exp(logits: NDArray[Any]) -> NDArray[np.float64]:
    high = logits.max(-1, keepdims=True).astype(np.float64)
    total: NDArray[np.float64] = np.log(np.exp(logits - high).sum(-1)) + high[..., 0]
    return total
