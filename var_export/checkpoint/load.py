"""Checkpoints: from whatever a user has to the configuration and the two official state dicts.

    name -> files (`sources`, `engines.hub`) -> what they hold (`files`) -> the two state dicts (`contents`)
         -> configuration (`architecture`, with what `settings` read)
         -> every key and shape held against the reference model of it (`strictness`) -> `Checkpoint`

Everything raised is a `CheckpointError` of one line that names the file and what to do.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.errors import CheckpointError
from engines.spec.config import ModelConfig
from engines.spec.sampling import Sampling
from engines.storage import digest_of, expanded, sha256_of
from engines.words import quoted
from var_export.checkpoint.architecture import infer_config
from var_export.checkpoint.contents import VAE, VAR, Content
from var_export.checkpoint.files import read_checkpoint_file
from var_export.checkpoint.labels import labels_of
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
    MIXIN_FILES,
    NamedFile,
    config_beside,
    listing,
    locate_file,
    locate_model,
    locate_vae,
    reading,
    vae_beside,
)
from var_export.checkpoint.strictness import Weights, expected_shapes
from var_export.model.reference import Reference

_DATA = Path(__file__).parents[1] / "data"
DEMO = "demo"
"""Stands for the checkpoint that comes with the package, where no file has this name."""
_MAX_NAME = 64


@dataclass(frozen=True)
class Checkpoint:
    """A transformer and its VQ-VAE, complete and consistent."""

    config: ModelConfig
    sampling: Sampling
    labels: tuple[str, ...] | None
    """One per class, empty for a class without one; None where nothing says what the classes are called."""
    var_state: dict[str, torch.Tensor]
    """Key of the official `VAR` -> tensor on the CPU in its stored dtype, memory-mapped where the format allows."""
    vae_state: dict[str, torch.Tensor]
    """Key of the official `VQVAE` -> tensor, likewise."""
    sha256: str
    """Identifies the content of the files and `config`; `sampling` and `labels` do not enter."""
    sources: tuple[str, ...]
    """Names of the files that the weights came from, without folders."""

    def reference(self) -> Reference:
        """The PyTorch reference with these weights, which it uses in place."""
        return Reference.from_state(self.config, self.var_state, self.vae_state)


def load_checkpoint(
    model: str | Path,
    *,
    vae: str | Path | None = None,
    key: str | None = None,
    config: str | Path | None = None,
    overrides: Mapping[str, str] | None = None,
    labels: str | Path | None = None,
    default_cfg: float | None = None,
    name: str | None = None,
) -> Checkpoint:
    """Load a checkpoint and check it.

    Args:
        model: the transformer: a file (`torch.save` or safetensors; a flat state dict, or a trainer
            checkpoint), a folder that holds one, `hf://owner/repo/path/to/file`, or `DEMO`.
        vae: the VQ-VAE, likewise. By default the one in the trainer checkpoint, else the one `vae*` file
            beside `model`.
        key: which state dict of a file to take that holds several of one kind: the keys that lead to it with
            dots between, or some of them (`ema`).
        config: a config.json; by default the one beside `model`, where it can only mean `model`.
        overrides: `--set key=value`: what no tensor says, see `settings.parse_overrides`.
        labels: `none`, `imagenet`, or a file in one of the forms of `labels`; by default labels.txt beside
            `model`, else ImageNet's for the published models.
        default_cfg: guidance to recommend; 0 for a model that was trained without.
        name: what to call the model; becomes safe as the name of a folder.

    Raises:
        CheckpointError: in one line, whatever is wrong.

    """
    if model == DEMO and not Path(model).exists():
        model = _DATA / DEMO
    settings = parse_overrides(overrides)
    content = read_checkpoint_file(locate_model(model))
    (var_weights, vae_weights), vae_file, picked = _pair(content, vae, key)
    file = content.file
    described = _described(file, config, folder_named=expanded(model).is_dir())
    settings = {**described.settings, **settings}
    inferred = infer_config(var_weights, vae_weights, settings)
    inferred = dataclasses.replace(inferred, name=_name(name, settings, file, inferred))
    for weights, expected in zip((var_weights, vae_weights), expected_shapes(inferred), strict=True):
        weights.check(expected)
    sampling = described.sampling or Sampling()
    if default_cfg is not None:
        sampling = make_sampling(dataclasses.asdict(sampling) | {"cfg": float(default_cfg)}, "the default guidance")
    files = list(dict.fromkeys((*file.parts, *vae_file.parts)))
    return Checkpoint(
        config=inferred,
        sampling=sampling,
        labels=labels_of(labels, described, (file, vae_file), inferred),
        var_state=dict(var_weights.state),
        vae_state=dict(vae_weights.state),
        sha256=_digest(files, picked, inferred),
        sources=tuple(file.file_name for file in files),
    )


def demo_checkpoint() -> Checkpoint:
    """The small model that comes with the package: 64 px emoji, 171 classes."""
    return load_checkpoint(_DATA / DEMO)


def _pair(
    content: Content, vae: str | Path | None, key: str | None
) -> tuple[tuple[Weights, Weights], NamedFile, tuple[str, ...]]:
    """The two state dicts, the file of the VQ-VAE, and the names of those that were picked among several."""
    shown, var = content.file.shown, content.part(VAR, key)
    if var is None and vae is None:
        raise CheckpointError(
            f"{shown} holds a VQ-VAE, not a VAR transformer: give the transformer as the model, and this with --vae"
        )
    state = {} if var is None else content.state(var)
    if vae is not None:
        partner = read_checkpoint_file(locate_vae(vae))
    elif any(part.kind == VAE for part in content.parts):
        partner = content
    else:
        partner = read_checkpoint_file(vae_beside(content.file))
    vae_part = partner.part(VAE, key)
    if vae_part is None:
        raise CheckpointError(
            f"{partner.file.shown} holds a VAR transformer where the VQ-VAE should be: are the two files swapped? "
            "The VQ-VAE is a file such as vae_ch160v4096z32.pth"
        )
    if var is None:
        raise CheckpointError(
            f"{shown} holds a VQ-VAE where the VAR transformer should be: are the two files swapped? "
            "The transformer is a file such as var_d16.pth"
        )
    if key is not None and not (var.named(key) or (key and vae_part.named(key))):
        names = listing(part.name or "''" for part in content.parts)
        raise CheckpointError(f"{shown} holds nothing under the key {quoted(key)}: it has {names}")
    weights = Weights(state, shown, VAR), Weights(partner.state(vae_part), partner.file.shown, VAE)
    chosen = ((content, var), (partner, vae_part))
    picked = [part.name for held, part in chosen if sum(other.kind == part.kind for other in held.parts) > 1]
    return weights, partner.file, tuple(picked)


def _described(file: NamedFile, config: str | Path | None, *, folder_named: bool) -> ConfigFile:
    if config is not None:
        return read_config(locate_file(config))
    found = file.beside(CONFIG_FILE) if folder_named else config_beside(file)
    # Where only the file was named, a config.json in its folder may be about something else.
    return ConfigFile() if found is None else read_config(found, only_if_var=not folder_named)


def _name(name: str | None, settings: Settings, file: NamedFile, config: ModelConfig) -> str:
    """The argument, `--set name`, `var-d16-256` for an official file, config.json's name, the file's."""
    setting = settings.get("name")
    said = "" if setting is None else str(setting.value)
    if name is None and setting is not None and setting.origin == OVERRIDES:
        name = said
    if name is not None:
        if _slug(name):
            return _slug(name)
        raise CheckpointError(f"{name!r} cannot name a folder: use letters, digits, hyphens, dots and underscores")
    stem = Path(file.whole_name).stem
    if stem == f"var_d{config.transformer.depth}":
        return f"var-d{config.transformer.depth}-{config.image_size}"
    if file.whole_name in MIXIN_FILES:  # every mixin's file has this name
        stem = file.folder_name
    return _slug(said) or _slug(stem) or "var"


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:_MAX_NAME].rstrip("-._")


def _digest(files: list[NamedFile], picked: tuple[str, ...], config: ModelConfig) -> str:
    digests = []
    for file in files:
        with reading(file.shown):
            digests.append(sha256_of(file.path))
    content = {"files": digests, "config": config.to_dict()}
    return digest_of(content | {"picked": picked} if picked else content)
