"""Changed graphs of a bundle, run in place of its own: what an INT8 layer costs, what half precision rounds, what a
layer sees.

    bundle --> model() --> changed in memory --> open() --> a folder: GRAPH.onnx, GRAPH.bin (what is new),
                                                   |                  weights.bin (a second name of the bundle's)
                                                   v
        Pipeline(bundle, OnnxRuntimeBackend(sessions=...))

The bundle stays what it is, on disk and in its manifest. With `emulated`, its graphs run as `calib.graphs.emulate`
rewrites them: in float32, which any CPU has, rounded wherever the bundle's own graphs round. So the manifest says BF16,
the figures are judged as those of BF16, and what computes, the cache included, is float32.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import onnx_ir as ir

from calib.graphs.emulate import emulate
from calib.graphs.layers import load_graph
from calib.graphs.weights import WeightFile
from calib.graphs.widen import widen
from engines.backends.onnxruntime.runner import Load, RunnableGraph
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import WEIGHTS
from engines.spec import contract
from engines.storage import link_or_copy


class ChangedGraphs(ExitStack[None]):
    """Context manager over the folder in which changed graphs find the bundle's weights.

    Sessions outlive it only where the file system keeps a file that was removed while it is open.
    """

    def __init__(
        self, bundle: Bundle, *, emulated: bool = False, rounded: bool = True, beside: Path | None = None
    ) -> None:
        """Args: bundle: whose graphs change; emulated: run them in float32 with the rounding of the bundle's precision;
        rounded: False leaves that rounding out, see `calib.graphs.emulate.emulate`;
        beside: where to put the folder. By default it is beside the bundle, where the weights take no copy, or among
        the system's temporary files where that cannot be written.
        """
        super().__init__()
        self._bundle, self._emulated, self._rounded = bundle, emulated, rounded
        if beside is None and os.access(bundle.path.parent, os.W_OK):
            beside = bundle.path.parent
        self._beside = beside

    def __enter__(self) -> ChangedGraphs:
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix=".graphs-", dir=self._beside)))
        link_or_copy(self._bundle.path / WEIGHTS, self._folder / WEIGHTS)
        return self

    def model(self, graph: str) -> ir.Model:
        """The bundle's own graph, to be changed and given to `open`; its weights stay in their file."""
        return load_graph(self._bundle.graph_path(graph))

    def open(self, graph: str, load: Load, model: ir.Model | None = None) -> RunnableGraph:
        """What runs for a graph: `model`, which is used up, or the bundle's own by default. See `Sessions`.

        Raises `BackendError`.
        """
        bundle, file = self._bundle, self._folder / f"{graph}.onnx"
        if model is None and not self._emulated:
            file = bundle.graph_path(graph, cpu=True)
        else:
            model = model or self.model(graph)
            if self._emulated:
                emulate(model, bundle.high_precision, rounded=self._rounded)
            else:
                widen(model, bundle.high_precision)
            with (self._folder / f"{graph}.bin").open("wb") as stream:
                WeightFile(stream).store(model, new_only=True)
            ir.save(model, file)
        precision = "fp32" if self._emulated else bundle.high_precision
        tensors = contract.resolve(contract.GRAPHS[graph], bundle.config, precision, smooth=bundle.smooth)
        return RunnableGraph(load(file), *tensors)
