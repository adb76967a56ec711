"""Which shapes an engine is built for: one optimisation profile per scale, and a range of batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.errors import UsageError
from engines.spec.config import ModelConfig
from engines.spec.contract import TensorInfo

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""Least, most tuned for, largest."""


@dataclass(frozen=True)
class BatchRange:
    """Images B of one call. Rows N follow: B without guidance, 2 B with it."""

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise UsageError(
                f"--batch {self} must grow from 1 or more, as in 1:1:8 (least, most used, largest), or be one number"
            )

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """`4` or `1:1:8`."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.strip().isdigit() for part in parts):
            raise UsageError(f"--batch {text!r} is neither a number of images nor LEAST:USUAL:MOST, such as 1:1:8")
        numbers = [int(part) for part in parts]
        return cls(*(numbers * 3 if len(numbers) == 1 else numbers))

    def __str__(self) -> str:
        if self.least == self.most:
            return str(self.usual)
        return f"{self.least}:{self.usual}:{self.most}"

    @property
    def images(self) -> tuple[int, int, int]:
        """Range of B."""
        return self.least, self.usual, self.most

    def of(self, graph: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Ranges of B and N of a graph: tuned for guidance, which most images have; of the fused graph that alone."""
        if graph == "fused":
            return (self.usual,) * 3, (2 * self.usual,) * 3
        return self.images, (self.least, 2 * self.usual, 2 * self.most)


def profiles_of(
    graph: str, config: ModelConfig, inputs: tuple[TensorInfo, ...], batch: BatchRange
) -> list[dict[str, Range]]:
    """Shapes of every input with a varying dimension, by name; one dictionary per profile.

    `step` has one profile per scale, in their order: all but the batch is fixed there, so that TensorRT tunes for
    each scale. The fused graph runs the usual batch only.
    """
    images, rows = batch.of(graph)
    if graph != "step":
        return [_profile(inputs, images, rows, {})]
    lengths = (*config.scale_lengths, 1)  # nothing follows the last scale: the least next scale that there is
    return [
        _profile(inputs, images, rows, {"L": lengths[scale], "M": lengths[scale + 1], "P": config.scale_offsets[scale]})
        for scale in range(config.num_scales)
    ]


def _profile(
    inputs: tuple[TensorInfo, ...], images: tuple[int, ...], rows: tuple[int, ...], fixed: Mapping[str, int]
) -> dict[str, Range]:
    ranges = {}
    for info in inputs:
        least, usual, most = (
            tuple({"B": B, "N": N, **fixed}[dim] if isinstance(dim, str) else dim for dim in info.shape)
            for B, N in zip(images, rows, strict=True)
        )
        if any(isinstance(dim, str) for dim in info.shape):
            ranges[info.name] = (least, usual, most)
    return ranges
