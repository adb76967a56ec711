"""Reading one checkpoint file into state dicts, memory-mapped, without running anything that it says.

    file -> format by its first bytes -> object -> trainer wrapper off -> transformer and/or VQ-VAE

Formats: safetensors; `torch.save` as a zip, or as the older plain stream. Contents: a flat state dict of
either model, or a trainer checkpoint of the official code (`train.py`, `VARTrainer.state_dict`), with both.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from engines.errors import CheckpointError
from engines.words import mebibytes, quoted
from var_export.checkpoint.sources import NamedFile, listing, reading

State = dict[str, Tensor]

_HEAD = 512
_LFS_START = b"version https://git-lfs"
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
# Wrappers of torch.compile and of data-parallel training: no official key has a part of these names.
_WRAPPERS = {"_orig_mod", "module"}
_MAX_REASON = 160
_MOST_GROWTH = 4  # of the tensors over the file, in bytes: no format compresses, and some weights are tied


@dataclass(frozen=True)
class Content:
    """What a checkpoint file holds: official key -> tensor in its stored dtype, on the CPU."""

    file: NamedFile
    var: State | None
    vae: State | None


def read_checkpoint_file(file: NamedFile) -> Content:
    """Read one file.

    Raises:
        CheckpointError: unreadable, empty, damaged, not a checkpoint, or a pickle that asks for more than
            tensors.
    """
    return _content(file, _read(file, _head(file)))


def _head(file: NamedFile) -> bytes:
    with reading(file.shown), file.path.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head:
        raise CheckpointError(f"{file.shown} is empty: download it again")
    if head.startswith(_LFS_START):
        raise CheckpointError(f"{file.shown} is a git-LFS pointer, not the weights: run `git lfs pull` there")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_STARTS):
        raise CheckpointError(
            f"{file.shown} is a web page, not a checkpoint: download the file itself (on the Hub, with /resolve/ "
            "instead of /blob/ in its address)"
        )
    return head


def _read(file: NamedFile, head: bytes) -> Any:
    """What safetensors or `torch.save` stored in the file that begins with `head`."""
    is_safetensors = head[8:9] == b"{"  # after the eight bytes that count the header
    if not is_safetensors and not head.startswith((_ZIP_START, _PICKLE_START)):
        raise CheckpointError(f"{file.shown} is neither a torch nor a safetensors file: check which file it is")
    try:
        if is_safetensors:
            return load_file(file.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about pickle protocols: the errors below say more
            # The older stream has no fixed offsets, so it cannot be memory-mapped.
            return torch.load(file.path, map_location="cpu", weights_only=True, mmap=head.startswith(_ZIP_START))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({asked[1]})" if asked else ""
        raise CheckpointError(
            f"{file.shown} holds more than tensors{what} and would need to run code to load, which is refused: "
            "convert it to safetensors in an environment where you trust it"
        ) from error
    except Exception as error:  # RuntimeError, EOFError, KeyError, ...: whatever the damage leads to
        reason = type(error).__name__
        if not isinstance(error, LookupError):  # whose text is a number out of the file
            first = re.split(r"[\n\r]|\.(?= [A-Z])", str(error).strip())[0]
            reason = first[:_MAX_REASON] or reason
        raise CheckpointError(
            f"{file.shown} is truncated, damaged or no checkpoint: download it again ({reason})"
        ) from error


def _content(file: NamedFile, value: Any) -> Content:
    """Take the trainer's wrapper off, and tell the two models apart by their keys."""
    top = value
    if isinstance(value, Mapping):
        value = value["trainer"] if isinstance(value.get("trainer"), Mapping) else value
        if "var_wo_ddp" in value or "vae_local" in value:
            return Content(file, *(_state(file, value.get(key)) for key in ("var_wo_ddp", "vae_local")))
        keys = {_unwrapped(key) for key in value if isinstance(key, str)}
        if "quantize.embedding.weight" in keys or any(key.startswith(("decoder.", "encoder.")) for key in keys):
            return Content(file, None, _state(file, value))
        if "pos_1LC" in keys or "word_embed.weight" in keys or any(key.startswith("blocks.") for key in keys):
            return Content(file, _state(file, value), None)
    is_dict = isinstance(top, Mapping) and top
    held = f"the keys {listing(map(quoted, top))}" if is_dict else f"an empty or foreign {type(top).__name__}"
    raise CheckpointError(
        f"{file.shown} holds no VAR transformer and no VQ-VAE, but {held}: give a state dict of the official "
        "models, or a checkpoint of their trainer"
    )


def _state(file: NamedFile, value: Any) -> State | None:
    """Official key -> tensor; None for None."""
    if value is None:
        return None
    state: State = {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{file.shown} holds a {type(value).__name__} for a state dict: save it with torch.save")
    written: dict[str, str] = {}
    for key, tensor in value.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{file.shown}: {quoted(key)} is no name of a tensor: save the state dict alone")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{file.shown}: {quoted(key)} is of type {type(tensor).__name__}, not a tensor: save the state dict "
                "alone"
            )
        name = _unwrapped(key)
        if name in state:
            raise CheckpointError(
                f"{file.shown} holds both {quoted(written[name])} and {quoted(key)}, which are one tensor of the "
                "model: save the state dict with one of them"
            )
        state[name], written[name] = tensor.detach(), key
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values() if tensor.layout == torch.strided)
    if held > _MOST_GROWTH * file.path.stat().st_size:
        raise CheckpointError(
            f"{file.shown}: its tensors would take {mebibytes(held)}, far more than the file has: they are views of "
            "one another; save them with .clone()"
        )
    return state


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)
