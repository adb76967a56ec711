"""What each layer costs in fidelity when it alone is quantised, and what it saves: a table, kept as a JSON file.

The file is a cache of measurements: it belongs to a model, a calibration, a target and the code that quantises, and is
made anew where one of them differs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calib.graphs.layers import Layer
from engines.errors import UsageError
from engines.spec.contract import DECODER, PART_OF, TRANSFORMER
from engines.spec.policy import ADALN, CONVOLUTION, EDGES, OTHER, PER_BLOCK, PER_TOKEN, STATIC
from engines.storage import read_json, write_json

FORMAT = "var-export sensitivity 1"
SECONDS, MULTIPLY_ADDS = "seconds", "multiply-adds"


@dataclass(frozen=True)
class Effect:
    """Of one layer, quantised in one way while all others stay in float."""

    layer: str
    role: str
    way: str
    saved: float
    """Of one guided image: seconds, or multiply-adds that become INT8 where time cannot be measured."""
    kl: float = 0.0
    """KL(reference || engine), nats, mean over tokens."""
    top1: float = 1.0
    """Share of tokens whose most likely entry is the reference's."""
    psnr: float | None = None
    """Of the image (layers of `decode`), dB; None for others, and where the image is the same."""
    reconstruction_loss: float | None = None
    """Of the encoder's layers, dB."""

    @property
    def part(self) -> str:
        """Of the model, one of `engines.spec.contract.PARTS`."""
        return PART_OF[self.layer.partition("/")[0]]

    @property
    def loss(self) -> float:
        """Larger is worse: KL, mean squared error of the image (of 1), or dB of the reconstruction."""
        if self.part == DECODER:
            return float(10 ** (-self.image_psnr / 10))
        return self.kl if self.part == TRANSFORMER else self.reconstruction_loss or 0.0

    @property
    def image_psnr(self) -> float:
        """`psnr`, infinite where the image is the same."""
        return math.inf if self.psnr is None else self.psnr


@dataclass
class Sensitivity:
    """Effects by layer and way."""

    key: str
    """Digest of all that decides them."""
    unit: str = SECONDS
    """Of `Effect.saved`."""
    float_kl: float = 0.0
    """The float engine's own KL, with nothing quantised."""
    effects: list[Effect] = field(default_factory=list)

    def find(self, layer: str, way: str) -> Effect | None:
        """The effect of one layer in one way, if it is known."""
        return next((effect for effect in self.effects if (effect.layer, effect.way) == (layer, way)), None)

    def worst_first(self, part: str) -> list[Effect]:
        """The effects on one part of the model, the largest losses first."""
        return sorted((effect for effect in self.effects if effect.part == part), key=lambda effect: -effect.loss)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, file: Path) -> None:
        """Write in one step. Raises `UsageError` where it cannot be."""
        write_json(file, self.to_dict())

    @classmethod
    def load(cls, file: Path, key: str) -> Sensitivity | None:
        """What was measured under the same key; None where there is nothing of use."""
        try:
            document = read_json(file)
            if document["format"] != FORMAT or document["key"] != key:
                return None
            effects = [Effect(**entry) for entry in document["effects"]]
            return cls(key, str(document["unit"]), float(document["float_kl"]), effects)
        except (UsageError, KeyError, TypeError, ValueError):
            return None


def candidates(layer: Layer, target: str) -> tuple[str, ...]:
    """The ways in which a layer may be quantised, mildest first; none for those that always stay in float."""
    if layer.name in EDGES or layer.role in ("word_embed", OTHER):
        return ()
    if layer.role == CONVOLUTION:
        return (STATIC,)
    if target != "onnxruntime":
        return () if layer.role == ADALN else (STATIC,)
    return (PER_BLOCK,) if layer.role == ADALN else (PER_BLOCK, PER_TOKEN, STATIC)
