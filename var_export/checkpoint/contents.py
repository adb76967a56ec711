"""Which state dicts an object holds that a checkpoint file gave: however trainers and wrappers nest and name them.

    {"epoch": 3, "trainer": {"var_wo_ddp": {"module.blocks.0...": tensor}, "vae_local": {...}}}
        -> trainer.var_wo_ddp, a VAR transformer; trainer.vae_local, a VQ-VAE

A state dict is found by the tensors that only such a model has, under whatever keys lead to it, and whatever stands
before the names of its tensors (`model.`, `var.`). What wrappers of training put between the parts of a name is left
out. Where several state dicts of one kind are there, as the weights and their average, the user says which.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engines.errors import CheckpointError
from engines.words import mebibytes, quoted
from var_export.checkpoint.relatives import refuse_relatives
from var_export.checkpoint.sources import NamedFile, listing

State = dict[str, Tensor]

VAR = "VAR transformer"
VAE = "VQ-VAE"

# Tensors by whose names a model is found: a name ends with one, and what is before it is a prefix of all its names.
_ANCHORS = {
    VAR: re.compile(r"(.*\.|)(?:pos_1LC|word_embed\.weight|lvl_embed\.weight|blocks\.\d+\.attn\.mat_qkv\.weight)"),
    VAE: re.compile(r"(.*\.|)(?:quantize\.embedding|(?:encoder|decoder)\.conv_in(?:\.conv)?)\.weight"),
}
_VAE_PARTS = {"encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"}
# torch.compile, data-parallel training, FSDP, activation checkpointing: no official name has a part of these.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Beside a model in one state dict: what a VQ-VAE is trained against, the counter of PyTorch's AveragedModel.
_BESIDE = {"loss", "lpips", "discriminator", "n_averaged"}
_FLATTENED = "_flat_param"
_MAX_DEPTH = 8
_MOST_GROWTH = 4  # of the tensors over the file, in bytes: no format compresses, and some weights are tied


@dataclass(frozen=True)
class Part:
    """One state dict of a file."""

    kind: str
    """`VAR` or `VAE`."""
    name: str
    """The keys that lead to it and the prefix of its tensors, with dots between; empty for those of a plain file."""
    entries: tuple[tuple[Any, str, Any], ...]
    """Key as written, official key, and value of each of its entries."""

    def named(self, key: str) -> bool:
        """Whether `key` is its name, or some whole parts of it: `ema` is in `state_dict.ema.model`."""
        return f".{key}." in f".{self.name}."


@dataclass(frozen=True)
class Content:
    """What a checkpoint file holds."""

    file: NamedFile
    parts: tuple[Part, ...]

    def part(self, kind: str, key: str | None) -> Part | None:
        """The state dict of this kind, of several the one that `key` names. Raises `CheckpointError` where it is open.

        None where the file has none of this kind.
        """
        found = [part for part in self.parts if part.kind == kind]
        if key is not None:
            found = [part for part in found if part.name == key] or [part for part in found if part.named(key)] or found
        if len(found) > 1:
            names = " or ".join(f"--key {shlex.quote(part.name)}" for part in found[:8])
            raise CheckpointError(
                f"{self.file.shown} holds {len(found)} state dicts of a {kind}: say which with {names}"
            )
        return found[0] if found else None

    def state(self, part: Part) -> State:
        """Official key -> tensor in its stored dtype, on the CPU, and what `part` holds beside these.

        Raises `CheckpointError` where something in it is no tensor.
        """
        shown = self.file.shown
        state: State = {}
        written: dict[str, str] = {}
        for key, name, tensor in part.entries:
            if not isinstance(key, str):
                raise CheckpointError(f"{shown}: {quoted(key)} is no name of a tensor: save the state dict alone")
            if not isinstance(tensor, Tensor):
                kind = type(tensor).__name__
                raise CheckpointError(
                    f"{shown}: {quoted(key)} is of type {kind}, not a tensor: save the state dict alone"
                )
            if name in state:
                raise CheckpointError(
                    f"{shown} holds both {quoted(written[name])} and {quoted(key)}, which are one tensor of the "
                    "model: save the state dict with one of them"
                )
            state[name], written[name] = tensor.detach(), key
        held = sum(
            tensor.numel() * tensor.element_size() for tensor in state.values() if tensor.layout == torch.strided
        )
        if held > _MOST_GROWTH * sum(file.path.stat().st_size for file in self.file.parts):
            raise CheckpointError(
                f"{shown}: its tensors would take {mebibytes(held)}, far more than the file has: they are views of "
                "one another; save them with .clone()"
            )
        return state


def content_of(file: NamedFile, value: Any) -> Content:
    """The state dicts in `value`, which `file` holds.

    Raises `CheckpointError` where there are none, or where they are of a model that is akin to VAR but another.
    """
    parts = tuple(_parts(value, (), set()))
    for part in parts:
        refuse_relatives(file.shown, part.name, {name: tensor for _, name, tensor in part.entries})
    if parts:
        return Content(file, parts)
    flattened = isinstance(value, Mapping) and any(_FLATTENED in str(key) for key in value)
    is_dict = isinstance(value, Mapping) and value
    held = f"the keys {listing(map(quoted, value))}" if is_dict else f"an empty or foreign {type(value).__name__}"
    remedy = "give a state dict of the official models, or a checkpoint of a trainer that holds one"
    if flattened:
        remedy = "these are FSDP's own pieces: save the state dict with StateDictType.FULL_STATE_DICT"
    raise CheckpointError(f"{file.shown} holds no VAR transformer and no VQ-VAE, but {held}: {remedy}")


def _parts(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[Part]:
    """The state dicts in `value`, to which the keys `path` lead."""
    if not isinstance(value, Mapping) or len(path) > _MAX_DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    names = {key: _unwrapped(key) for key in value if isinstance(key, str)}
    found: dict[tuple[str, str], list[tuple[Any, str, Any]]] = {}  # kind and prefix -> as `Part.entries`
    for name in names.values():
        for kind, anchor in _ANCHORS.items():
            if match := anchor.fullmatch(name):
                found[kind, match[1]] = []
    for key, tensor in value.items() if found else ():
        name = names.get(key, "")
        owner = _owner(name, found)
        if owner and (official := name.removeprefix(owner[1])).split(".")[0] not in _BESIDE:
            found[owner].append((key, official, tensor))
    for (kind, prefix), entries in found.items():
        yield Part(kind, ".".join((*path, *prefix.split(".")[:-1])), tuple(entries))
    for key, inner in value.items():
        yield from _parts(inner, (*path, str(key)), seen)


def _owner(name: str, owners: Mapping[tuple[str, str], Any]) -> tuple[str, str] | None:
    """Which kind under which prefix a tensor belongs to: the longest prefix, and there the kind of its first part."""
    under = [owner for owner in owners if name.startswith(owner[1])]
    longest = max((prefix for _, prefix in under), key=len, default="")
    kinds = [kind for kind, prefix in under if prefix == longest]
    if len(kinds) > 1:
        return (VAE if name.removeprefix(longest).split(".")[0] in _VAE_PARTS else VAR), longest
    return (kinds[0], longest) if kinds else None


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)
