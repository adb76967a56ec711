"""Bundles: the directory that a user copies to a device, and everything that guards it.

Layout: `manifest.json`, one `.onnx` file per graph, `weights.bin` (which all graphs reference),
`golden.npz`. Nothing is trusted before its size and SHA-256 match the manifest. docs/bundle.md has the format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import contract
from engines.config import ModelConfig, SamplingDefaults
from engines.errors import BundleError, UsageError

SCHEMA_VERSION = 1
MANIFEST, WEIGHTS, GOLDEN = "manifest.json", "weights.bin", "golden.npz"
DEMO_BUNDLE = Path(__file__).parent / "data" / "demo"
BUNDLES = Path("bundles")


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


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle. `open` is the way to get one."""

    path: Path
    name: str
    config: ModelConfig
    precision: str
    form: str
    target: str
    max_top_k: int
    sampling: SamplingDefaults
    labels: tuple[str, ...] | None
    build_key: str
    """SHA-256 over everything that the graphs were made from."""
    golden_key: str
    files: Mapping[str, FileEntry]
    constants: Mapping[str, StoredTensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Checkpoint files and hash, builder versions: for people, never for decisions."""

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read and verify.

        Args:
            path: the bundle's directory.
            verify: compare every file's SHA-256; sizes are compared always.

        Raises `BundleError` where anything is missing, damaged, or of another schema.

        """
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            bundle = cls(
                path=path,
                name=manifest["name"],
                config=ModelConfig.from_dict(manifest["model"]),
                precision=manifest["precision"],
                form=manifest["form"],
                target=manifest["target"],
                max_top_k=int(manifest["max_top_k"]),
                sampling=SamplingDefaults(**manifest["sampling"]),
                labels=None if manifest["labels"] is None else tuple(manifest["labels"]),
                build_key=manifest["build_key"],
                golden_key=manifest["golden_key"],
                files={name: FileEntry(**entry) for name, entry in manifest["files"].items()},
                constants={
                    name: StoredTensor(entry["dtype"], tuple(entry["shape"]), int(entry["offset"]))
                    for name, entry in manifest["constants"].items()
                },
                provenance=manifest["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise BundleError(f"{path / MANIFEST} is damaged ({error}); build the bundle again") from error
        bundle._check(verify)
        return bundle

    def _check(self, verify: bool) -> None:
        needed = [WEIGHTS, GOLDEN, *(f"{graph}.onnx" for graph in self.graphs)]
        for name in needed:
            if name not in self.files:
                raise BundleError(f"{self.path / MANIFEST} lists no {name}; build the bundle again")
        for name, entry in self.files.items():
            file = self.path / name
            if Path(name).name != name:
                raise BundleError(f"{self.path / MANIFEST} names a file outside of the bundle: {name!r}")
            if not file.is_file():
                raise BundleError(f"{file} is missing; copy the whole folder, or build the bundle again")
            if file.stat().st_size != entry.size:
                raise BundleError(
                    f"{file} has {file.stat().st_size} bytes instead of {entry.size}; copy it again, or build again"
                )
            if verify and sha256_of(file) != entry.sha256:
                raise BundleError(
                    f"{file} is not the file that was built (SHA-256 differs); copy it again, or build again"
                )

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs this bundle holds."""
        return contract.graphs_of(self.form)

    @property
    def forms(self) -> tuple[str, ...]:
        """`stepwise`, `fused`, or both; the first is the default."""
        return tuple(contract.FORMS) if self.form == "both" else (self.form,)

    def graph_path(self, graph: str) -> Path:
        """The ONNX file of a graph. Raises `BundleError` where the bundle was built without it."""
        if graph not in self.graphs:
            raise BundleError(
                f"{self.path} was built with --form {self.form} and has no {graph} graph; use --form both"
            )
        return self.path / f"{graph}.onnx"

    def tensors(self, graph: str) -> tuple[tuple[contract.TensorInfo, ...], tuple[contract.TensorInfo, ...]]:
        """Inputs and outputs of a graph."""
        return contract.resolve(contract.GRAPHS[graph], self.config, self.precision)

    def constant(self, name: str) -> NDArray[Any]:
        """A constant of the scale loop, mapped from the weight file."""
        entry = self.constants[name]
        return np.memmap(self.path / WEIGHTS, entry.dtype, "r", entry.offset, entry.shape)

    @cached_property
    def golden(self) -> Mapping[str, NDArray[Any]]:
        """Arrays of the golden run (docs/fidelity.md)."""
        with np.load(self.path / GOLDEN, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def weights_bytes(self) -> int:
        """Size of the weight file."""
        return self.files[WEIGHTS].size


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}; make one with: var-export build --out {path}")
    if not path.is_dir() or not file.is_file():
        raise BundleError(f"{path} is not a bundle: a bundle is a folder with a {MANIFEST}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}); build the bundle again") from error
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise BundleError(f"{file} is not the manifest of a bundle")
    if manifest["schema"] != SCHEMA_VERSION or manifest.get("contract") != contract.CONTRACT_VERSION:
        raise BundleError(
            f"{path} has schema {manifest['schema']} and graph contract {manifest.get('contract')}; this version reads "
            f"{SCHEMA_VERSION} and {contract.CONTRACT_VERSION}: build it again, or use the version that wrote it"
        )
    return manifest


def sha256_of(file: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def default_bundle() -> tuple[Path, str]:
    """The bundle to use where none is named: the newest under `bundles/`, else the embedded demo.

    Returns its path and a phrase that says which it is.
    """
    found = []
    if BUNDLES.is_dir():
        found = [m.parent for m in BUNDLES.glob(f"*/{MANIFEST}") if not m.parent.name.startswith(".")]
    if found:
        newest = max(found, key=lambda path: (path / MANIFEST).stat().st_mtime)
        return newest, f"the newest bundle, {newest}"
    return DEMO_BUNDLE, "the embedded demo bundle"
