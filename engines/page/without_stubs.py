"""Gradio without the stubs for editors that it writes beside itself whenever it is imported.

They take half of the import's time, and the folder that they go to is none of ours: it may be read-only, or shared.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_WRITER, _FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


class WithoutStubs(MetaPathFinder):
    """Finds the one module that writes them, and has it write none; put it first in `sys.meta_path`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        if name != _WRITER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def quietly(module: ModuleType) -> None:
                execute(module)
                setattr(module, _FUNCTION, lambda *_: None)

            loader.exec_module = quietly
        return spec


def import_quickly() -> None:
    """Import gradio, once, so that nothing is written."""
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, WithoutStubs())
    import gradio  # noqa: F401
