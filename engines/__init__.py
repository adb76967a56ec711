"""The torch-free runtime: bundles, backends, the scale loop, fidelity, and the `var-run` command.

    bundle.py      what lies on disk, verified        backends/   ONNX Runtime (TensorRT in a later version)
    contract.py    the table of graph tensors         loop.py     the scale loop over prepared calls
    pipeline.py    the front door                     fidelity.py engines against the reference's golden run
    editing/       parts of pictures redrawn
    triton/        model repositories and what their Python models do

Names are loaded when they are first used: `import engines` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.bundle import Bundle
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
    from engines.pipeline import Pipeline
    from engines.results import Preview, Result

_HOME = {
    "Bundle": "bundle",
    "Pipeline": "pipeline",
    "Preview": "results",
    "Result": "results",
    "BackendError": "errors",
    "BundleError": "errors",
    "CancelledError": "errors",
    "CheckFailedError": "errors",
    "CheckpointError": "errors",
    "OutOfMemoryError": "errors",
    "UsageError": "errors",
    "VarExportError": "errors",
}

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CancelledError",
    "CheckFailedError",
    "CheckpointError",
    "OutOfMemoryError",
    "Pipeline",
    "Preview",
    "Result",
    "UsageError",
    "VarExportError",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"engines.{_HOME[name]}"), name)
    raise AttributeError(f"module 'engines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
