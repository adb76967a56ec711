"""Engines of a bundle with a few graphs changed, to see what one change does to the figures. Torch-free.

    base bundle --> models() --> changed in memory --> GRAPH.onnx, GRAPH.bin (new), weights.bin (the base's)
                                                          |
                    unchanged graphs: opened once  -------+--> Pipeline --> Figures

All run on ONNX Runtime's CPU; graphs for GPUs run with their rounding emulated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calib.graphs.emulate import emulate
from calib.graphs.weights import WeightFile
from engines.backends.onnxruntime.library import cpu_session
from engines.backends.onnxruntime.runner import OnnxRuntimeBackend, OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import WEIGHTS
from engines.draw.pipeline import Pipeline
from engines.fidelity.checks import logits_agreement, mean_agreement, reconstruction_loss
from engines.fidelity.reports import Agreement
from engines.fidelity.similarity import psnr
from engines.spec.contract import DECODER, PART_OF, TRANSFORMER
from engines.storage import link_or_copy


@dataclass(frozen=True)
class Figures:
    """Of one part, against the golden run; the others are None."""

    total: Agreement | None = None
    scales: tuple[Agreement, ...] = ()
    psnr: float | None = None
    """Of images from the reference's feature maps, dB; infinite where they are equal."""
    reconstruction_loss: float | None = None


class Variants:
    """Context manager: variants of `base`, one at a time."""

    def __init__(
        self,
        base: Bundle,
        *,
        golden: Mapping[str, NDArray[Any]] | None = None,
        images: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Args: golden: the run to judge by, the bundle's own by default; images: of it, the first so many."""
        self.base = base
        self._golden = {name: array[:images] for name, array in (golden or base.golden).items()}
        self._sessions = _Sessions(threads)
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._half = base.high_precision != "fp32"

    def __enter__(self) -> Variants:
        beside = self.base.path.parent  # where the weights take no copy
        place = beside if os.access(beside, os.W_OK) else None
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=".variants-", dir=place)))
        link_or_copy(self.base.path / WEIGHTS, self._folder / WEIGHTS)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._sessions.clear()
        self._stack.close()

    def models(self, part: str) -> dict[str, ir.Model]:
        """The graphs with layers of a part, to be changed and given to `figures`."""
        return {graph: ir.load(self.base.graph_path(graph)) for graph, of in PART_OF.items() if of == part}

    def figures(self, part: str, models: Mapping[str, ir.Model] | None = None) -> Figures:
        """What the engines of a part give with these graphs in place of the base's."""
        changed = self._written(models or {})
        golden = self._golden
        with self._pipeline(changed) as pipeline:
            if part == TRANSFORMER:
                scales = logits_agreement(pipeline, golden)
                return Figures(mean_agreement(scales), tuple(scales))
            if part == DECODER:
                return Figures(psnr=psnr(pipeline.decode_features(golden["f_hat"]), golden["image"]))
            encoded = pipeline.encode(golden["image"])
            return Figures(reconstruction_loss=reconstruction_loss(pipeline, golden, encoded))

    def _written(self, models: Mapping[str, ir.Model]) -> dict[str, Path]:
        assert self._folder is not None
        files = {}
        for graph, model in models.items():
            emulate(model, self.base.high_precision)
            with WeightFile(self._folder, f"{graph}.bin") as weights:
                weights.store(model, new_only=True)
            files[graph] = self._folder / f"{graph}.onnx"
            ir.save(model, files[graph])
        return files

    @contextlib.contextmanager
    def _pipeline(self, changed: Mapping[str, Path]) -> Iterator[Pipeline]:
        for graph in self.base.graphs:
            if graph not in changed and graph not in self._sessions.files and graph != "fused":
                self._sessions.files[graph] = self._unchanged(graph)
        runnable = (
            Bundle(self.base.path, dataclasses.replace(self.base.manifest, precision="fp32"))
            if self._half
            else self.base
        )
        self._sessions.changed = dict(changed)
        with Pipeline(runnable, self._sessions, form="stepwise", max_batch=len(self._golden["tokens"])) as pipeline:
            yield pipeline

    def _unchanged(self, graph: str) -> Path:
        if not self._half:
            return self.base.graph_path(graph)
        assert self._folder is not None
        model = ir.load(self.base.graph_path(graph))
        emulate(model, self.base.high_precision)
        file = self._folder / f"base-{graph}.onnx"
        ir.save(model, file)
        return file


class _Sessions(OnnxRuntimeBackend):
    """Opens the changed graphs anew each time, and each of the others once."""

    def __init__(self, threads: int | None) -> None:
        super().__init__("cpu", threads)
        self.files: dict[str, Path] = {}
        self.changed: dict[str, Path] = {}
        self._kept: dict[str, Any] = {}

    def open(self, bundle: Bundle, graph: str) -> OnnxRuntimeEngine:
        """See `Backend`."""
        if graph in self.changed:
            session = self._load(self.changed[graph])
        else:
            session = self._kept[graph] = self._kept.get(graph) or self._load(self.files[graph])
        return OnnxRuntimeEngine(self, graph, session, {}, *bundle.tensors(graph))

    def _load(self, file: Path) -> Any:
        return cpu_session(file, self.threads, f"loading {file.name}")

    def clear(self) -> None:
        """Let go of all sessions."""
        self._kept.clear()
