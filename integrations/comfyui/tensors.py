"""ComfyUI's tensors as the arrays of `engines`, and back.

    IMAGE        torch float32 (B, H, W, C) in 0 to 1      <-> uint8 (B, H, W, 3)
    MASK         torch float32 (B, H, W), or (H, W)        --> bool (B, H, W)
    VAR_TOKENS   torch int64 (B, T)                        <-> int64 (B, T)

This is the only place that knows both.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from engines import UsageError


def image_of(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels uint8 (B, H, W, 3) as an IMAGE, float32 (B, H, W, 3) in 0 to 1, on the CPU."""
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))


def pixels_of(image: torch.Tensor) -> NDArray[np.uint8]:
    """An IMAGE as pixels uint8 (B, H, W, 3): grey is repeated, transparency laid on white, as of any picture.

    Raises `UsageError` where it is no IMAGE, or holds values that are not finite.
    """
    values = _array(image, "the image")
    if values.ndim == 3:  # some nodes drop a batch of one
        values = values[None]
    if values.ndim != 4 or values.shape[-1] not in (1, 3, 4) or not values.size:
        raise UsageError(f"an IMAGE must be (B, H, W, 3), got {values.shape}: connect the output of a node for images")
    values = values.clip(0, 1)
    if values.shape[-1] == 4:
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1 - alpha)
    pixels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def area_of(mask: torch.Tensor) -> NDArray[np.bool_]:
    """A MASK as bool (B, H, W): true, which is redrawn, above one half. Raises `UsageError` as `pixels_of`."""
    values = _array(mask, "the mask")
    if values.ndim == 4 and values.shape[1] == 1:  # some nodes keep a channel
        values = values[:, 0]
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or not values.size:
        raise UsageError(f"a MASK must be (B, H, W), got {values.shape}: connect the output of a node for masks")
    area: NDArray[np.bool_] = values > 0.5
    return area


def tokens_of(tokens: torch.Tensor) -> NDArray[np.int64]:
    """VAR_TOKENS as an array int64 (B, T)."""
    array: NDArray[np.int64] = tokens.detach().cpu().numpy()
    return array


def tensor_of(tokens: NDArray[np.int64]) -> torch.Tensor:
    """Tokens int64 (B, T) as VAR_TOKENS."""
    return torch.from_numpy(np.ascontiguousarray(tokens))


def _array(tensor: torch.Tensor, what: str) -> NDArray[np.float32]:
    """A tensor of any device and type as float32. Raises `UsageError` where it has no numbers."""
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(array).all():
        raise UsageError(f"{what} holds values that are not finite: the node that made it has failed")
    return array
