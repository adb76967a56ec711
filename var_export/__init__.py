"""Run VAR image models outside PyTorch: from a checkpoint to a bundle that runs anywhere.

    checkpoint.py --> model/ (PyTorch reference) --> graphs/ (traced forms) --> export/ (ONNX) --> build.py (bundle)

The library's front door is here: `from var_export import Pipeline`. It needs no torch; exporting does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import engines
from engines import __all__

if TYPE_CHECKING:
    from engines import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(engines, name)
    raise AttributeError(f"module 'var_export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
