"""Refuses what graphs give in place of values that are not finite: see `engines.spec.marks`."""

from __future__ import annotations

from collections.abc import Mapping

from engines.backends.base import Array
from engines.errors import NotFiniteError
from engines.spec.config import ModelConfig
from engines.spec.marks import NO_TOKEN, stripes

REMEDY = "build the bundle with --precision bf16 or fp32, or its checkpoint is damaged"


def require_finite(config: ModelConfig, outputs: Mapping[str, Array]) -> None:
    """Raises `NotFiniteError` that says where: in the decoder, or at which scale of a token map.

    `outputs` of a graph, by name: images uint8 (B, h, w, 3), token maps int64 (B, T).
    """
    if "image" in outputs:
        row = stripes(outputs["image"].shape[2])
        if any((each[0, :, 0] == row).all() and (row[:, None] == each.T).all() for each in outputs["image"]):
            raise NotFiniteError(f"the decoder's values are not finite; {REMEDY}", graph="decode")
    for name, graph in (("drawn", "step"), ("tokens", "encode")):
        bad = (outputs[name] == NO_TOKEN).any(axis=0) if name in outputs else None
        if bad is not None and bad.any():
            at = int(bad.argmax())
            scale = max(scale for scale, start in enumerate(config.scale_offsets[: config.num_scales]) if start <= at)
            what = f"the logits of scale {scale}" if graph == "step" else "the encoder's features"
            raise NotFiniteError(f"{what} are not finite; {REMEDY}", graph=graph)
