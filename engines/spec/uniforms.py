"""Uniform numbers from a counter-based generator, keyed by the seed of an image: for draws, and for smoothing's noise.

Philox 4x64-10 (Salmon et al., SC'11) with the seed as its key: number i of seed S is a function of (S, i)
alone, so what an image draws depends on its own request and never on its neighbours in a batch. The raw
64-bit output is used, whose stream numpy guarantees, rather than `Generator.random`, whose it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError

MAX_SEED = 2**64 - 1
NOISE_COUNTER = 2**64
"""Where the noise of a seed starts; draws count from 0 and never come this far."""


def uniforms(seeds: Sequence[int] | NDArray[np.uint64], num_tokens: int) -> NDArray[np.float32]:
    """One number per token, in [0, 1) in steps of 2^-24: float32 (len(seeds), num_tokens).

    `seeds`: one per image, 0 to 2^64 - 1. Raises `UsageError` outside.
    """
    table = np.empty((len(seeds), num_tokens), np.float32)
    for row, seed in zip(table, seeds, strict=True):
        raw = _philox(int(seed)).random_raw(num_tokens)
        row[:] = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return table


def noise(seeds: Sequence[int] | NDArray[np.uint64], num_tokens: int, vocab_size: int) -> NDArray[np.float32]:
    """One number per token and codebook entry, inside (0, 1): odd multiples of 2^-24, float32 (seeds, tokens, entries).

    Entry v of token i of seed S is a function of (S, i, v) alone. `-log(-log(x))` of it is Gumbel noise, and finite.
    Raises as `uniforms`.
    """
    count = num_tokens * vocab_size
    table = np.empty((len(seeds), count), np.float32)
    for row, seed in zip(table, seeds, strict=True):
        raw = _philox(int(seed), NOISE_COUNTER).random_raw((count + 1) // 2)
        halves = raw.astype("<u8", copy=False).view("<u4")[:count]  # 32 of its 64 bits are enough for one
        row[:] = (halves >> np.uint32(8)) | np.uint32(1)
        row *= np.float32(2**-24)
    return table.reshape(len(seeds), num_tokens, vocab_size)


def _philox(seed: int, counter: int = 0) -> np.random.Philox:
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"a seed must lie in 0 to 2^64 - 1, got {seed}")
    return np.random.Philox(key=seed, counter=counter)
