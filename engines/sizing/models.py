"""Models by name, for estimates without a checkpoint: the sizes of the official ones, and the embedded demo."""

from __future__ import annotations

import dataclasses

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.spec.config import HEAD_DIM, ModelConfig, TransformerConfig

DEMO = "demo"
_SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
# Depths of FoundationVision/VAR (README, `models/__init__.py`: width 64 x depth, heads = depth); d36 draws 512 pixels
# and shares one AdaLN layer among its blocks (`utils/arg_util.py`, --saln).
_DEPTHS = {"d16": 16, "d20": 20, "d24": 24, "d30": 30, "d36": 36}
NAMES = (*_DEPTHS, DEMO)


def official(name: str) -> ModelConfig:
    """The configuration of a name of `NAMES`. Raises `KeyError` for others."""
    if name == DEMO:
        return Bundle.open(DEMO_BUNDLE, verify=False).config
    depth = _DEPTHS[name]
    large = depth == 36
    width = HEAD_DIM * depth
    transformer = TransformerConfig(
        depth=depth, width=width, heads=depth, mlp_hidden=4 * width, num_classes=1000, shared_aln=large
    )
    config = ModelConfig(name=name, transformer=transformer)
    return dataclasses.replace(config, patch_nums=_SCALES_512) if large else config
