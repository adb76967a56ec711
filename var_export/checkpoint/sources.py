"""Where the files of a checkpoint lie: a file, a folder, or the Hugging Face Hub; and what lies beside them.

A checkpoint in several files, as `save_pretrained` writes large ones (`model-00001-of-00002.safetensors` ... and
`model.safetensors.index.json`), is one `NamedFile`, whether its folder, its index or one of its shards was named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from engines import hub
from engines.errors import CheckpointError
from engines.foreign import read_bytes, read_json
from engines.spec.choices import CHECKPOINT_SUFFIXES
from engines.storage import expanded

OFFICIAL_VAE = "vae_ch160v4096z32.pth"
CONFIG_FILE = "config.json"
LABELS_FILE = "labels.txt"
# What PyTorchModelHubMixin writes, newest first. Its config.json stands beside it by convention.
MIXIN_FILES = ("model.safetensors", "pytorch_model.bin")

_INDEX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")
_MIXIN_STEMS = {Path(name).stem for name in MIXIN_FILES}
_MAX_LISTED = 3


@dataclass(frozen=True)
class NamedFile:
    """One local file, or the shards of one checkpoint, with the name that messages call it by."""

    path: Path
    shown: str
    hub_file: hub.HubFile | None = None
    """Where the file came from, for one of the Hub."""
    shards: tuple[NamedFile, ...] = ()
    """The files that hold the weights, where they are several; `path` is one of them then, or their index."""

    @property
    def parts(self) -> tuple[NamedFile, ...]:
        """The files that hold the weights: the shards, or this one."""
        return self.shards or (self,)

    @property
    def file_name(self) -> str:
        """The name without folders."""
        return PurePosixPath(self.hub_file.file).name if self.hub_file else self.path.name

    @property
    def whole_name(self) -> str:
        """The name that the file would have if it was not in shards: `model.safetensors`."""
        return _whole_name(self.file_name)

    @property
    def folder_name(self) -> str:
        """Name of the folder that the file lies in, or of the repository."""
        if self.hub_file:
            return PurePosixPath(self.hub_file.file).parent.name or self.hub_file.repo.rpartition("/")[2]
        return self.path.absolute().parent.name

    def beside(self, name: str, *, unreachable_ok: bool = False) -> NamedFile | None:
        """The file `name` in the same folder, or None. `unreachable_ok` as in `hub.download`."""
        if self.hub_file:
            return _downloaded(self.hub_file.sibling(name), missing_ok=True, unreachable_ok=unreachable_ok)
        path = self.path.parent / name
        return _local(path) if path.is_file() else None

    def read_text(self) -> str:
        """The content as UTF-8. Raises `CheckpointError` where it may not be read, `ValueError` where it is other."""
        with reading(self.shown):
            return read_bytes(self.path).decode("utf-8-sig")


@contextlib.contextmanager
def reading(shown: object) -> Iterator[None]:
    """Turn an `OSError` about the file or folder that messages call `shown` into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {shown} ({error.strerror}): check its permissions") from error


def listing(names: Iterable[str]) -> str:
    """The first few names on one line, and how many more there are."""
    shown = [" ".join(name.split()) for name in names]
    more = f" and {len(shown) - _MAX_LISTED} more" if len(shown) > _MAX_LISTED else ""
    return ", ".join(shown[:_MAX_LISTED]) + more


def locate_file(name: str | Path) -> NamedFile:
    """The file that `name` means, on this machine or of the Hub. Raises `CheckpointError` where there is none."""
    if hub.is_hub_name(name):
        found = _downloaded(hub.parse_hub_name(name))
        assert found is not None
        return found
    path = _existing(name)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder where a file is needed: name the file in it")
    return _local(path)


def locate_weights(name: str | Path) -> NamedFile:
    """As `locate_file`, with the other shards where `name` is one of several, or their index."""
    return _with_shards(locate_file(name))


def locate_model(name: str | Path) -> NamedFile:
    """The transformer's file: `name` itself, or the one that the folder `name` holds."""
    if hub.is_hub_name(name) or not (folder := _existing(name)).is_dir():
        return locate_weights(name)
    candidates = _models_in(folder)
    named = [path for path in candidates if path.name.lower().startswith("var")]
    mixins = [path for path in candidates if _whole_name(path.name) in MIXIN_FILES]  # beside optimizer.pt and others
    for choice in (candidates, named, mixins):
        if len(choice) == 1:
            return _with_shards(_local(choice[0]))
    if candidates:
        raise CheckpointError(f"{folder} holds several checkpoints ({_names(candidates)}): name the file")
    if (folder / ".metadata").is_file():
        raise CheckpointError(
            f"{folder} holds a distributed checkpoint: make one file of it with `python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`"
        )
    raise CheckpointError(f"{folder} holds no checkpoint: needed is a file such as var_d16.pth or {MIXIN_FILES[0]}")


def locate_vae(name: str | Path) -> NamedFile:
    """The VQ-VAE's file: `name` itself, or the one that the folder `name` holds."""
    if hub.is_hub_name(name) or not (folder := _existing(name)).is_dir():
        return locate_weights(name)
    return _one_vae(folder) or _no_vae(f"{folder} holds no VQ-VAE")


def vae_beside(model: NamedFile) -> NamedFile:
    """The VQ-VAE that belongs to `model`, where none was named.

    Raises `CheckpointError`, which asks for `--vae`, where there is none or more than one.
    """
    if model.hub_file is None:
        return _one_vae(model.path.parent) or _no_vae(f"{model.shown} holds no VQ-VAE, and none lies beside it")
    at_top = hub.HubFile(model.hub_file.repo, OFFICIAL_VAE, model.hub_file.revision)
    for file in dict.fromkeys((model.hub_file.sibling(OFFICIAL_VAE), at_top)):
        if found := _downloaded(file, missing_ok=True):
            return found
    _no_vae(f"{model.shown} holds no VQ-VAE, and {model.hub_file.repo} has no {OFFICIAL_VAE}")


def config_beside(model: NamedFile) -> NamedFile | None:
    """The config.json that belongs to `model`, if one does.

    Where several checkpoints share a folder, nothing says which of them its config.json describes: none.
    In a repository of the Hub it belongs to the file of a mixin.
    """
    alone = model.whole_name in MIXIN_FILES if model.hub_file else len(_models_in(model.path.parent)) == 1
    return model.beside(CONFIG_FILE) if alone else None


def _local(path: Path) -> NamedFile:
    return NamedFile(path, str(path))


def _downloaded(file: hub.HubFile, *, missing_ok: bool = False, unreachable_ok: bool = False) -> NamedFile | None:
    path = hub.download(file, missing_ok=missing_ok, unreachable_ok=unreachable_ok)
    return NamedFile(path, file.url, file) if path else None


def _existing(name: str | Path) -> Path:
    if not str(name):
        raise CheckpointError("the name of a file is empty: say which file is meant")
    path = expanded(name)
    try:
        path.stat()
    except (FileNotFoundError, ValueError) as error:  # ValueError: of a null character
        raise CheckpointError(f"there is no file or folder {path}: check the path") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    return path


def _checkpoints_in(folder: Path) -> list[Path]:
    """Files that may hold weights, one for each stem; of a checkpoint in shards its index or the first of them."""
    with reading(folder):
        named = {path: Path(_whole_name(path.name)) for path in sorted(folder.iterdir()) if path.is_file()}
    files = {path: whole for path, whole in named.items() if whole.suffix.lower() in CHECKPOINT_SUFFIXES}
    chosen: dict[str, Path] = {}
    order = {
        path: (CHECKPOINT_SUFFIXES.index(whole.suffix.lower()), path.name != whole.name)
        for path, whole in files.items()
    }
    for path in sorted(files, key=order.__getitem__):
        whole = files[path]
        chosen.setdefault("model" if whole.stem in _MIXIN_STEMS else whole.stem, path)
    return sorted(chosen.values())


def _whole_name(name: str) -> str:
    """The name of a checkpoint without the number of a shard, or the ending of an index."""
    shard = _SHARD.fullmatch(name)
    return shard["stem"] + shard["suffix"] if shard else name.removesuffix(_INDEX)


def _with_shards(file: NamedFile) -> NamedFile:
    """`file` with the shards that its index names, or that the numbers in its own name ask for."""
    names: list[str] = []
    if file.file_name.endswith(_INDEX):
        index = read_json(file.path, error=CheckpointError)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        if not names or any("/" in name or "\\" in name for name in names):
            raise CheckpointError(f"{file.shown} is no index of shards: it needs a weight_map of files beside it")
    elif shard := _SHARD.fullmatch(file.file_name):
        count = int(shard["total"])
        names = [f"{shard['stem']}-{k:05}-of-{count:05}{shard['suffix']}" for k in range(1, count + 1)]
    shards = []
    for name in names:
        found = file.beside(name)
        if found is None:
            raise CheckpointError(
                f"{file.shown} needs {name}, which is not beside it: put all {len(names)} shards in one folder"
            )
        shards.append(found)
    return dataclasses.replace(file, shards=tuple(shards))


def _is_vae_name(path: Path) -> bool:
    return path.name.lower().startswith("vae")


def _models_in(folder: Path) -> list[Path]:
    return [path for path in _checkpoints_in(folder) if not _is_vae_name(path)]


def _one_vae(folder: Path) -> NamedFile | None:
    found = [path for path in _checkpoints_in(folder) if _is_vae_name(path)]
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds several VQ-VAEs ({_names(found)}): say which with --vae FILE")
    return _with_shards(_local(found[0])) if found else None


def _no_vae(what: str) -> NoReturn:
    raise CheckpointError(f"{what}: pass it with --vae FILE (the official models share {OFFICIAL_VAE})")


def _names(paths: list[Path]) -> str:
    return listing(path.name for path in paths)
