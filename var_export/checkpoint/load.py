"""Checkpoints: from whatever a user has to the configuration and the two official state dicts.

    name -> files (`checkpoint_sources`) -> state dicts (`checkpoint_files`)
         -> configuration (`architecture`, with what `checkpoint_settings` read) -> every key and shape held
            against it (`state_shapes`) -> `Checkpoint`

Everything raised is a `CheckpointError` of one line that names the file and what to do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from engines.bundle.bundle import sha256_of
from engines.errors import CheckpointError
from engines.spec.config import ModelConfig, SamplingDefaults
from var_export.checkpoint.architecture import Weights, infer_config
from var_export.checkpoint.files import Content, read_checkpoint_file
from var_export.checkpoint.settings import (
    OVERRIDES,
    ConfigFile,
    Settings,
    make_sampling,
    parse_overrides,
    read_config,
)
from var_export.checkpoint.sources import (
    CONFIG_FILE,
    LABELS_FILE,
    MIXIN_FILES,
    Source,
    config_beside,
    locate_file,
    locate_model,
    locate_vae,
    vae_beside,
)
from var_export.checkpoint.state_shapes import check_state, expected_vae_shapes, expected_var_shapes

_DATA = Path(__file__).parents[1] / "data"
_IMAGENET_CLASSES = 1000
_MAX_NAME = 64


@dataclass(frozen=True)
class Checkpoint:
    """A transformer and its VQ-VAE, complete and consistent."""

    config: ModelConfig
    sampling: SamplingDefaults
    labels: tuple[str, ...] | None
    """One per class, where known."""
    var_state: dict[str, torch.Tensor]
    """Key of the official `VAR` -> tensor on the CPU in its stored dtype, memory-mapped where the format allows."""
    vae_state: dict[str, torch.Tensor]
    """Key of the official `VQVAE` -> tensor, likewise."""
    sha256: str
    """Identifies the content of the files and `config`; `sampling` and `labels` do not enter."""
    sources: tuple[str, ...]
    """Names of the files that the weights came from, without folders."""


def load_checkpoint(
    model: str | Path,
    *,
    vae: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Mapping[str, str] | None = None,
    labels: str | Path | None = None,
    default_cfg: float | None = None,
    name: str | None = None,
) -> Checkpoint:
    """Load a checkpoint and check it.

    Args:
        model: the transformer: a file (`torch.save` or safetensors; a flat state dict, or a trainer
            checkpoint), a folder that holds one, or `hf://owner/repo/path/to/file`.
        vae: the VQ-VAE, likewise. By default the one in the trainer checkpoint, else the one `vae*` file
            beside `model`.
        config: a config.json; by default the one beside `model`, where it can only mean `model`.
        overrides: `--set key=value`: what no tensor says, see `checkpoint_settings`.
        labels: a file with one class per line; by default labels.txt beside `model`, else ImageNet's for
            a model of 1000 classes.
        default_cfg: guidance to recommend; 0 for a model that was trained without.
        name: what to call the model; becomes safe as the name of a folder.

    Raises:
        CheckpointError: in one line, whatever is wrong.

    """
    settings = parse_overrides(overrides)
    content = read_checkpoint_file(locate_model(model))
    var_weights, vae_weights, vae_source = _pair(content, vae)
    source = content.source
    described = _described(source, config, folder_named=Path(model).expanduser().is_dir())
    settings = {**described.settings, **settings}
    inferred = infer_config(var_weights, vae_weights, settings)
    inferred = dataclasses.replace(inferred, name=_name(name, settings, source, inferred))
    check_state(var_weights.state, expected_var_shapes(inferred), var_weights.file, var_weights.what)
    check_state(vae_weights.state, expected_vae_shapes(inferred), vae_weights.file, vae_weights.what)
    sampling = described.sampling or SamplingDefaults()
    if default_cfg is not None:
        sampling = make_sampling(dataclasses.asdict(sampling) | {"cfg": float(default_cfg)}, "the default guidance")
    sources = list(dict.fromkeys((source, vae_source)))
    return Checkpoint(
        config=inferred,
        sampling=sampling,
        labels=_labels(labels, described, source, inferred.transformer.num_classes),
        var_state=dict(var_weights.state),
        vae_state=dict(vae_weights.state),
        sha256=_digest(sources, inferred),
        sources=tuple(source.file_name for source in sources),
    )


def demo_checkpoint() -> Checkpoint:
    """The small model that comes with the package: 64 px emoji, 171 classes."""
    return load_checkpoint(_DATA / "demo")


def _pair(content: Content, vae: str | Path | None) -> tuple[Weights, Weights, Source]:
    """The two state dicts, and the file of the VQ-VAE."""
    shown = content.source.shown
    if content.var is None and vae is None:
        raise CheckpointError(
            f"{shown} holds a VQ-VAE, not a VAR transformer: give the transformer as the model, and this with --vae"
        )
    if vae is not None:
        partner = read_checkpoint_file(locate_vae(vae))
    elif content.vae is not None:
        partner = content
    else:
        partner = read_checkpoint_file(vae_beside(content.source))
    if partner.vae is None:
        raise CheckpointError(
            f"{partner.source.shown} holds a VAR transformer where the VQ-VAE should be: are the two files swapped? "
            "The VQ-VAE is a file such as vae_ch160v4096z32.pth"
        )
    if content.var is None:
        raise CheckpointError(
            f"{shown} holds a VQ-VAE where the VAR transformer should be: are the two files swapped? "
            "The transformer is a file such as var_d16.pth"
        )
    return (
        Weights(content.var, shown, "VAR transformer"),
        Weights(partner.vae, partner.source.shown, "VQ-VAE"),
        partner.source,
    )


def _described(source: Source, config: str | Path | None, *, folder_named: bool) -> ConfigFile:
    if config is not None:
        return read_config(locate_file(config))
    found = source.beside(CONFIG_FILE) if folder_named else config_beside(source)
    # Where only the file was named, a config.json in its folder may be about something else.
    return ConfigFile() if found is None else read_config(found, only_if_var=not folder_named)


def _name(name: str | None, settings: Settings, source: Source, config: ModelConfig) -> str:
    """The argument, `--set name`, `var-d16-256` for an official file, config.json's name, the file's."""
    override = settings.get("name")
    if name is not None:
        return _slug(name) or _nameless(name)
    stem = Path(source.file_name).stem
    official = re.fullmatch(r"var_d(\d+)", stem)
    if override is not None and override.origin == OVERRIDES:
        return _slug(str(override.value)) or _nameless(str(override.value))
    if official and int(official[1]) == config.transformer.depth:
        return f"var-d{config.transformer.depth}-{config.image_size}"
    if override is not None and _slug(str(override.value)):
        return _slug(str(override.value))
    if source.file_name in MIXIN_FILES:  # every mixin's file has this name
        stem = source.folder_name
    return _slug(stem) or "var"


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:_MAX_NAME].rstrip("-._")


def _nameless(name: str) -> NoReturn:
    raise CheckpointError(f"{name!r} cannot name a folder: use letters, digits, hyphens, dots and underscores")


def _labels(labels: str | Path | None, described: ConfigFile, source: Source, count: int) -> tuple[str, ...] | None:
    if labels is not None:
        found: Source | None = locate_file(labels)
    elif described.source is not None and described.labels is not None:
        found = described.source.beside(described.labels)
        if found is None:
            raise CheckpointError(
                f"{described.source.shown} names the labels {described.labels}, which is not beside it: add it, "
                "or pass another file with --labels"
            )
    else:
        found = source.beside(LABELS_FILE, unreachable_ok=True)
    if found is None:
        if count != _IMAGENET_CLASSES:
            return None
        path = _DATA / "imagenet_labels.txt"
        found = Source(path, str(path))
    try:
        text = found.path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CheckpointError(f"cannot read {found.shown} ({error.strerror}): check its permissions") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{found.shown} is not UTF-8 text: it must hold one class per line") from error
    # Not `splitlines`, which also splits at rarer characters that a label may hold.
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    while len(lines) > count and not lines[-1]:
        lines.pop()
    if len(lines) != count:
        raise CheckpointError(
            f"{found.shown} has {len(lines)} labels, but the model has {count} classes: correct it, or pass another "
            "file with --labels"
        )
    return tuple(lines)


def _digest(sources: list[Source], config: ModelConfig) -> str:
    try:
        files = [sha256_of(source.path) for source in sources]
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename} ({error.strerror}): check its permissions") from error
    content = {"files": files, "config": config.to_dict()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
