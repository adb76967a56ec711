"""The manifest of a bundle: what every key must be. A manifest that passes here can be relied on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.bundle.plans import parse_plans
from engines.errors import BundleError, UsageError
from engines.spec import choices, contract
from engines.spec.config import ModelConfig, SamplingDefaults

SCHEMA_VERSION = 1
MANIFEST, WEIGHTS, GOLDEN = "manifest.json", "weights.bin", "golden.npz"


@dataclass(frozen=True)
class StoredTensor:
    """A constant of the scale loop, stored in the weight file beside the weights."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be."""

    size: int
    sha256: str


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder` as JSON, of a schema that this version knows. Raises `BundleError`."""
    file = folder / MANIFEST
    if not folder.exists():
        raise BundleError(f"there is no bundle at {folder}; make one with: var-export build --out {folder}")
    if not folder.is_dir() or not file.is_file():
        raise BundleError(f"{folder} is not a bundle: a bundle is a folder with a {MANIFEST}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read ({error}); build the bundle again") from error
    if not isinstance(manifest, dict) or "schema" not in manifest or "contract" not in manifest:
        raise BundleError(f"{file} is not the manifest of a bundle")
    if manifest["schema"] != SCHEMA_VERSION or manifest["contract"] != contract.CONTRACT_VERSION:
        raise BundleError(
            f"{folder} has schema {manifest['schema']!r} and graph contract {manifest['contract']!r}, "
            f"this version reads {SCHEMA_VERSION} and {contract.CONTRACT_VERSION}; "
            "build it again, or use the version that wrote it"
        )
    return manifest


def parse_manifest(manifest: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The fields of a `Bundle`, checked one by one. Raises `BundleError` that names the manifest `file`."""
    try:
        return _parse(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError) as error:
        raise BundleError(f"{file} is damaged ({error!s:.300}); build the bundle again") from error


def needed_files(form: str) -> list[str]:
    """Files of a bundle of this form, beside the manifest."""
    return [WEIGHTS, GOLDEN, *(f"{graph}.onnx" for graph in contract.graphs_of(form))]


def _parse(manifest: Mapping[str, Any]) -> dict[str, Any]:
    config = ModelConfig.from_dict(_of(dict, manifest, "model"))
    form = _one_of(choices.BUNDLE_FORMS, manifest, "form")
    labels = manifest["labels"]
    if labels is not None:
        labels = _of(list, manifest, "labels")
        if len(labels) != config.transformer.num_classes or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels must be {config.transformer.num_classes} strings")
    files = {name: _file(name, entry) for name, entry in _of(dict, manifest, "files").items()}
    if not set(needed_files(form)) <= set(files) <= set(needed_files("both")):
        raise ValueError(f"files must be {', '.join(needed_files(form))}, not {', '.join(files):.200}")
    max_top_k = _whole(manifest, "max_top_k")
    if not 1 <= max_top_k <= config.vae.vocab_size:
        raise ValueError(f"max_top_k must lie in 1 to {config.vae.vocab_size}, got {max_top_k}")
    return {
        "name": _of(str, manifest, "name"),
        "config": config,
        "precision": _one_of(choices.PRECISIONS, manifest, "precision"),
        "form": form,
        "target": _one_of(choices.GRAPH_TARGETS, manifest, "target"),
        "max_top_k": max_top_k,
        "smooth": _flag(manifest, "smooth"),
        "sampling": SamplingDefaults(**_of(dict, manifest, "sampling")),
        "labels": None if labels is None else tuple(labels),
        "build_key": _of(str, manifest, "build_key"),
        "golden_key": _of(str, manifest, "golden_key"),
        "files": files,
        "constants": _constants(_of(dict, manifest, "constants"), config, files[WEIGHTS].size),
        "plans": parse_plans(manifest.get("plans", [])),
        "provenance": _of(dict, manifest, "provenance"),
    }


def _constants(entries: Mapping[str, Any], config: ModelConfig, size: int) -> dict[str, StoredTensor]:
    shapes = contract.scale_constant_shapes(config)
    if set(entries) != set(shapes):
        raise ValueError("constants must be up_s, down_s and pos_s of every scale s")
    constants = {}
    for name, shape in shapes.items():
        entry, wanted = entries[name], {"dtype": "float32", "shape": list(shape)}
        offset = _whole(entry, "offset")
        if {"dtype": entry["dtype"], "shape": entry["shape"]} != wanted:
            raise ValueError(f"constant {name} must be {wanted}")
        if not 0 <= offset <= size - 4 * int(np.prod(shape)):
            raise ValueError(f"constant {name} lies outside of {WEIGHTS}")
        constants[name] = StoredTensor("float32", shape, offset)
    return constants


def _file(name: str, entry: Mapping[str, Any]) -> FileEntry:
    if set(entry) != {"size", "sha256"}:
        raise ValueError(f"file {name:.40} must have a size and a sha256")
    return FileEntry(_whole(entry, "size"), _of(str, entry, "sha256"))


def _of(kind: type, values: Mapping[str, Any], name: str) -> Any:
    if not isinstance(values[name], kind):
        raise TypeError(f"{name} must be of type {kind.__name__}")
    return values[name]


def _whole(values: Mapping[str, Any], name: str) -> int:
    value = values[name]
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number")
    return value


def _flag(values: Mapping[str, Any], name: str) -> bool:
    """False where it is absent: bundles had none before there was such a choice."""
    value = values.get(name, False)
    if type(value) is not bool:
        raise TypeError(f"{name} must be true or false")
    return value


def _one_of(known: tuple[str, ...], values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r:.60}")
    return str(value)
