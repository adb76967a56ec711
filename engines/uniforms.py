"""Uniform numbers from a counter-based generator, keyed by the seed of an image.

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


def uniforms(seeds: Sequence[int] | NDArray[np.uint64], num_tokens: int) -> NDArray[np.float32]:
    """One number per token, in [0, 1) in steps of 2^-24.

    Args:
        seeds: one per image, 0 to 2^64 - 1. Raises `UsageError` outside.
        num_tokens: tokens of one image, all scales together.

    Returns:
        float32 (len(seeds), num_tokens).

    """
    table = np.empty((len(seeds), num_tokens), np.float32)
    for row, seed in zip(table, seeds, strict=True):
        if not 0 <= int(seed) <= MAX_SEED:
            raise UsageError(f"a seed must lie in 0 to 2^64 - 1, got {seed}")
        raw = np.random.Philox(key=int(seed)).random_raw(num_tokens)
        row[:] = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return table
