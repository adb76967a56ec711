"""Settings that belong together, by a word of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a word stands for; what a user gives beside it counts instead."""

    classes: str
    """The classes, written as `--class` takes them."""
    count: int
    """Images of each class."""
    sampling: Mapping[str, Any]
    """Options of `engines.spec.sampling`, by name."""
    num_classes: int
    """How many classes the models have that it is for."""

    def check(self, name: str, num_classes: int) -> None:
        """Raise `UsageError` where a model has other classes; `name`: of the preset."""
        if num_classes != self.num_classes:
            raise UsageError(
                f"--preset {name} is for checkpoints of {self.num_classes} classes, and this one has {num_classes}: "
                f"give --class {self.classes} --count {self.count} and the sampling options yourself"
            )


PRESETS = {
    # As the README of FoundationVision/VAR has it, for every depth: 50,000 images of ImageNet's classes.
    "fid": Preset(
        classes="all",
        count=50,
        sampling={"cfg": 1.5, "temperature": 1.0, "top_k": 900, "top_p": 0.96, "smooth": False, "cfg_scales": 0},
        num_classes=1000,
    )
}
