"""Pictures of tokens: each entry of the codebook has a colour of its own."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.pictures.images import Picture

_TURN = 0.6180339887498949
"""The golden section: hues of numbers in a row lie far apart."""


def token_maps(tokens: NDArray[np.int64], sides: Sequence[int], size: int) -> list[Picture]:
    """The token map of each scale as a square picture, (size, size, 3) uint8.

    Args:
        tokens: of one image, coarse to fine, (T,) for T the sum of the squares of `sides`.
        sides: how many tokens a scale has along each side.
        size: pixels along each side of a picture; a token's square has whole pixels, so some are one wider.
    """
    maps, first = [], 0
    for side in sides:
        own = tokens[first : first + side * side].reshape(side, side)
        at = np.arange(size) * side // size
        maps.append(_colours(own)[at[:, None], at[None, :]])
        first += side * side
    return maps


def _colours(tokens: NDArray[np.int64]) -> Picture:
    """A colour for each token, (h, w, 3) uint8."""
    found, places = np.unique(tokens, return_inverse=True)
    table = [
        colorsys.hsv_to_rgb(token * _TURN % 1, 0.45 + 0.45 * (token * 7 % 11) / 10, 0.55 + 0.4 * (token * 3 % 7) / 6)
        for token in found.tolist()
    ]
    return (np.array(table) * 255).round().astype(np.uint8)[places.reshape(tokens.shape)]
