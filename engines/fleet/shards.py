"""A job whose workers store their images themselves: each shard a file on a path that all of them see.

    driver: shards of the job -> Fleet -> worker: draws a shard into its file -> driver: merges the files

The shards of a job follow from its size alone, so that a later run finds those that are there; and each is a job that
resumes, so that who takes over from a lost worker draws what is missing of its shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engines.files.jobs import Chunk, ImageJob, Made, make_job, run_job, shard_of
from engines.files.npz import NpzRows
from engines.files.shard import Shard

SHARD_IMAGES = 128
"""Images of a shard, about: of 256 x 256 pixels, a file of 25 MB."""


@dataclass(frozen=True)
class ShardPlan:
    """Which files a job is written to, as plain values that can be sent."""

    out: str
    """The .npz file that the shards become."""
    arguments: Mapping[str, Any]
    """What `make_job` is called with, so that each worker makes the same job."""
    side: int
    """Pixels of an image along one side."""
    batch: int
    """Images that are drawn at once."""

    @cached_property
    def job(self) -> ImageJob:
        """The whole job."""
        return make_job(**self.arguments)

    @property
    def of(self) -> int:
        """How many shards there are."""
        return -(-len(self.job.items) // SHARD_IMAGES)

    @property
    def folder(self) -> Path:
        """Where they lie, beside the file that they become."""
        return Path(f"{self.out}.shards-{self.of}")

    def path(self, number: int) -> Path:
        """The file of a shard, counted from 1."""
        return self.folder / f"{number}.npz"

    def part(self, number: int) -> ImageJob:
        """The job of a shard."""
        return shard_of(self.job, Shard(number, self.of))

    def sink(self, number: int) -> NpzRows:
        """What stores a shard. Raises `UsageError` where something else lies in its place."""
        arrays = {"arr_0": ((self.side, self.side, 3), np.dtype(np.uint8))}
        return NpzRows(self.part(number), self.path(number), arrays, lambda _, made: {"arr_0": made.images})

    def missing(self) -> list[Chunk]:
        """The items of each shard that is not finished, as chunks for a `Fleet`."""
        numbers = range(1, self.of + 1)
        parts = {number: self.part(number).items for number in numbers}
        return [items for number, items in parts.items() if not all(map(self.sink(number).has, items))]

    def write(self, chunk: Chunk, draw: Callable[[Chunk], Made]) -> Made:
        """On a worker: draw what is missing of the shard with these items, and finish its file.

        What comes back is as many images as were drawn, without their pixels: (B, 0, 0, 3).
        """
        number = chunk[0].number + 1  # the first image of shard K is the K-th of the job
        made = run_job(self.part(number), [self.sink(number)], draw, batch=self.batch)
        return Made(np.empty((made, 0, 0, 3), np.uint8))
