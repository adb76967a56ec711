"""How alike two sets of images are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB, over all of them; infinite where they are equal."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8], window: int = 7) -> float:
    """Mean structural similarity of uint8 images (B, h, w, 3), uniform 7x7 window (Wang et al., 2004).

    Images smaller than the window are compared whole.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    window = min(window, *a.shape[1:3])

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in (1, 2):
            values = np.lib.stride_tricks.sliding_window_view(values, window, axis=axis).mean(-1)
        return values

    mx, my = mean(x), mean(y)
    unbiased = window**2 / (window**2 - 1)
    vx, vy, vxy = (
        unbiased * (mean(u * v) - mu * mv) for u, v, mu, mv in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my))
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(value.mean())
