"""Reference and engine side by side, with what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle import Bundle
from engines.errors import UsageError
from engines.fidelity import Runs
from engines.labels import ClassNames
from engines.similarity import psnr
from var_export.report.pictures import BUDGET, FINE, amplification, difference, encode
from var_export.report.words import counted, decibels, guidance, number, percent

MOST = 8
"""Images of a page: of more, those that differ most."""


@dataclass(frozen=True)
class Shown:
    """One picture."""

    source: str
    """Its data URI."""
    caption: str
    alternative: str


@dataclass(frozen=True)
class Comparison:
    """The pictures of one image."""

    title: str
    how: str
    """How it was drawn."""
    figures: str
    """How far engine and reference are apart."""
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class Showcase:
    """Of all images, or of those that differ most."""

    comparisons: list[Comparison]
    notes: list[str]
    side: int
    """Pixels along one side."""
    fine: bool
    """Whether single pixels are to be seen."""


def showcase(bundle: Bundle, golden: Mapping[str, NDArray[Any]], runs: Runs, budget: int = BUDGET) -> Showcase:
    """The pictures of a page within `budget` bytes; figures are of the originals."""
    reference, forced, free = golden["image"], runs.forced.images, runs.free.images
    differences = [difference(a, b) for a, b in zip(reference, forced, strict=True)]
    factor = amplification(max(int(each.max()) for each in differences))
    errors = [float(np.mean(each.astype(np.float64) ** 2)) for each in differences]
    worst_first = sorted(range(len(errors)), key=lambda image: -errors[image])
    count = min(MOST, len(errors))
    while True:
        chosen = sorted(worst_first[:count])
        flat = [
            picture
            for image in chosen
            for picture in (reference[image], forced[image], differences[image] * np.uint8(factor), free[image])
        ]
        encoded = encode(flat, budget)
        if encoded is not None:
            break
        if count == 1:
            raise UsageError(f"not even one image of {bundle.config.image_size} pixels fits into a page")
        count //= 2

    same = [bool(np.array_equal(runs.free.tokens[image], golden["tokens"][image])) for image in range(len(errors))]
    alike = [float((runs.free.tokens[image] == golden["tokens"][image]).mean()) for image in range(len(errors))]
    names = ClassNames(bundle.config.transformer.num_classes, bundle.labels)
    amplified = f"Difference, {factor} × amplified" if factor > 1 else "Difference"
    comparisons = []
    for place, image in enumerate(chosen):
        label = int(golden["classes"][image])
        name = names.label(label)
        title = name if name == str(label) or label == names.unconditional else f"{name} (class {label})"
        sources = encoded.sources[4 * place : 4 * place + 4]
        captions = (
            ("PyTorch reference", f"{name}, drawn by the PyTorch reference"),
            ("Engine, same tokens", f"{name}, drawn by the engine with the reference's tokens"),
            (amplified, f"what differs between these two: {_apart(differences[image])}"),
            (
                "Engine, drawn freely",
                f"{name}, drawn freely by the engine: "
                + ("all tokens as the reference's" if same[image] else f"{percent(alike[image])} of the tokens alike"),
            ),
        )
        shown = tuple(Shown(s, caption, words) for s, (caption, words) in zip(sources, captions, strict=True))
        freely = "the same tokens" if same[image] else f"{percent(alike[image])} of the tokens alike"
        figures = f"{_quality(reference[image], forced[image])}; {_apart(differences[image])}; drawn freely, {freely}"
        comparisons.append(Comparison(title, _how(golden, image), figures, shown))
    notes = [] if not encoded.note else [encoded.note]
    if count < len(errors):
        notes.insert(0, f"Of {counted(len(errors), 'image')}, the {count} that differ most.")
    side = bundle.config.image_size
    return Showcase(comparisons, notes, side, side < FINE)


def _quality(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> str:
    value = psnr(a, b)
    return "identical pixels" if np.isinf(value) else f"PSNR {decibels(value)}"


def _apart(differences: NDArray[np.uint8]) -> str:
    largest = int(differences.max())
    if largest == 0:
        return "no pixel differs"
    return f"largest difference {largest}/255, mean {number(float(differences.mean()), 2)}/255"


def _how(golden: Mapping[str, NDArray[Any]], image: int) -> str:
    settings: Sequence[str] = [f"seed {int(golden['seeds'][image])}", guidance(float(golden["cfg"][image]))]
    top_k, top_p = int(golden["top_k"][image]), float(golden["top_p"][image])
    more = [f"top-k {top_k}"] * bool(top_k) + [f"top-p {top_p:g}"] * bool(top_p)
    return ", ".join([*settings, *more])
