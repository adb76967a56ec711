"""Bundles: the directory that a user copies to a device, and everything that guards it.

Layout: `manifest.json`, one `.onnx` file per graph, `weights.bin` (which all graphs reference),
`golden.npz`, and `plans/` with the engines that were built for GPUs. Nothing is trusted before its size and
SHA-256 match the manifest. docs/bundles.md has the format.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import (
    GOLDEN,
    MANIFEST,
    WEIGHTS,
    FileEntry,
    StoredTensor,
    needed_files,
    parse_manifest,
    read_manifest,
)
from engines.bundle.plans import FOLDER, PlanFile, PlanSet
from engines.errors import BundleError
from engines.spec import choices, contract
from engines.spec.config import ModelConfig, SamplingDefaults

DEMO_BUNDLE = Path(__file__).parents[1] / "data" / "demo"
BUNDLES = Path("bundles")
PLAN_LOCK = ".plans.lock"
"""In a bundle while its plans change."""


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
    smooth: bool
    """Whether its graphs can mix codebook entries."""
    sampling: SamplingDefaults
    labels: tuple[str, ...] | None
    build_key: str
    """SHA-256 over everything that the graphs were made from."""
    golden_key: str
    files: Mapping[str, FileEntry]
    constants: Mapping[str, StoredTensor]
    plans: tuple[PlanSet, ...]
    """Engines for GPUs, oldest first."""
    provenance: Mapping[str, Any]
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
        bundle = cls(path=path, **parse_manifest(read_manifest(path), path / MANIFEST))
        for name, entry in bundle.files.items():
            _check_file(path / name, entry, verify)
        return bundle

    @property
    def high_precision(self) -> str:
        """What is not quantised computes in: the precision itself, except in INT8."""
        return choices.HIGH_PRECISIONS[self.target] if self.precision == choices.INT8 else self.precision

    @property
    def for_gpus(self) -> bool:
        """True where ONNX Runtime cannot run the graphs: BF16, and INT8 in FP16 as TensorRT wants it."""
        return self.precision == "bf16" or (self.precision == choices.INT8 and self.target == "tensorrt")

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs this bundle holds."""
        return contract.graphs_of(self.form)

    @property
    def forms(self) -> tuple[str, ...]:
        """`stepwise`, `fused`, or both; the first is the default."""
        return choices.FORMS if self.form == choices.BOTH else (self.form,)

    def graph_path(self, graph: str) -> Path:
        """The ONNX file of a graph. Raises `BundleError` where the bundle was built without it."""
        if graph not in self.graphs:
            raise BundleError(
                f"{self.path} was built with --form {self.form} and has no {graph} graph; use --form both"
            )
        return self.path / f"{graph}.onnx"

    def plan_problem(self, plan: PlanFile) -> str | None:
        """Why a plan's file cannot be trusted, or None. Hashes the file: call it right before the file is used."""
        try:
            _check_file(self.path / plan.file, FileEntry(plan.size, plan.sha256), True)
        except BundleError as error:
            return str(error)
        return None

    def tensors(self, graph: str) -> tuple[tuple[contract.TensorInfo, ...], tuple[contract.TensorInfo, ...]]:
        """Inputs and outputs of a graph."""
        return contract.resolve(contract.GRAPHS[graph], self.config, self.high_precision, smooth=self.smooth)

    def constant(self, name: str) -> NDArray[Any]:
        """A constant of the scale loop, mapped from the weight file."""
        entry = self.constants[name]
        return np.memmap(self.path / WEIGHTS, entry.dtype, "r", entry.offset, entry.shape)

    @cached_property
    def golden(self) -> Mapping[str, NDArray[Any]]:
        """Arrays of the golden run (docs/fidelity.md). Raises `BundleError` where one is missing or unreadable."""
        file = self.path / GOLDEN
        arrays = contract.GOLDEN_ARRAYS | (contract.SMOOTH_ARRAYS if self.smooth else {})
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in arrays}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{file} is no golden run ({error!s:.200}); build the bundle again") from error

    def weights_bytes(self) -> int:
        """Size of the weight file."""
        return self.files[WEIGHTS].size


def _check_file(file: Path, entry: FileEntry, verify: bool) -> None:
    if not file.is_file():
        raise BundleError(f"{file} is missing; copy the whole folder, or build the bundle again")
    size = file.stat().st_size
    if size != entry.size:
        raise BundleError(f"{file} has {size} bytes instead of {entry.size}; copy it again, or build again")
    if verify and sha256_of(file) != entry.sha256:
        raise BundleError(f"{file} is not the file that was built (SHA-256 differs); copy it again, or build again")


def is_bundle_folder(path: Path) -> bool:
    """True where `path` is a folder whose manifest is a bundle's, whatever its version and state."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"schema", "contract", "build_key"} <= set(manifest)


def foreign_files(path: Path) -> list[str]:
    """Names in a bundle's folder that no bundle has: somebody put them there."""
    own = {MANIFEST, f".{MANIFEST}.partial", FOLDER, PLAN_LOCK, *needed_files("both")}
    return sorted(file.name for file in path.iterdir() if file.name not in own)


def sha256_of(file: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def second_name(file: Path, link: Path) -> None:
    """The same content in another folder: a hard link, since ONNX Runtime follows no symbolic ones to weights."""
    try:
        os.link(file, link)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, link)


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
