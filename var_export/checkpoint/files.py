"""Reading checkpoint files into what they hold, memory-mapped, without running anything that they say.

    file, or shards of one -> format by its first bytes -> object (`contents` says which state dicts are in it)

Formats: safetensors; `torch.save` as a zip, or as the older plain stream.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engines.errors import CheckpointError
from engines.foreign import parse_json
from engines.words import quoted
from var_export.checkpoint.contents import Content, content_of
from var_export.checkpoint.pickles import unfolds_too_far
from var_export.checkpoint.sources import NamedFile, reading

_HEAD = 512
_LFS_START = b"version https://git-lfs"
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_SAFETENSORS_HEADER = 100_000_000  # bytes that the format allows its header
_MAX_REASON = 160


def read_checkpoint_file(file: NamedFile) -> Content:
    """Read one file, or all shards of one checkpoint.

    Raises:
        CheckpointError: unreadable, empty, damaged, not a checkpoint, or a pickle that asks for more than
            tensors.
    """
    if not file.shards:
        return content_of(file, _read(file, _head(file)))
    whole: dict[Any, Any] = {}
    for shard in file.shards:
        held = _read(shard, _head(shard))
        if not isinstance(held, Mapping):
            raise CheckpointError(f"{shard.shown} holds a {type(held).__name__}, not some tensors of a checkpoint")
        if twice := held.keys() & whole.keys():
            raise CheckpointError(f"{shard.shown} holds {quoted(min(twice, key=str))}, which another shard holds too")
        whole |= held
    return content_of(file, whole)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is one state dict, by name; for networks other than VAR. Raises `CheckpointError`."""
    file = NamedFile(path, str(path))
    held = _read(file, _head(file))
    if not isinstance(held, Mapping) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise CheckpointError(f"{file.shown} holds more than the tensors of one network: check which file it is")
    return {str(name): value for name, value in held.items()}


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
    is_zip = head.startswith(_ZIP_START)
    if not is_safetensors and not is_zip and not head.startswith(_PICKLE_START):
        raise CheckpointError(f"{file.shown} is neither a torch nor a safetensors file: check which file it is")
    if not is_safetensors and unfolds_too_far(file.path, is_zip=is_zip):
        raise CheckpointError(
            f"{file.shown} refers to its own parts over and over, or lists millions of things, as no checkpoint does: "
            "check which file it is"
        )
    with reading(file.shown), file.path.open("rb") as stream:
        try:
            if is_safetensors:
                return load_file(file.path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks about pickle protocols: the errors below say more
                # The older stream has no fixed offsets, so it cannot be memory-mapped.
                return torch.load(file.path if is_zip else stream, map_location="cpu", weights_only=True, mmap=is_zip)
        except Exception as error:  # RuntimeError, EOFError, KeyError, ...: whatever the damage leads to
            if is_safetensors:
                short = _is_short_safetensors(file.path, head)
            elif is_zip:  # its list of contents is at its end
                short = not zipfile.is_zipfile(file.path)
            else:
                short = "EOF" in str(error) or not stream.read(1)  # it was read to its end, and asked for more
            raise _refused(file, error, short) from error


def _is_short_safetensors(path: Path, head: bytes) -> bool:
    """Whether the file has fewer bytes than its header says."""
    there, length = path.stat().st_size - 8, int.from_bytes(head[:8], "little")
    if there < length:
        return length <= _SAFETENSORS_HEADER
    with path.open("rb") as stream:
        text = stream.read(8 + length)[8:]
    try:
        header = parse_json(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        return bool(there - length < max(ends))
    except Exception:  # whatever else is wrong with a header
        return False


def _refused(file: NamedFile, error: Exception, short: bool) -> CheckpointError:
    """What a file that does not load is refused with."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and (asked or not short):
        what = f" ({asked[1]})" if asked else ""
        return CheckpointError(
            f"{file.shown} holds more than tensors{what} and would need to run code to load, which is refused: "
            "convert it to safetensors in an environment where you trust it"
        )
    reason = type(error).__name__
    if not isinstance(error, LookupError):  # whose text is a number out of the file
        first = re.split(r"[\n\r]|\.(?= [A-Z])", str(error).strip())[0]
        reason = first[:_MAX_REASON] or reason
    remedy = "download it again, its end is missing" if short else "check which file it is, or save it once more"
    return CheckpointError(f"{file.shown} is truncated, damaged or no checkpoint: {remedy} ({reason})")
