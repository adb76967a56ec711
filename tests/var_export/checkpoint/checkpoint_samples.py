"""Tiny checkpoints for the tests, with every official key."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engines.errors import CheckpointError
from engines.spec.config import ModelConfig, TransformerConfig, VaeConfig
from var_export.checkpoint import strictness
from var_export.checkpoint.load import load_checkpoint

State = dict[str, torch.Tensor]

expected_shapes = functools.cache(strictness.expected_shapes)

TINY = ModelConfig(
    name="tiny",
    patch_nums=(1, 2, 3),
    vae=VaeConfig(vocab_size=16, z_channels=4, ch=32, ch_mult=(1, 2), num_res_blocks=1),
    transformer=TransformerConfig(depth=2, width=64, heads=2, mlp_hidden=128, num_classes=5),
)


def tiny(
    *, name: str = "tiny", patch_nums: tuple[int, ...] = TINY.patch_nums, vae: Any = (), var: Any = ()
) -> ModelConfig:
    """`TINY` with some of its values changed."""
    return ModelConfig(
        name=name,
        patch_nums=patch_nums,
        vae=dataclasses.replace(TINY.vae, **dict(vae)),
        transformer=dataclasses.replace(TINY.transformer, **dict(var)),
    )


def var_state(config: ModelConfig = TINY, *, buffers: bool = True) -> State:
    """An official transformer state dict; the buffers have their real values."""
    state = _random(expected_shapes(config)[0])
    levels = torch.cat([torch.full((side * side,), i) for i, side in enumerate(config.patch_nums)])
    if not buffers:
        return {
            key: value for key, value in state.items() if not key.endswith(("lvl_1L", "for_masking", "zero_k_bias"))
        }
    state["lvl_1L"] = levels[None]
    visible = levels[:, None] >= levels[None, :]
    state["attn_bias_for_masking"] = torch.where(visible, 0.0, -torch.inf)[None, None]
    return state


def vae_state(config: ModelConfig = TINY) -> State:
    """An official VQ-VAE state dict."""
    return _random(expected_shapes(config)[1])


def _random(shapes: Mapping[str, tuple[int, ...]]) -> State:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}


def save_pair(
    folder: Path,
    config: ModelConfig = TINY,
    *,
    var: State | None = None,
    vae: State | None = None,
    buffers: bool = True,
) -> Path:
    """A `var_tiny.pth` beside a `vae_tiny.pth`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(var_state(config, buffers=buffers) if var is None else var, folder / "var_tiny.pth")
    torch.save(vae_state(config) if vae is None else vae, folder / "vae_tiny.pth")
    return folder / "var_tiny.pth"


def save_safetensors(state: State, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def error_of(model: Any, **arguments: Any) -> str:
    """The message with which a checkpoint is refused: always one line."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, **arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message
