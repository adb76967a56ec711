"""Whether a state dict is that of the reference model: every key, shape and type, and no infinite or NaN weight.

The reference modules carry the official names, so what they would hold says what a file must hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.errors import CheckpointError
from engines.spec.config import ModelConfig
from var_export.checkpoint.sources import listing
from var_export.model.reference import UNUSED_BUFFERS, blank

Shapes = dict[str, tuple[int, ...]]

ODD = "it is damaged, or of another architecture"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weights:
    """One state dict with its file, as messages call it, and the name of what it should be."""

    state: Mapping[str, Tensor]
    file: str
    what: str

    def need(self, keys: Iterable[str], of: int | None = None) -> None:
        """Raise `CheckpointError` where one of `keys` is not there; `of` how many, where the architecture is known."""
        missing = [key for key in keys if key not in self.state]
        if missing:
            count = f"{len(missing)} of {of}" if of else f"at least {len(missing)}"
            plural = "s" if of or len(missing) > 1 else ""
            raise CheckpointError(
                f"{self.file} lacks {count} tensor{plural} of a {self.what} "
                f"({listing(missing)}): it is partial, or of another architecture; save the whole state dict"
            )

    def size(self, key: str, axis: int, *, ndim: int) -> int:
        """Length of one axis of a tensor that must have `ndim` of them, none empty. Raises `CheckpointError`."""
        self.need([key])
        shape = tuple(self.state[key].shape)
        if len(shape) != ndim or 0 in shape:
            raise CheckpointError(f"{self.file}: {key} has the shape {shape} where {ndim} dimensions are needed: {ODD}")
        return shape[axis]

    def count(self, prefix: str) -> int:
        """How many different parts follow `prefix` in the keys."""
        return len({key[len(prefix) :].split(".", 1)[0] for key in self.state if key.startswith(prefix)})

    def has(self, prefix: str, inside: str = "") -> bool:
        """Whether a key starts with `prefix` and contains `inside`."""
        return any(key.startswith(prefix) and inside in key for key in self.state)

    def check(self, expected: Shapes) -> None:
        """Hold the whole state dict against the shapes that are expected of it.

        Reads every weight once, without a copy of it. Raises `CheckpointError` on a key that is missing or unknown,
        on another shape, on a type other than `DTYPES`, and on a weight that is infinite or NaN.
        """
        self.need((key for key in expected if not is_optional(key)), of=len(expected))
        unexpected = [key for key in self.state if key not in expected]
        if unexpected:
            raise CheckpointError(
                f"{self.file}: {listing(unexpected)} {'is' if len(unexpected) == 1 else 'are'} no part of the "
                f"{self.what} that its other tensors describe: it is of another architecture, or of a changed one"
            )
        for key, tensor in self.state.items():
            # As in the official code, statistics of another number of scales do not matter.
            if tuple(tensor.shape) != expected[key] and not key.endswith("ema_vocab_hit_SV"):
                raise CheckpointError(
                    f"{self.file}: {key} has the shape {tuple(tensor.shape)} where its other tensors ask for "
                    f"{expected[key]}: {ODD}"
                )
            if not is_optional(key):
                self._check_values(key, tensor)

    def _check_values(self, key: str, tensor: Tensor) -> None:
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
            raise CheckpointError(
                f"{self.file}: {key} is stored as {kind}: save it as float16, bfloat16, float32 or float64"
            )
        # Extremes show NaN and infinity alike, and unlike `isfinite` need no tensor of the same size.
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor)):
            raise CheckpointError(
                f"{self.file}: {key} holds NaN or infinite values: the file is damaged, or training diverged"
            )


def expected_shapes(config: ModelConfig) -> tuple[Shapes, Shapes]:
    """Key -> shape of the whole official `VAR.state_dict()` and `VQVAE.state_dict()`, buffers included."""
    var, vae = ({key: tuple(tensor.shape) for key, tensor in module.state_dict().items()} for module in blank(config))
    width, tokens = config.transformer.width, config.num_tokens
    var |= {"lvl_1L": (1, tokens), "attn_bias_for_masking": (1, 1, tokens, tokens)}
    var |= {f"blocks.{i}.attn.zero_k_bias": (width,) for i in range(config.transformer.depth)}
    vae["quantize.ema_vocab_hit_SV"] = (config.num_scales, config.vae.vocab_size)
    return var, vae


def is_optional(key: str) -> bool:
    """Whether a state dict may lack this key: it follows from the configuration, or serves training alone."""
    return key.rpartition(".")[2] in UNUSED_BUFFERS
