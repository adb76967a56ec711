"""The same requests drawn twice: by two bundles, two backends, or on two machines, and how far apart they come out.

classes, seeds, sampling --> draw --> Drawing  --+
draw --> Drawing  --+--> compare --> a Pair for each image
|
+--> .npz file --> another machine
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array
from engines.draw.pipeline import Pipeline
from engines.errors import UsageError
from engines.foreign import MALFORMED, parse_json, read_arrays
from engines.judging.similarity import psnr
from engines.progress import Progress, Steps, silent
from engines.storage import atomic_write

FORMAT = "var-export drawing 1"
_ARRAYS = {"images": (np.uint8, 4), "tokens": (np.int64, 2), "classes": (np.int64, 1), "seeds": (np.uint64, 1)}
_FACTS, _MAX_FACTS = "facts", 1 << 22


@dataclass(frozen=True)
class Drawing:
    """What one side drew, and by what."""

    images: NDArray[np.uint8]
    """(B, h, w, 3)."""
    tokens: NDArray[np.int64]
    """(B, T), coarse to fine."""
    classes: NDArray[np.int64]
    """(B,)."""
    seeds: NDArray[np.uint64]
    """(B,)."""
    facts: Mapping[str, Any]
    """`name` of the bundle's folder, `precision`, `bytes` of its files, `labels` of the images, `scales` of the model,
    `sampling` of the images, `seconds` of each, `runtime`."""

    @property
    def title(self) -> str:
        """What to call this side."""
        runtime = self.facts["runtime"]
        return f"{self.facts['name']}, {runtime.get('backend', '')} {runtime.get('hint') or ''}".strip(", ")

    @property
    def seconds(self) -> float:
        """The median of what an image took, drawn alone."""
        return float(np.median(self.facts["seconds"]))

    def save(self, file: Path) -> None:
        """Write to an .npz file, whole or not at all. Raises `UsageError` where it cannot be written."""
        facts = np.frombuffer(json.dumps({"format": FORMAT, **self.facts}).encode(), np.uint8)
        with atomic_write(file) as stream:
            np.savez_compressed(
                stream, images=self.images, tokens=self.tokens, classes=self.classes, seeds=self.seeds, facts=facts
            )

    @classmethod
    def load(cls, file: Path) -> Drawing:
        """What `save` wrote. Raises `UsageError`."""

        def accept(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
            kind, dimensions = (np.uint8, 1) if name == _FACTS else _ARRAYS[name]
            if dtype != kind or len(shape) != dimensions or (name == _FACTS and shape[0] > _MAX_FACTS):
                raise ValueError(f"{name} has the type {dtype} and the shape {shape}")

        what = ".npz file of var-export compare"
        arrays: dict[str, Any] = read_arrays(file, (*_ARRAYS, _FACTS), accept, what=what)
        try:
            facts = parse_json(arrays.pop(_FACTS).tobytes())
            if facts.pop("format") != FORMAT:
                raise ValueError("another format")
            found = cls(**arrays, facts=facts)
            found.check()
        except MALFORMED as error:
            raise UsageError(f"{file} is no drawing that var-export compare saved: save it again") from error
        return found

    def check(self) -> None:
        """Raise `ValueError`, or another of `engines.foreign.MALFORMED`, where the parts do not fit each other."""
        facts, count = self.facts, len(self.images)
        counts = {len(each) for each in (self.tokens, self.classes, self.seeds, facts["labels"], facts["seconds"])}
        if not count or counts != {count} or self.images.shape[3] != 3 or self.classes.min() < 0:
            raise ValueError("its images are not all described")
        sides = [int(side) for side in facts["scales"]]
        if min(sides) < 1 or sum(side * side for side in sides) != self.tokens.shape[1]:
            raise ValueError("its tokens are not those of its scales")
        if not all(isinstance(facts[name], dict) for name in ("runtime", "sampling")):
            raise ValueError("it does not say how it was drawn")
        if not (
            min(map(float, facts["seconds"])) > 0 and float(facts["bytes"]) > 0 and facts["name"] and facts["precision"]
        ):
            raise ValueError("it does not say by what it was drawn")


@dataclass(frozen=True)
class Pair:
    """One image of both sides."""

    index: int
    """The index of the class that was drawn."""
    label: str
    seed: int
    alike: float
    """Share of the tokens that are the same."""
    first: int | None
    """The first scale with another token; None where all are the same."""
    psnr: float
    """How alike the two images are, in dB; infinite where they are equal."""


def draw(pipeline: Pipeline, name: str, classes: Sequence[int], seeds: Sequence[int], *, progress: Progress = silent,
         **sampling: Any) -> Drawing:  # fmt: skip
    """Draw images one by one, so that each has a time of its own; the first is drawn once before, to warm up.

    Raises what `Pipeline.generate` raises.
    """
    results, seconds = [], []
    pipeline.generate(classes[0], seeds=seeds[0], **sampling)
    for place, (index, seed) in enumerate(zip(classes, seeds, strict=True)):
        progress(f"drawing with {name}", Steps(place, len(classes)))
        began = time.perf_counter()
        results.append(pipeline.generate(index, seeds=seed, **sampling))
        seconds.append(time.perf_counter() - began)
    bundle = pipeline.bundle
    facts = {
        "name": name,
        "precision": bundle.precision,
        "bytes": bundle.total_bytes,
        "labels": [result.texts[0]["label"] for result in results],
        "scales": list(bundle.config.patch_nums),
        "sampling": sampling,
        "seconds": seconds,
        "runtime": pipeline.describe_runtime(),
    }
    images, tokens = (np.concatenate([getattr(result, what) for result in results]) for what in ("images", "tokens"))
    return Drawing(images, tokens, np.array(classes, np.int64), np.array(seeds, np.uint64), facts)


def compare(one: Drawing, other: Drawing) -> list[Pair]:
    """Both sides, image by image. Raises `UsageError` where they did not draw the same requests at the same size."""
    _check(one, other)
    ends = np.cumsum(np.square(one.facts["scales"]))
    pairs = []
    for place, label in enumerate(one.facts["labels"]):
        differs: Array = np.flatnonzero(one.tokens[place] != other.tokens[place])
        pairs.append(
            Pair(
                int(one.classes[place]),
                str(label),
                int(one.seeds[place]),
                1 - len(differs) / one.tokens.shape[1],
                int(np.searchsorted(ends, differs[0], side="right")) if len(differs) else None,
                psnr(one.images[place], other.images[place]),
            )
        )
    return pairs


def _check(one: Drawing, other: Drawing) -> None:
    if one.images.shape != other.images.shape or one.tokens.shape != other.tokens.shape:
        sizes = " and ".join(f"{len(each.images)} of {each.images.shape[1]} pixels" for each in (one, other))
        raise UsageError(f"{one.title} and {other.title} drew other images, {sizes}: compare the same requests")
    same = np.array_equal(one.classes, other.classes) and np.array_equal(one.seeds, other.seeds)
    if not same or one.facts["sampling"] != other.facts["sampling"] or one.facts["scales"] != other.facts["scales"]:
        raise UsageError(
            f"{one.title} and {other.title} drew other classes, seeds or settings: compare the same requests"
        )
