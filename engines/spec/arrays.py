"""What callers hand over as arrays, checked: of any type, of a batch, or tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.spec.config import ModelConfig
from engines.words import quoted

Array = NDArray[Any]


def as_array(value: Any, name: str) -> Array:
    """What a caller passed, as an array of whatever type. Raises `UsageError` where it is none."""
    try:
        return np.asarray(value)
    except Exception as error:  # what is not ours may raise anything where it is asked to be an array
        raise UsageError(f"{name} must be an array, got {quoted(value)}") from error


def as_batch(value: Any, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """`as_array`, of this type, and of this shape behind the number of images. Raises `UsageError`."""
    array = as_array(value, name)
    if array.dtype != dtype or array.ndim == 0 or array.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise UsageError(f"{name} must be {dtype} (B, {wanted}), got {array.dtype} {array.shape}")
    return array


def as_tokens(value: Any, config: ModelConfig) -> NDArray[np.int64]:
    """Tokens int (B, T) inside of the vocabulary. Raises `UsageError`."""
    tokens = as_array(value, "tokens")
    if tokens.ndim != 2 or tokens.shape[1] != config.num_tokens:
        raise UsageError(f"tokens must be integers (B, {config.num_tokens}), got shape {tokens.shape}")
    check_tokens(tokens, config)
    return tokens.astype(np.int64)


def check_tokens(tokens: Array, config: ModelConfig) -> None:
    """Raises `UsageError` where `tokens` are not integers inside of the vocabulary."""
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UsageError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= config.vae.vocab_size):
        raise UsageError(f"tokens must lie in 0 to {config.vae.vocab_size - 1}, got {tokens.min()} to {tokens.max()}")
