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

import safetensors
import torch
from torch import Tensor

from engines.errors import CheckpointError
from var_export.checkpoint.sources import Source

State = dict[str, Tensor]

_HEAD = 512
_LFS_START = b"version https://git-lfs"
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
# Wrappers of torch.compile and of data-parallel training: no official key has a part of these names.
_WRAPPERS = {"_orig_mod", "module"}
_MAX_LISTED = 3
_MAX_REASON = 160


@dataclass(frozen=True)
class Content:
    """What a checkpoint file holds: official key -> tensor in its stored dtype, on the CPU."""

    source: Source
    var: State | None
    vae: State | None


def read_checkpoint_file(source: Source) -> Content:
    """Read one file.

    Raises:
        CheckpointError: unreadable, empty, damaged, not a checkpoint, or a pickle that asks for more than
            tensors.
    """
    head = _head(source)
    if head[8:9] == b"{":  # after the eight bytes that count the header
        value: Any = _read_safetensors(source)
    elif head.startswith((_ZIP_START, _PICKLE_START)):
        value = _read_torch(source, mmap=head.startswith(_ZIP_START))
    else:
        raise CheckpointError(f"{source.shown} is neither a torch nor a safetensors file: check which file it is")
    return _content(source, value)


def _head(source: Source) -> bytes:
    try:
        with source.path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise CheckpointError(f"cannot read {source.shown} ({error.strerror}): check its permissions") from error
    if not head:
        raise CheckpointError(f"{source.shown} is empty: download it again")
    if head.startswith(_LFS_START):
        raise CheckpointError(f"{source.shown} is a git-LFS pointer, not the weights: run `git lfs pull` there")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_STARTS):
        raise CheckpointError(
            f"{source.shown} is a web page, not a checkpoint: download the file itself (on the Hub, with /resolve/ "
            "instead of /blob/ in its address)"
        )
    return head


def _read_safetensors(source: Source) -> State:
    try:
        with safetensors.safe_open(source.path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
    except Exception as error:
        raise _damaged(source, error) from error


def _read_torch(source: Source, *, mmap: bool) -> Any:
    """What `torch.save` stored. The older stream has no fixed offsets, so it cannot be memory-mapped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about pickle protocols: the errors below say more
            return torch.load(source.path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({asked[1]})" if asked else ""
        raise CheckpointError(
            f"{source.shown} holds more than tensors{what} and would need to run code to load, which is refused: "
            "convert it to safetensors in an environment where you trust it"
        ) from error
    except Exception as error:  # RuntimeError, EOFError, KeyError, ...: whatever the damage leads to
        raise _damaged(source, error) from error


def _damaged(source: Source, error: Exception) -> CheckpointError:
    reason = type(error).__name__
    if not isinstance(error, LookupError):  # whose text is a number out of the file
        first = re.split(r"[\n\r]|\.(?= [A-Z])", str(error).strip())[0]
        reason = first[:_MAX_REASON] or reason
    return CheckpointError(f"{source.shown} is truncated, damaged or no checkpoint: download it again ({reason})")


def _content(source: Source, value: Any) -> Content:
    top = value
    if isinstance(value, Mapping) and isinstance(value.get("trainer"), Mapping):
        value = value["trainer"]
    if isinstance(value, Mapping) and ("var_wo_ddp" in value or "vae_local" in value):
        var, vae = (_state(source, value.get(key)) for key in ("var_wo_ddp", "vae_local"))
        return Content(source, var, vae)
    if isinstance(value, Mapping):
        keys = {_unwrapped(key) for key in value}
        if "quantize.embedding.weight" in keys or any(key.startswith(("decoder.", "encoder.")) for key in keys):
            return Content(source, None, _state(source, value))
        if "pos_1LC" in keys or "word_embed.weight" in keys or any(key.startswith("blocks.") for key in keys):
            return Content(source, _state(source, value), None)
    held = (
        f"the keys {_listing(top)}" if isinstance(top, Mapping) and top else f"an empty or foreign {type(top).__name__}"
    )
    raise CheckpointError(
        f"{source.shown} holds no VAR transformer and no VQ-VAE, but {held}: give a state dict of the official "
        "models, or a checkpoint of their trainer"
    )


def _state(source: Source, value: Any) -> State | None:
    """Official key -> tensor; None for None."""
    if value is None:
        return None
    state: State = {}
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{source.shown} holds a {type(value).__name__} for a state dict: save it with torch.save"
        )
    for key, tensor in value.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{source.shown}: {key!r} is of type {type(tensor).__name__}, not a tensor: save the state dict alone"
            )
        state[_unwrapped(key)] = tensor.detach()
    return state


def _unwrapped(key: object) -> str:
    return ".".join(part for part in str(key).split(".") if part not in _WRAPPERS)


def _listing(keys: Mapping[Any, Any]) -> str:
    shown = [repr(key) for key in list(keys)[:_MAX_LISTED]]
    return ", ".join(shown) + (f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else "")
