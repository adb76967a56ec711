"""What a batch is, in arrays: images, the rows of the transformer that they own, and what decides their draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.backends.base import Array
from engines.spec.contract import TensorInfo

UNREAD = {"noise": 0.5, "forced_tokens": 0.0}
"""Inputs of graphs that nothing reads in a batch without smoothed images, or forced tokens: any number in their range
stands for them there."""


@dataclass(frozen=True)
class Rows:
    """How images own rows of the transformer: two with guidance, one without."""

    labels: Array
    """int64 (N,)."""
    cond_row: Array
    """int64 (B,), as is `uncond_row`."""
    uncond_row: Array
    image_row: Array
    """int64 (N,)."""

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

    def read(self, guided: Array) -> Array:
        """Which rows a scale reads that guides these images, bool (B,) -> bool (N,)."""
        which = np.zeros(len(self.labels), np.bool_)
        which[self.cond_row] = which[self.uncond_row[guided]] = True
        return which

    def only(self, kept: Array) -> Rows:
        """The same images with these of the rows, int64 (n,), in order: among them all that are read.

        An image whose unconditional row is none of them has its conditional one in its place.
        """
        place = np.full(len(self.labels), -1)
        place[kept] = np.arange(len(kept))
        cond_row, uncond_row = place[self.cond_row], place[self.uncond_row]
        return Rows(
            labels=self.labels[kept],
            cond_row=cond_row,
            uncond_row=np.where(uncond_row < 0, cond_row, uncond_row),
            image_row=self.image_row[kept],
        )


@dataclass(frozen=True)
class Batch:
    """What to draw: arrays of B images, validated."""

    rows: Rows
    sampling: Mapping[str, Array]
    """Each option of `engines.spec.sampling`, by name: (B,)."""
    per_token: Mapping[str, Array]
    """Inputs of graphs by name, (B, T, ...): uniforms and forced_mask; forced_tokens and noise where they are read."""

    @property
    def shape(self) -> tuple[int, int]:
        """Images B and rows N."""
        return len(self.rows.cond_row), len(self.rows.labels)

    @property
    def inputs(self) -> dict[str, Array]:
        """All arrays by the names of the fused graph's inputs, but for what is not read."""
        return {**vars(self.rows), **self.sampling, **self.per_token}

    def guided(self, scale: int) -> Array:
        """Whose guidance reaches this scale, bool (B,); true as well for images without guidance."""
        first_scales = self.sampling["cfg_scales"]
        reached: Array = (first_scales == 0) | (scale < first_scales)
        return reached

    def padded(self, shape: tuple[int, int]) -> Batch:
        """The same images in a larger batch (B, N): for an engine whose batch was fixed when it was built.

        The added images repeat the last one, the added rows belong to the first; nothing reads what they give.
        """
        images, rows = (wanted - here for wanted, here in zip(shape, self.shape, strict=True))

        def repeat(array: Array, count: int, at: int = -1) -> Array:
            return np.concatenate([array, np.repeat(array[[at]], count, axis=0)])

        return Batch(
            rows=Rows(
                labels=repeat(self.rows.labels, rows),
                cond_row=repeat(self.rows.cond_row, images),
                uncond_row=repeat(self.rows.uncond_row, images),
                image_row=repeat(self.rows.image_row, rows, 0),
            ),
            sampling={name: repeat(array, images) for name, array in self.sampling.items()},
            per_token={name: repeat(array, images) for name, array in self.per_token.items()},
        )


def unread(name: str, shape: tuple[int, ...], dtype: str) -> Array:
    """What stands for an input that nothing reads. Takes no memory."""
    return np.broadcast_to(np.array(UNREAD[name], dtype), shape)


def fused_inputs(batch: Batch, inputs: Sequence[TensorInfo]) -> dict[str, Array]:
    """All that the fused graph takes, by name; `inputs`: those of the bundle, `bundle.tensors("fused")[0]`."""
    given, B = batch.inputs, batch.shape[0]
    return {
        info.name: given[info.name]
        if info.name in given
        else unread(info.name, (B, *(int(size) for size in info.shape[1:])), info.dtype)
        for info in inputs
    }
