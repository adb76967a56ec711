"""Trained weights as integers with scales, in the layouts that the runtimes' kernels read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.spec.policy import BLOCK

FOUR_BIT_LEVELS = 15
"""Steps of a range of 4 bits."""
_CENTRE = 8
"""The zero point of MatMulNBits where it is given none."""
_SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Parts of a block's range that are tried: what lies beyond is clipped, and all others have finer steps."""
_AT_ONCE = 1 << 22  # weights, so that the trials' arrays stay small beside a large model


def quantize_weight(
    weight: NDArray[Any], axis: int, largest: int = 127
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, a scale per entry of `axis`: int8 of the same shape in -largest to largest, float32 (channels,)."""
    weight = np.asarray(weight, np.float32)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others) / np.float32(largest)
    scale[scale == 0] = 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale = scale.astype(np.float32)
    return np.rint(weight / scale.reshape(shape)).clip(-largest, largest).astype(np.int8), scale


def quantize_blocks(weight: NDArray[Any], block: int = BLOCK) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(K, N) for MatMulNBits: uint8 (N, ceil(K / block), block) about 128, scales float32 (N * blocks,)."""
    rows = _in_blocks(weight, block)
    N, count, _ = rows.shape
    integers, scales = quantize_weight(rows.reshape(-1, block), 0)
    return (integers.astype(np.int16) + 128).astype(np.uint8).reshape(N, count, block), scales


def quantize_four_bits(
    weight: NDArray[Any], block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """(K, N) for MatMulNBits: integers of 0 to 15, with a scale and a zero point for each block of channels.

    Returns uint8 (N, ceil(K / block), block / 2), two integers a byte and the first in its lower half; scales float32
    (N * blocks,); zero points uint8 (N * blocks / 2,), packed alike. The zero points of an odd number of blocks are
    None, which stands for 8: OpenVINO 2026.4 takes twice the time for others (1920 channels in blocks of 128).
    """
    rows = _in_blocks(weight, block)
    N, count, _ = rows.shape
    even = count % 2 == 0
    integers, scales, zeros = least_error(rows.reshape(-1, block), centred=not even)
    return _packed(integers).reshape(N, count, block // 2), scales, _packed(zeros) if even else None


def least_error(
    rows: NDArray[np.float32], *, centred: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Rows (R, block) in 4 bits with a range each: integers (R, block), scales (R,), zero points (R,).

    Of a few ranges, that of least squared error is taken: the whole one from smallest to largest, and shrunk ones. The
    integers given, the scale is fitted once more. So the demo's weights have 1.01 of the error that a search over all
    zero points leaves, in a fortieth of its time. `centred`: the zero points are 8, and zero lies amid the range.
    """
    size = _AT_ONCE // rows.shape[1]
    parts = [_least_error(rows[at : at + size], centred) for at in range(0, len(rows), size)]
    integers, scales, zeros = (np.concatenate(each) for each in zip(*parts, strict=True))
    return integers, scales, zeros


def _least_error(
    rows: NDArray[np.float32], centred: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    if centred:
        high = np.maximum(high, -low) * np.float32(FOUR_BIT_LEVELS / 14)  # the largest becomes 7 or -7
        low = -high
    whole = (high - low) / np.float32(FOUR_BIT_LEVELS)
    whole[whole == 0] = 1
    zeros = np.full(len(rows), _CENTRE, np.float32) if centred else np.rint(-low / whole)
    least = np.full(len(rows), np.inf, np.float32)
    scales, codes = whole.copy(), np.zeros(rows.shape, np.float32)
    for part in _SHRUNK:
        trial = np.rint(rows / (whole * np.float32(part))[:, None]) + zeros[:, None]
        trial = trial.clip(0, FOUR_BIT_LEVELS)
        steps = trial - zeros[:, None]
        power, along = np.einsum("rb,rb->r", steps, steps), np.einsum("rb,rb->r", steps, rows)
        fitted = np.where(power > 0, along / np.maximum(power, 1), whole)
        error = fitted * (fitted * power - 2 * along)  # less the weights' own power, which all trials share
        better = error < least
        least[better], scales[better], codes[better] = error[better], fitted[better], trial[better]
    scales[scales == 0] = 1
    return codes.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8)


def quantize_symmetric(weight: NDArray[Any], block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(K, N) as TensorRT takes 4-bit weights: int8 (K, N) of -8 to 7, scales float32 (K / block, N), no zero points."""
    rows = _in_blocks(weight, block)
    N, count, _ = rows.shape
    integers, scales, zeros = least_error(rows.reshape(-1, block), centred=True)
    steps = integers.astype(np.int8) - zeros.astype(np.int8)[:, None]
    return np.ascontiguousarray(steps.reshape(N, count * block).T), np.ascontiguousarray(scales.reshape(N, count).T)


def quantize_table(table: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Rows (classes, N) in 8 bits, a range per column: uint8 (classes, N), steps float32 (N,), lowest values (N,)."""
    table = np.asarray(table, np.float32)
    low = table.min(0)
    step = (table.max(0) - low) / np.float32(255)
    step[step == 0] = 1
    return np.rint((table - low) / step).clip(0, 255).astype(np.uint8), step, low


def _in_blocks(weight: NDArray[Any], block: int) -> NDArray[np.float32]:
    """(K, N) -> (N, ceil(K / block), block), the last block filled up with zeros."""
    weight = np.asarray(weight, np.float32).T
    N, K = weight.shape
    padded = np.zeros((N, -K % block + K), np.float32)
    padded[:, :K] = weight
    return padded.reshape(N, -1, block)


def _packed(integers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two integers of 4 bits a byte along the last axis, whose length is even."""
    upper = integers[..., 1::2] * np.uint8(16)
    return (integers[..., ::2] + upper).astype(np.uint8)
