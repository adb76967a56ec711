"""Reference and engine side by side, with what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.bundle import Bundle
from engines.bundle.labels import ClassNames
from engines.errors import UsageError
from engines.fidelity.checks import Runs
from engines.judging.similarity import psnr
from engines.words import counted, guidance
from var_export.report.pictures import BUDGET, FINE, amplification, amplified, difference, encode
from var_export.report.words import decibels, number, percent

MOST = 8
"""Images of a page: of more, those that differ most."""


def showcase(bundle: Bundle, golden: Mapping[str, NDArray[Any]], runs: Runs, budget: int = BUDGET) -> dict[str, Any]:
    """The pictures of a page within `budget` bytes, as its template takes them; figures are of the originals.

    Of each image that is shown: title, how it was drawn, and the source, caption, figures and alternative text of each
    of its pictures. Then a note, the pixels along one side, and whether single pixels are to be seen.
    """
    reference, forced, free = golden["image"], runs.forced.images, runs.free.images
    differences = [difference(a, b) for a, b in zip(reference, forced, strict=True)]
    factor = amplification(differences)
    errors = [float(np.mean(each.astype(np.float64) ** 2)) for each in differences]
    worst_first = sorted(range(len(errors)), key=lambda image: -errors[image])
    count = min(MOST, len(errors))
    while True:
        chosen = sorted(worst_first[:count])
        flat = [
            picture
            for image in chosen
            for picture in (reference[image], forced[image], amplified(differences[image], factor), free[image])
        ]
        encoded = encode(flat, budget)
        if encoded is not None:
            break
        if count == 1:
            raise UsageError(f"not even one image of {bundle.config.image_size} pixels fits into a page")
        count //= 2

    sources, made_to_fit = encoded
    names = ClassNames(bundle.config.transformer.num_classes, bundle.labels)
    comparisons = []
    for place, image in enumerate(chosen):
        label = int(golden["classes"][image])
        name, title = _names(names, label)
        share = float((runs.free.tokens[image] == golden["tokens"][image]).mean())
        freely = "the reference's tokens" if share == 1 else f"{percent(share)} of the tokens alike"
        quality = psnr(reference[image], forced[image])
        forcedly = "identical pixels" if np.isinf(quality) else f"PSNR {decibels(quality)}"
        said = (
            ("PyTorch reference", "", f"{name}, drawn by the PyTorch reference"),
            ("Engine, same tokens", forcedly, f"{name}, drawn by the engine"),
            (
                f"Difference × {factor}" if factor > 1 else "Difference",
                _apart(differences[image]),
                f"{name}, what differs between reference and engine: {_apart(differences[image])}",
            ),
            ("Engine, drawn freely", freely, f"{name}, drawn freely by the engine: {freely}"),
        )
        pictures = [
            {"source": source, "caption": caption, "figures": figures, "alternative": alternative}
            for source, (caption, figures, alternative) in zip(sources[4 * place : 4 * place + 4], said, strict=True)
        ]
        comparisons.append({"title": title, "how": _how(golden, image), "pictures": pictures})
    notes = [
        f"The {count} of {counted(len(errors), 'image')} that differ most." if count < len(errors) else "",
        f"Differences are shown {factor} times as bright as they are." if factor > 1 else "",
        made_to_fit,
    ]
    side = bundle.config.image_size
    return {"comparisons": comparisons, "note": " ".join(filter(None, notes)), "side": side, "fine": side < FINE}


def _names(names: ClassNames, label: int) -> tuple[str, str]:
    """What a class is called in a sentence, and above its pictures."""
    name = names.short_label(label)
    if name == str(label):
        return f"class {label}", f"class {label}"
    return ("no class", "no class") if label == names.unconditional else (name, f"{name} (class {label})")


def _apart(differences: NDArray[np.uint8]) -> str:
    largest = int(differences.max())
    if largest == 0:
        return "no pixel differs"
    return f"at most {largest}/255, mean {number(float(differences.mean()), 2)}/255"


def _how(golden: Mapping[str, NDArray[Any]], image: int) -> str:
    settings: Sequence[str] = [f"seed {int(golden['seeds'][image])}", guidance(float(golden["cfg"][image]))]
    top_k, top_p = int(golden["top_k"][image]), float(golden["top_p"][image])
    more = [f"top-k {top_k}"] * bool(top_k) + [f"top-p {top_p:g}"] * bool(top_p)
    return ", ".join([*settings, *more])
