"""What half precision cannot hold: found in the golden run, kept in float32 where that is possible, refused elsewhere.

FP16 ends at 65,504. A CPU that computes FP16 graphs in float32 does not notice; a GPU, and a CPU with FP16 arithmetic,
goes on with infinities, and a GroupNorm behind makes every pixel of them black.

    sealed bundle --> measure() --> values beyond the limit --> keep_fp32() in every graph --> sealed again
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from calib.graphs.keep import keep_fp32
from calib.graphs.layers import layer_of, load_graph
from calib.graphs.writing import store_graphs
from calib.observe.reach import Reach, home, measure
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import Manifest
from engines.bundle.writer import BundleWriter
from engines.errors import CheckFailedError, UsageError
from engines.progress import Progress
from engines.spec.policy import matches

LARGEST = {"fp16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127}
"""The largest number of each half-precision type."""
ROOM = 2
"""Values are kept in float32 from this part of `LARGEST` on: other images reach further than those of a golden run."""


def fitted(
    writer: BundleWriter,
    manifest: Manifest,
    patterns: Sequence[str],
    threads: int | None,
    progress: Progress,
) -> Bundle:
    """Seal the folder of a half-precision build, with what the type cannot hold kept in float32.

    `manifest`: of the graphs that lie there. `patterns`: shell patterns over names of layers to keep in any case. What
    is kept is recorded in the manifest's provenance.

    Raises `CheckFailedError` where the cache cannot hold a value, or one is not finite even in float32; `UsageError`
    for a pattern that fits no layer.
    """
    made = writer.seal(manifest)
    progress(f"check: what {made.high_precision.upper()} cannot hold in the golden run")
    reaches = measure(made, threads)
    refuse_overflow(made, (reach for reach in reaches if reach.is_output or math.isnan(reach.largest)))
    for pattern in patterns:
        if not any(matches(reach.layer, (pattern,)) for reach in reaches if reach.of_layer):
            raise UsageError(f"no layer is called like {pattern!r}; docs/int8.md says what they are called")
    limit = LARGEST[made.high_precision] / ROOM
    beyond = [reach for reach in reaches if reach.largest > limit and not reach.is_output]
    by_hand = [reach for reach in reaches if reach.of_layer and matches(reach.layer, patterns)]
    if not (beyond or by_hand):
        return made
    kept: list[str] = []
    values = {(reach.graph, reach.value) for reach in (*beyond, *by_hand)}
    progress(f"keeping {len(values)} values in FP32")
    manifest = _rewritten(made, writer.folder, manifest, values, kept)
    furthest = {reach.layer: reach.largest for reach in sorted(reaches, key=lambda reach: reach.largest)}
    record = {"largest": {name: furthest.get(name) for name in kept}, "patterns": list(patterns)}
    return writer.seal(replace(manifest, provenance={**manifest.provenance, "kept_fp32": record}))


def refuse_overflow(bundle: Bundle, reaches: Iterable[Reach]) -> None:
    """Raises `CheckFailedError` that names the values which the half-precision type of a bundle cannot hold."""
    name = bundle.high_precision
    over = [reach for reach in reaches if not reach.largest <= LARGEST[name]]
    if over:
        places = list(dict.fromkeys(map(str, over)))
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        raise CheckFailedError(
            f"{name.upper()} holds numbers up to {LARGEST[name]:,.7g}, but in the golden run "
            f"{', '.join(places[:3])}{more}; build with --precision {'bf16 or fp32' if name == 'fp16' else 'fp32'}"
        )


def _rewritten(
    made: Bundle, folder: Path, manifest: Manifest, values: set[tuple[str, str]], kept: list[str]
) -> Manifest:
    """Store the graphs of a bundle anew, with these values of these graphs in float32; `kept` gains names of layers."""

    def models() -> Iterator[tuple[str, ir.Model]]:
        for file in made.graphs:
            model = load_graph(made.graph_path(file))
            names = {value.name or "" for node in model.graph for value in node.outputs}
            nodes = keep_fp32(model, made.high_precision, {name for name in names if home(file, name)[:2] in values})
            kept.extend(layer for node in nodes if (layer := layer_of(node, file)) and layer not in kept)
            yield file, model

    constants = {name: made.constant(name) for name in made.constants}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kept-") as new:
        manifest = store_graphs(Path(new), manifest, models(), constants)
        for file in Path(new).iterdir():
            file.replace(folder / file.name)
    return manifest
