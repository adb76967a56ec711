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
