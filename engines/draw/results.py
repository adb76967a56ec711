"""What draws images, as a protocol, and what it gives: results, previews, scales as they pass, and their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array, Buffer
from engines.bundle.labels import slugify
from engines.errors import UsageError
from engines.pictures.images import picture_format, read_picture_text, save_picture
from engines.storage import expanded
from engines.words import counted

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

    from engines.editing.mask import Mask
    from engines.spec.sampling import SamplingOptions


@dataclass
class Timings:
    """Seconds of one batch, or of several that were added up."""

    cond: float = 0.0
    scales: list[float] = field(default_factory=list)
    """One per scale; one in all of the fused form; empty where a server drew, which does not tell."""
    decode: float = 0.0
    total: float = 0.0

    @property
    def outside(self) -> float:
        """What the engines did not take."""
        return self.total - self.cond - sum(self.scales) - self.decode

    def add(self, other: Timings) -> None:
        """Count another batch in."""
        self.cond += other.cond
        self.decode += other.decode
        self.total += other.total
        self.scales = [a + b for a, b in zip(self.scales or [0.0] * len(other.scales), other.scales, strict=True)]


@dataclass(frozen=True)
class ScaleView:
    """What one scale computed, for whoever compares engines; valid until the next scale runs."""

    scale: int
    images: slice
    """Which images of the request these are."""
    logits: Buffer
    """Guided logits float32 (B, L, V), before temperature; B counts padding too."""
    mixed: Buffer | None = None
    """Mixed codebook entries float32 (B, L, Z); None of a bundle without smoothing."""

    def read_logits(self) -> Array:
        """The logits of the images, float32 (B, L, V)."""
        return self._own(self.logits)

    def read_mixed(self) -> Array:
        """The mixed entries of the images, float32 (B, L, Z)."""
        assert self.mixed is not None, "a bundle without smoothing mixes nothing"
        return self._own(self.mixed)

    def _own(self, buffer: Buffer) -> Array:
        return buffer.read()[: self.images.stop - self.images.start]


PIXELS = "pixels"
"""The text that tells pictures apart that were asked for alike: a digest of what is seen."""
_FIELDS = ("{index}", "{class}", "{label}", "{seed}")
OnScale = Callable[[ScaleView], None]
Stop = Callable[[], bool]
"""Asked before each scale, in the thread that draws: whether the caller wants no more."""


@dataclass(frozen=True, repr=False)
class Result:
    """Images of one call, in the order of its classes."""

    images: NDArray[np.uint8]
    """(B, h, w, 3) RGB."""
    tokens: NDArray[np.int64]
    """(B, T), token maps of all scales, coarse to fine."""
    drawn: NDArray[np.int64]
    """(B, T), what the sampler drew; differs from `tokens` only where tokens were forced."""
    classes: NDArray[np.int64]
    seeds: NDArray[np.uint64]
    timings: Timings
    """Seconds, summed over the batches."""
    texts: tuple[Mapping[str, str], ...] = ()
    """Of each image, what a saved picture says of it: class, label, seed, sampling and bundle."""

    def __repr__(self) -> str:
        of = f"classes {_few(self.classes)}, seeds {_few(self.seeds)}, {self.timings.total:.2f} s"
        return f"<Result: {_sized(self.images)}, {of}>"

    def pil(self) -> list[Image.Image]:
        """The images as pictures of Pillow, in RGB."""
        from PIL import Image

        return [Image.fromarray(image) for image in self.images]

    def save(self, out: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the images as PNG, JPEG or WebP files, with their settings inside; the paths.

        Args:
            out: the file of one image; for several a folder, or a pattern with {index}, {class}, {label} and {seed}.
            overwrite: replace files that are there. Without it, one that holds the same image is left as it is.

        Raises `UsageError` where another file is there, where several images would go to one file, or the ending of a
        name is none of `engines.pictures.images.FORMATS`.

        """
        pattern = str(expanded(out))
        if not Path(pattern).suffix or Path(pattern).is_dir():
            pattern = str(Path(pattern) / "{index:05d}-{label}-{seed}.png")
        known = self.texts or tuple({"seed": str(seed)} for seed in self.seeds)
        texts = [{**text, PIXELS: sha256(image).hexdigest()} for text, image in zip(known, self.images, strict=True)]
        try:
            paths = [Path(pattern.format(**_fields(k, text))) for k, text in enumerate(texts)]
        except (LookupError, ValueError, AttributeError) as error:
            raise UsageError(f"{out} is no pattern: the fields are {', '.join(_FIELDS)}") from error
        if len(set(paths)) < len(paths):
            raise UsageError(f"{out} is one file for several of {len(paths)} images: add {{index}}, or name a folder")
        for path, image in zip(paths, self.images, strict=True):
            picture_format(path, image.shape[1], image.shape[0])
        there = [path for path, text in zip(paths, texts, strict=True) if path.exists() and not _holds(path, text)]
        if there and not overwrite:
            raise UsageError(f"{there[0]} exists and is another picture: name another place, or add overwrite=True")
        for path, image, text in zip(paths, self.images, texts, strict=True):
            if overwrite or not path.exists():
                save_picture(path, image, text)
        return paths


@dataclass(frozen=True, repr=False)
class Preview:
    """Images as they stand after one scale: P of the B that are drawn."""

    scale: int
    images: NDArray[np.uint8]
    """(P, h, w, 3) RGB."""
    tokens: NDArray[np.int64]
    """(P, tokens so far)."""
    final: bool
    which: NDArray[np.int64]
    """(P,), the places of these images in the call; all of them unless each has preview scales of its own."""
    timings: Timings | None = None
    """Seconds of the whole batch without the decodes of earlier previews; given with its final images."""

    def __repr__(self) -> str:
        return f"<Preview: {_sized(self.images)} after scale {self.scale}{', final' if self.final else ''}>"


def _fields(index: int, text: Mapping[str, str]) -> dict[str, Any]:
    """What a pattern of names may hold."""
    label = slugify(text.get("label", "")) or "image"
    return {"index": index, "class": text.get("class", ""), "label": label, "seed": int(text["seed"])}


def _holds(path: Path, text: Mapping[str, str]) -> bool:
    """Whether a file is a picture with this text."""
    return (read_picture_text(path) or {}).items() >= text.items()


def _sized(images: NDArray[np.uint8]) -> str:
    count, height, width = images.shape[:3]
    return f"{counted(count, 'image')} of {width} x {height}"


def _few(values: NDArray[Any], most: int = 4) -> str:
    """The first of many numbers."""
    shown = ", ".join(map(str, values[:most].tolist()))
    return f"[{shown}{', ...' if len(values) > most else ''}]"


class ImageSource(Protocol):
    """What draws images: a `Pipeline` on this machine, or the models of a server."""

    max_batch: int
    """Images that run at once; more are split."""

    def generate(self, classes: Sequence[int], *, seeds: Sequence[int], **sampling: Unpack[SamplingOptions]) -> Result:
        """One image per class and seed. Raises `UsageError`, `BackendError`."""

    def stream(
        self, classes: Sequence[int], *, seeds: Sequence[int], **sampling: Unpack[SamplingOptions]
    ) -> Iterator[Preview]:
        """The same images after each scale, the last time whole. Raises as `generate`, and for too many at once."""

    def keeping(self, squares: NDArray[np.uint8], redrawn: Mask) -> dict[str, Any]:
        """What `generate` and `stream` take besides, so that they redraw a part of pictures.

        Args:
            squares: uint8 (B, R, R, 3), of the model's size; one stands for all images.
            redrawn: bool (B, S, S), the cells that are drawn anew; the others keep the tokens of the picture.

        """

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Squares uint8 (B, R, R, 3) through the tokens and back."""

    def describe_runtime(self) -> dict[str, Any]:
        """Versions, and what it computes on, for reports."""

    def close(self) -> None:
        """Free engines, or end the connection."""
