"""Engines of a bundle with a few graphs changed, to see what one change does to the figures. Torch-free.

    base bundle --> models() --> changed in memory ----+
                                                       v
            unchanged graphs: opened once --> ChangedGraphs --> Pipeline --> Figures

All run on ONNX Runtime's CPU; graphs in half precision run with their rounding emulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from calib.calibration import Calibration
from calib.choose.options import QuantisationOptions
from calib.graphs.changed import ChangedGraphs
from calib.rewrite.integers import rewritten
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.backends.onnxruntime.runner import Load, RunnableGraph
from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.draw.rerun import logits_agreement, reconstruction_loss
from engines.judging.agreement import Agreement, mean_agreement
from engines.judging.similarity import psnr
from engines.spec.contract import DECODER, PART_OF, TRANSFORMER


@dataclass(frozen=True)
class Figures:
    """Of one part, against the golden run; the others are None."""

    total: Agreement | None = None
    scales: tuple[Agreement, ...] = ()
    psnr: float | None = None
    """Of images from the reference's feature maps, dB; infinite where they are equal."""
    reconstruction_loss: float | None = None


class Variants(ExitStack[None]):
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
        super().__init__()
        self._base, self._threads = base, threads
        self._golden = {name: array[:images] for name, array in (golden or base.golden).items()}
        self._graphs = ChangedGraphs(base, emulated=base.high_precision != "fp32")
        self._unchanged: dict[str, RunnableGraph] = {}

    def __enter__(self) -> Variants:
        self.enter_context(self._graphs)
        self.callback(self._unchanged.clear)
        return self

    def models(self, part: str) -> dict[str, ir.Model]:
        """The graphs with layers of a part, to be changed and given to `figures`."""
        return {graph: self._graphs.model(graph) for graph, of in PART_OF.items() if of == part}

    def figures(self, part: str, models: Mapping[str, ir.Model] | None = None) -> Figures:
        """What the engines of a part give with these graphs in place of the base's; they are used up."""
        golden = self._golden

        def sessions(graph: str, load: Load) -> RunnableGraph:
            if models and graph in models:
                return self._graphs.open(graph, load, models[graph])
            if graph not in self._unchanged:
                self._unchanged[graph] = self._graphs.open(graph, load)
            return self._unchanged[graph]

        backend = OnnxRuntimeBackend(threads=self._threads, sessions=sessions)
        with Pipeline(self._base, backend, form="stepwise", max_batch=len(golden["tokens"])) as pipeline:
            if part == TRANSFORMER:
                scales = logits_agreement(pipeline, golden)
                return Figures(mean_agreement(scales), tuple(scales))
            if part == DECODER:
                return Figures(psnr=psnr(pipeline.decode_features(golden["f_hat"]), golden["image"]))
            encoded = pipeline.encode(golden["image"])
            return Figures(reconstruction_loss=reconstruction_loss(pipeline, golden, encoded))

    def quantised(
        self, part: str, ways: Mapping[str, str], calibration: Calibration, options: QuantisationOptions
    ) -> Figures:
        """What a part gives with these layers of the float base computed in these ways, and all others as they are."""
        return self.figures(part, dict(rewritten(self.models(part), ways, calibration, options)))
