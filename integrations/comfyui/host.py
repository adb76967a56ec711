"""What the nodes ask of ComfyUI itself: its progress bar, its Cancel button and its folder of models.

Everything is looked up when it is needed, and goes without where ComfyUI is not there, as in tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODELS = "var_export"
"""The folder inside ComfyUI's `models`, and the key in `extra_model_paths.yaml`, that bundles are looked for in."""


class ScaleWatch:
    """The `stop` of `Pipeline.generate`, asked before each scale: it moves ComfyUI's bar, and lets Cancel through.

    It never says true: where the user has pressed Cancel, ComfyUI's own exception passes through the drawing.
    """

    def __init__(self, steps: int) -> None:
        """`steps`: how many times it will be asked, which is the length of the bar."""
        self._steps, self._asked = steps, 0
        self._bar = _progress_bar(steps)

    def __call__(self) -> bool:
        """Before a scale. Raises ComfyUI's `InterruptProcessingException` once Cancel was pressed."""
        require_not_interrupted()
        self._show(self._asked)
        self._asked += 1
        return False

    def finish(self) -> None:
        """After the last scale: the bar is full."""
        self._show(self._steps)

    def _show(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update_absolute(done, self._steps)


def require_not_interrupted() -> None:
    """Raises ComfyUI's `InterruptProcessingException` where the user has pressed Cancel."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
    except ImportError:
        return
    throw_exception_if_processing_interrupted()


def model_folders() -> list[Path]:
    """Where a user of ComfyUI keeps bundles: `models/var_export`, and what `extra_model_paths.yaml` adds."""
    try:
        import folder_paths
    except ImportError:
        return []
    added = folder_paths.get_folder_paths(MODELS) if MODELS in folder_paths.folder_names_and_paths else []
    return list(dict.fromkeys([Path(folder_paths.models_dir) / MODELS, *map(Path, added)]))


def _progress_bar(steps: int) -> Any:
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    return ProgressBar(steps)
