"""The calibration cache: statistics of a model's activations, as a JSON file.

It belongs to one checkpoint and one set of requests, not to a target or a precision: ranges for every target are
chosen from it, without running the model again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calib.statistics import Statistics
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.foreign import MALFORMED, read_json
from engines.storage import digest_of, write_json

if TYPE_CHECKING:
    from calib.graphs.layers import Layer  # needs onnx-ir, which a reader of the file may lack

FORMAT = "var-export calibration 1"
INPUT, OUTPUT = "input", "output"
"""Of a layer: its statistics are called `step/blocks.0.fc1:input`."""


@dataclass
class Calibration:
    """Statistics by `LAYER:input` or `LAYER:output`."""

    model: str
    """`golden_key` of the bundle: checkpoint, configuration and sampling defaults."""
    requests: dict[str, Any]
    done: int = 0
    """Requests that are in it."""
    tensors: dict[str, Statistics] = field(default_factory=dict)
    smoothing: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Factors (K,) by layer; the statistics of their inputs are those of the divided ones."""

    @classmethod
    def resume(cls, file: Path, wanted: Calibration) -> Calibration | None:
        """What an interrupted run left in `file`, if it was the same run."""
        try:
            found = cls.load(file)
        except UsageError:
            return None
        return found if (found.model, found.requests) == (wanted.model, wanted.requests) else None

    @classmethod
    def load(cls, file: Path) -> Calibration:
        """Read. Raises `UsageError` where it is none, or damaged."""
        document = read_json(file, remedy="make it again")
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {document['format']!r:.60}")
            tensors = {name: Statistics.from_dict(entry) for name, entry in document["tensors"].items()}
            smoothing = {name: np.array(values, np.float32) for name, values in document["smoothing"].items()}
            return cls(str(document["model"]), dict(document["requests"]), int(document["done"]), tensors, smoothing)
        except MALFORMED as error:
            raise UsageError(f"{file} is no calibration of this version ({error!s:.200}); make it again") from error

    def save(self, file: Path, *, exact: bool = False) -> None:
        """Write in one step; `exact`: with all digits, to go on from. Raises `UsageError` where it cannot be."""
        write_json(file, {"format": FORMAT, "done": self.done, **self._content(exact=exact)}, indent=None)

    def digest(self) -> str:
        """SHA-256 of what it says."""
        return digest_of(self._content())

    def _content(self, *, exact: bool = False) -> dict[str, Any]:
        return {
            "model": self.model,
            "requests": self.requests,
            "smoothing": {name: [float(f"{x:.6g}") for x in self.smoothing[name]] for name in sorted(self.smoothing)},
            "tensors": {name: self.tensors[name].to_dict(exact=exact) for name in sorted(self.tensors)},
        }

    def check_model(self, bundle: Bundle, file: Path | None = None) -> None:
        """Raises `UsageError` where it is of another model."""
        if self.model != bundle.golden_key:
            raise UsageError(
                f"{file or 'the calibration'} was made with another checkpoint, configuration or version than "
                f"{bundle.path}; remove it, or name another file with --calibration"
            )

    def check_layers(self, layers: Iterable[Layer], scales: int) -> None:
        """Raises `UsageError` where a layer with static ranges, or a scale of one in the transformer, was not reached:
        its input, or the output of a convolution.
        """
        for layer in layers:
            for kind in (INPUT, OUTPUT) if layer.is_conv else (INPUT,):
                statistics = self.tensors.get(f"{layer.name}:{kind}")
                if statistics is None or statistics.count == 0:
                    raise UsageError(f"calibration never reached {layer.name}")
                missing = [scale for scale in range(scales) if scale not in statistics.scales]
                if layer.graph == "step" and missing:
                    raise UsageError(f"calibration never reached scale {missing[0]} of {layer.name}")
