"""The torch-free runtime: bundles, backends, the scale loop, fidelity, and the `var-run` command.

    cli/       the terminal of `var-run`              draw/      from a request to images: front door, scale loop
    sizing/    what a model needs on a device         backends/  the runtimes: ONNX Runtime, OpenVINO, TensorRT
    triton/    model repositories, and what serves    bundle/    the folder on disk, verified
    host/      what works on this machine             spec/      what a model is, in numbers; the table of graphs
    files/     arrays, sinks, jobs that resume        errors, machine: what everybody stands on
    editing/   any picture <-> the model's square     pictures/  pictures in and out, grids
    fidelity/  engines against the reference          judging/   figures beside what they must be

Names are loaded when they are first used: `import engines` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.draw.collaboration import Collaboration
    from engines.draw.pipeline import Pipeline
    from engines.draw.results import Preview, Result
    from engines.editing.canvas import Canvas
    from engines.errors import (
        BackendError,
        BundleError,
        CancelledError,
        CheckFailedError,
        CheckpointError,
        OutOfMemoryError,
        UsageError,
        VarExportError,
    )

_HOME = {
    "Bundle": "bundle.bundle",
    "Canvas": "editing.canvas",
    "Collaboration": "draw.collaboration",
    "Pipeline": "draw.pipeline",
    "Preview": "draw.results",
    "Result": "draw.results",
}
"""Where names come from that are no errors."""

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CancelledError",
    "Canvas",
    "CheckFailedError",
    "CheckpointError",
    "Collaboration",
    "OutOfMemoryError",
    "Pipeline",
    "Preview",
    "Result",
    "UsageError",
    "VarExportError",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"engines.{_HOME.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'engines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
