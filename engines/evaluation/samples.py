"""Sets of images as `var-run` leaves them, read in pieces: `.npz` archives, files of tokens, folders of pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.editing.handed import squares_of
from engines.errors import UsageError
from engines.foreign import names_in, open_array, pictures_in, read_arrays, read_exactly
from engines.spec.arrays import check_tokens
from engines.spec.choices import FITS
from engines.spec.config import ModelConfig

IMAGES, TOKENS = "arr_0", "tokens"
"""Names of the arrays that var-run --npz and var-run --save-tokens write."""
_WAY = "give what var-run --npz or --save-tokens wrote, or a folder of pictures"


@dataclass(frozen=True)
class Samples:
    """A set of images, or of their tokens, that lies on the disk."""

    path: Path
    kind: str
    """`arr_0`, `tokens` or `pictures`."""
    count: int
    """How many images there are."""
    side: int | None
    """Height and width of the images in pixels, where all have the same."""

    @classmethod
    def find(cls, path: Path) -> Samples:
        """Look at a file or a folder. Raises `UsageError` where it holds no set of images."""
        if path.is_dir():
            return cls(path, "pictures", len(pictures_in(path)), None)
        if not path.exists():
            raise UsageError(f"there is no {path}: {_WAY}")
        names = names_in(path)
        name = next((each for each in (IMAGES, TOKENS) if each in names), None)
        if name is None:
            raise UsageError(f"{path} has neither {IMAGES} nor {TOKENS}: {_WAY}")
        with open_array(path, name, what=f".npz file with {name}") as (_, dtype, shape):
            if name == TOKENS and len(shape) == 2:
                return cls(path, name, shape[0], None)
            if name == IMAGES and dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2]:
                return cls(path, name, shape[0], shape[1])
        wanted = "integers (images, tokens)" if name == TOKENS else "uint8 (images, h, h, 3)"
        raise UsageError(f"{name} of {path} is {dtype} {shape}, and must be {wanted}: {_WAY}")

    def check_images(self) -> None:
        """Raise `UsageError` where there are tokens and no images, or too few for a covariance."""
        if self.kind == TOKENS:
            raise UsageError(f"{self.path} has tokens and no images: give what var-run --npz wrote")
        if self.count < 2:
            raise UsageError(f"{self.path} has {self.count} images, and 2 are needed at least: draw more")

    def images(self, size: int, side: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """The images in their order, uint8 (b, h, h, 3) of up to `size` at once.

        `side`: what pictures of a folder become squares of, in pixels; by default the shorter side of the first one.
        Raises `UsageError` where the file ends too early, or a picture cannot be read.
        """
        if self.kind == TOKENS:
            self.check_images()
        if self.kind != IMAGES:
            yield from _pictures(pictures_in(self.path), size, side)
            return
        with open_array(self.path, IMAGES, what=f".npz file with {IMAGES}") as (stream, _, shape):
            row = math.prod(shape[1:])
            for start in range(0, shape[0], size):
                count = min(size, shape[0] - start)
                data = read_exactly(stream, count * row, self.path)
                yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])


def read_tokens(path: Path, config: ModelConfig) -> NDArray[np.int64]:
    """What `var-run --save-tokens` wrote, int64 (N, T). Raises `UsageError` where it is another model's."""

    def accept(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != config.num_tokens:
            raise UsageError(
                f"{path}: {name} have shape {shape}, and {config.name} needs (images, {config.num_tokens})"
            )

    tokens = read_arrays(path, (TOKENS,), accept, what=".npz file of var-run --save-tokens")[TOKENS]
    check_tokens(tokens, config)
    return tokens.astype(np.int64)


def _pictures(files: list[Path], size: int, side: int | None) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(files), size):
        part: list[Path] = files[start : start + size]
        if side is None:
            from engines.pictures.images import load_picture

            side = min(load_picture(part[0]).shape[:2])
        yield squares_of(list(part), side, FITS[0])
