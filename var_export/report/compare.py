"""The page of `var-export compare`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.evaluation.halves import Apart
from engines.fidelity.side_by_side import Drawing, Pair
from engines.judging.similarity import psnr
from engines.machine import Machine
from engines.words import counted
from var_export.report.evaluate import DISTANCES, cells
from var_export.report.facts import environment_facts
from var_export.report.page import write_page
from var_export.report.parts import Facts, Table, Tile
from var_export.report.pictures import FINE, amplification, amplified, difference, encode
from var_export.report.words import NOTHING, decibels, percent, size

MOST = 12
"""Images that are shown; of more, those that differ most."""


def write_compare(
    file: Path, sides: tuple[Drawing, Drawing], pairs: Sequence[Pair], *, tokens: Sequence[Apart] = (),
    machine: Machine, command: Sequence[str],
) -> int:  # fmt: skip
    """Write the page of two drawings; its size in bytes. Raises `UsageError` where it cannot be written.

    `tokens`: how far the histograms of their tokens are apart, over all scales and at each; or nothing.
    """
    one, other = sides
    alike, ratio = float(np.mean([pair.alike for pair in pairs])), other.seconds / one.seconds
    whole = psnr(one.images, other.images)
    tiles = [
        Tile("Tokens alike", percent(alike), f"of {counted(len(pairs), 'image')}, drawn freely"),
        Tile("Image PSNR", decibels(whole), "over all images"),
        Tile("Time", f"{ratio:.2f}", f"of the first's {one.seconds * 1e3:.0f} ms, median of images drawn alone"),
        Tile("Size", f"{other.facts['bytes'] / one.facts['bytes']:.2f}", f"of the first's {size(one.facts['bytes'])}"),
    ]
    headers = ("image", "tokens alike", "first other scale", "PSNR")
    rows = [
        (
            f"{pair.label}, seed {pair.seed}",
            percent(pair.alike),
            NOTHING if pair.first is None else str(pair.first),
            decibels(pair.psnr),
        )
        for pair in pairs
    ]
    return write_page(
        file,
        "compare",
        name=f"{one.title} | {other.title}",
        tiles=tiles,
        showcase=_showcase(sides, pairs),
        table=Table("Image by image", headers, rows),
        tokens=Table(
            "Histograms of tokens",
            DISTANCES,
            [(f"scale {scale - 1}" if scale else "all scales", *cells(each)) for scale, each in enumerate(tokens)],
        ),
        facts=[*(_facts(side, each) for side, each in zip(("First", "Second"), sides, strict=True)),
               environment_facts(machine)],
        command=shlex.join(command),
    )  # fmt: skip


def _showcase(sides: tuple[Drawing, Drawing], pairs: Sequence[Pair]) -> dict[str, Any]:
    one, other = sides
    chosen = sorted(sorted(range(len(pairs)), key=lambda place: pairs[place].psnr)[:MOST])
    differences = [difference(one.images[place], other.images[place]) for place in chosen]
    factor = amplification(differences)
    flat = [
        picture
        for place, apart in zip(chosen, differences, strict=True)
        for picture in (one.images[place], other.images[place], amplified(apart, factor))
    ]
    encoded = encode(flat)
    sources, made_to_fit = ([], "The pictures do not fit into a page.") if encoded is None else encoded
    comparisons = []
    for number, place in enumerate(chosen if sources else ()):
        pair = pairs[place]
        captions = (one.title, other.title, f"Difference × {factor}" if factor > 1 else "Difference")
        figures = ("", f"{percent(pair.alike)} of the tokens alike", decibels(pair.psnr))
        pictures = [
            {"source": source, "caption": caption, "figures": said, "alternative": f"{pair.label}: {caption}"}
            for source, caption, said in zip(sources[3 * number : 3 * number + 3], captions, figures, strict=True)
        ]
        comparisons.append({"title": pair.label, "how": f"class {pair.index}, seed {pair.seed}", "pictures": pictures})
    notes = [
        f"The {len(chosen)} of {len(pairs)} images that differ most." if len(chosen) < len(pairs) else "",
        f"Differences are shown {factor} times as bright as they are." if factor > 1 else "",
        made_to_fit,
    ]
    side = one.images.shape[1]
    return {"comparisons": comparisons, "note": " ".join(filter(None, notes)), "side": side, "fine": side < FINE}


def _facts(title: str, side: Drawing) -> Facts:
    runtime = side.facts["runtime"]
    pairs = [
        ("bundle", str(side.facts["name"])),
        ("precision", str(side.facts["precision"]).upper()),
        ("size", size(side.facts["bytes"])),
        ("time of an image", f"{side.seconds * 1e3:.1f} ms"),
        *((name, str(value)) for name, value in runtime.items() if value is not None),
    ]
    return Facts(title, pairs)
