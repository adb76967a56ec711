"""What every build of a bundle does with its graphs, traced or quantised: store, stitch, check. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.fuse import fuse
from calib.graphs.weights import WeightFile
from calib.graphs.widen import widen
from engines.bundle.manifest import WEIGHTS, Manifest, StoredTensor, graph_file
from engines.progress import Progress
from engines.spec.choices import FUSED


def write_graphs(
    folder: Path,
    manifest: Manifest,
    models: Iterable[tuple[str, ir.Model]],
    constants: Mapping[str, NDArray[np.float32]],
    progress: Progress,
) -> Manifest:
    """`store_graphs` of the stepwise form's graphs, which `models` are, and of the fused one stitched from them."""

    def graphs() -> Iterator[tuple[str, ir.Model]]:
        made: dict[str, ir.Model] = {}
        for name, model in models:
            made[name] = model
            yield name, model
        if FUSED in manifest.graphs:
            progress(f"graph: {FUSED}")
            yield FUSED, fuse(manifest.config, manifest.high_precision, made, constants, smooth=manifest.smooth)

    return store_graphs(folder, manifest, graphs(), constants)


def store_graphs(
    folder: Path,
    manifest: Manifest,
    models: Iterable[tuple[str, ir.Model]],
    constants: Mapping[str, NDArray[np.float32]],
) -> Manifest:
    """Write the ONNX files and the weight file of a bundle; returns its manifest with the places of the constants.

    The large tensors of each of the `models` are written before the next is asked for, so that only one is in memory;
    those that the form lacks lend their weights alone. `constants` are those of the scale loop, by the names that
    `engines.draw.workspace.Constants` reads.
    """
    made: dict[str, ir.Model] = {}
    with (folder / WEIGHTS).open("wb") as stream:
        weights = WeightFile(stream)
        for name, model in models:
            weights.store(model)
            made[name] = model
        stored = {name: StoredTensor(str(a.dtype), a.shape, weights.add(a)) for name, a in constants.items()}
    for name in manifest.graphs:
        model = made[name]
        for cpu in (False, True):
            file = folder / graph_file(name, manifest.precision, cpu=cpu)
            if file.exists():  # one for both
                continue
            if cpu:
                widen(model, manifest.precision)
            ir.save(model, file)
            full = manifest.precision != "bf16"  # ONNX has no convolution in BF16 at this opset; TensorRT does
            onnx.checker.check_model(str(file), full_check=full)
    return replace(manifest, constants=stored)
