"""What a batch is, in arrays: images, the rows of the transformer that they own, and what decides their draws."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.backends.base import Array

SAMPLING_INPUTS = {"temperature": "float32", "top_k": "int64", "top_p": "float32"}
ROW_INPUTS = {"cond_row": "int64", "uncond_row": "int64", "image_row": "int64"}


@dataclass(frozen=True)
class Rows:
    """How images own rows of the transformer: two with guidance, one without."""

    labels: Array
    """int64 (N,)."""
    cond_row: Array
    uncond_row: Array
    image_row: Array

    @classmethod
    def of(cls, classes: Array, cfg: Array, unconditional: int) -> Rows:
        """Rows of images with these classes int64 (B,) and guidance float32 (B,).

        An image of the unconditional class has two equal halves: one of them is enough.
        """
        B = len(classes)
        guided = np.flatnonzero((cfg != 0) & (classes != unconditional))
        uncond_row = np.arange(B)
        uncond_row[guided] = B + np.arange(len(guided))
        return cls(
            labels=np.concatenate([classes, np.full(len(guided), unconditional)]).astype(np.int64),
            cond_row=np.arange(B),
            uncond_row=uncond_row,
            image_row=np.concatenate([np.arange(B), guided]),
        )


@dataclass(frozen=True)
class Batch:
    """What to draw: arrays of B images, validated."""

    rows: Rows
    uniforms: Array
    """float32 (B, T)."""
    cfg: Array
    """float32 (B,)."""
    temperature: Array
    top_k: Array
    top_p: Array
    smooth: Array
    """bool (B,)."""
    noise: Array | None = None
    """float32 (B, T, V); None where no image is smoothed."""
    forced_tokens: Array | None = None
    """int64 (B, T)."""
    forced_mask: Array | None = None
    """bool (B, T)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Images B and rows N."""
        return len(self.cfg), len(self.rows.labels)

    def padded(self, shape: tuple[int, int]) -> Batch:
        """The same images in a larger batch (B, N): for an engine whose batch was fixed when it was built.

        The added images repeat the last one, the added rows belong to the first; nothing reads what they give.
        """
        images, rows = (wanted - here for wanted, here in zip(shape, self.shape, strict=True))

        def repeat(array: Array, count: int, at: int = -1) -> Array:
            return np.concatenate([array, np.repeat(array[[at]], count, axis=0)])

        fields: dict[str, Any] = {
            entry.name: None if value is None else repeat(value, images)
            for entry in dataclasses.fields(self)
            if entry.name != "rows"
            for value in [getattr(self, entry.name)]
        }
        padded_rows = Rows(
            labels=repeat(self.rows.labels, rows),
            cond_row=repeat(self.rows.cond_row, images),
            uncond_row=repeat(self.rows.uncond_row, images),
            image_row=repeat(self.rows.image_row, rows, 0),
        )
        return Batch(rows=padded_rows, **fields)


def no_noise(shape: tuple[int, ...]) -> Array:
    """For images that are not smoothed: finite, and read by nothing. Takes no memory."""
    return np.broadcast_to(np.float32(0.5), shape)


def fused_inputs(batch: Batch, vocab_size: int | None = None) -> dict[str, Array]:
    """What the fused graph takes, by name; `vocab_size`: where the bundle was built with smoothing."""
    shape = batch.uniforms.shape
    forced = {
        "forced_tokens": np.zeros(shape, np.int64) if batch.forced_tokens is None else batch.forced_tokens,
        "forced_mask": np.zeros(shape, bool) if batch.forced_mask is None else batch.forced_mask,
    }
    rows = {name: getattr(batch.rows, name) for name in ("labels", *ROW_INPUTS)}
    sampling = {name: getattr(batch, name) for name in ("uniforms", "cfg", *SAMPLING_INPUTS)}
    if vocab_size is None:
        return rows | sampling | forced
    noise = no_noise((*shape, vocab_size)) if batch.noise is None else batch.noise
    return rows | sampling | forced | {"smooth": batch.smooth, "noise": noise}
