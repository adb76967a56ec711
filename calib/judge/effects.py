"""What each layer costs in fidelity when it alone is quantised, and what it saves: measured, and kept as a JSON file.

The file is a cache of measurements: it belongs to a model, a calibration, a target and the code that quantises, and is
made anew where one of them differs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calib.calibration import Calibration
from calib.choose.options import QuantisationOptions
from calib.graphs.layers import Layer, find_layers
from calib.judge.timing import Stopwatch, multiply_adds
from calib.judge.variants import Variants
from calib.keys import QUANTISED_BUNDLE, code_digest
from engines.bundle.bundle import Bundle
from engines.foreign import MALFORMED, read_json
from engines.progress import Progress, Steps, silent
from engines.sizing.cost import BYTES, Weight
from engines.sizing.quantised import Quantisation
from engines.spec.choices import DEFAULT_LEVEL, INT4, INT8, ONNXRUNTIME
from engines.spec.config import ModelConfig
from engines.spec.contract import DECODER, PART_OF, PARTS, TRANSFORMER
from engines.spec.policy import (
    ADALN,
    CONVOLUTION,
    EDGES,
    FLOAT,
    FOUR_BITS,
    OTHER,
    PER_BLOCK,
    PER_CLASS,
    PER_TOKEN,
    STATIC,
    adaln_way,
    assign,
)
from engines.storage import digest_of, write_json

FORMAT = "var-export sensitivity 1"
SECONDS, MULTIPLY_ADDS, STORED = "seconds", "multiply-adds", "bytes"
"""What a layer saves is counted in: time, or in its place arithmetic; of INT4 what is stored."""
UNITS = {SECONDS: ("saved ms", 1e3), MULTIPLY_ADDS: ("GMAC", 1e-9), STORED: ("saved KiB", 1 / 1024)}
"""How each is headed in a table, and in which unit."""
ENOUGH_TOKENS = 600  # of the golden run, to judge one layer by: one image of 256 px


@dataclass(frozen=True)
class Effect:
    """Of one layer, quantised in one way while all others stay in float."""

    layer: str
    role: str
    way: str
    saved: float
    """What this saves, in the unit of the table: for one guided image seconds, or multiply-adds; of INT4 bytes."""
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
        except MALFORMED:  # a UsageError too
            return None


def candidates(layer: Layer, options: QuantisationOptions, adaln: str = PER_CLASS) -> tuple[str, ...]:
    """The ways in which a layer may be quantised, mildest first; none for those that always stay in float.

    `adaln`: the mildest that AdaLN has in INT4, as `engines.spec.policy.adaln_way` tells.
    """
    if layer.name in EDGES or layer.role in ("word_embed", OTHER):
        return ()
    if layer.role == CONVOLUTION:
        return (STATIC,)
    if options.precision == INT4:
        if layer.role == ADALN:
            return tuple(dict.fromkeys((adaln, FOUR_BITS)))
        usual = assign([layer.name], options.target, DEFAULT_LEVEL)[layer.name]
        return (STATIC if usual == FLOAT else usual, FOUR_BITS)
    if options.target != ONNXRUNTIME:
        return () if layer.role == ADALN else (STATIC,)
    return (PER_BLOCK,) if layer.role == ADALN else (PER_BLOCK, PER_TOKEN, STATIC)


def sensitivity_file(calibration: Path, options: QuantisationOptions) -> Path:
    """Beside the calibration that it depends on."""
    what = options.target if options.precision == INT8 else f"{options.precision}-{options.target}"
    return calibration.with_name(f"{calibration.stem}.sensitivity-{what}.json")


def saved_bytes(layer: Layer, way: str, config: ModelConfig, options: QuantisationOptions) -> int:
    """How much smaller a layer's weights are, computed in one way, than in floating point."""
    weight = layer.weight.const_value
    assert weight is not None
    shape = weight.shape.numpy()
    outside = shape[0] if layer.is_conv else shape[1]
    sizes = Weight((layer.name,), math.prod(shape) // outside, outside, way)
    stored = Quantisation(options.target, {}, options.precision, config.transformer.num_classes + 1)
    return (sizes.inside + 1) * outside * BYTES[options.base_precision] - stored.weight_bytes(sizes)


def measure(
    base: Bundle,
    calibration: Calibration,
    options: QuantisationOptions,
    *,
    file: Path | None = None,
    parts: tuple[str, ...] = PARTS,
    threads: int | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Quantise each layer alone, in every way that `options.target` has, and hold it against the golden run.

    `base` is the float bundle, of whose options level and patterns do not matter; `file` holds what is measured
    already, and keeps each new effect at once. Raises `UsageError` where the calibration lacks a layer.
    """
    key = digest_of(
        {
            "model": base.golden_key,
            "precision": base.precision,
            "calibration": calibration.digest(),
            "target": options.target,
            "of": options.precision,
            "ranges": asdict(options.ranges),
            "sources": code_digest(QUANTISED_BUNDLE),
        }
    )
    known = (None if file is None else Sensitivity.load(file, key)) or Sensitivity(key)
    images = min(len(base.golden["tokens"]), math.ceil(ENOUGH_TOKENS / base.config.num_tokens))
    known.unit = STORED if options.precision == INT4 else SECONDS if options.target == ONNXRUNTIME else MULTIPLY_ADDS
    stopwatch, adaln = Stopwatch(base.config, threads), adaln_way(base.config, options.target)
    with Variants(base, images=images, threads=threads) as variants:
        jobs = [
            (part, layer, way)
            for part in parts
            for graph, model in variants.models(part).items()
            for layer in find_layers(model, graph)
            for way in candidates(layer, options, adaln)
            if known.find(layer.name, way) is None
        ]
        calibration.check_layers([layer for _, layer, way in jobs if way == STATIC], base.config.num_scales)
        if jobs and not known.effects:
            total = variants.figures(TRANSFORMER).total
            assert total is not None
            known.float_kl = total.kl
        for number, (part, layer, way) in enumerate(jobs):
            progress(f"sensitivity: {layer.name}, {way} ({number + 1} of {len(jobs)})", Steps(number, len(jobs)))
            if known.unit == STORED:
                saved = float(saved_bytes(layer, way, base.config, options))
            elif known.unit == SECONDS:
                saved = stopwatch.seconds(layer, FLOAT) - stopwatch.seconds(layer, way)
            else:
                saved = multiply_adds(layer, base.config)
            figures = variants.quantised(part, {layer.name: way}, calibration, options)
            logits = {} if figures.total is None else {"kl": figures.total.kl, "top1": figures.total.top1}
            psnr = None if figures.psnr is None or math.isinf(figures.psnr) else figures.psnr
            loss = figures.reconstruction_loss
            effect = Effect(layer.name, layer.role, way, saved, **logits, psnr=psnr, reconstruction_loss=loss)
            known.effects.append(effect)
            if file is not None:
                known.save(file)
    return known
