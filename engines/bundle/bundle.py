"""Bundles: the directory that a user copies to a device, and everything that guards it.

Layout: `manifest.json`, one `.onnx` file per graph, `weights.bin` (which all graphs reference),
`golden.npz`, and `plans/` with the engines that were built for GPUs. Nothing is trusted before its size and
SHA-256 match the manifest. docs/bundles.md has the format.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.manifest import GOLDEN, MANIFEST, WEIGHTS, Manifest, is_bundle
from engines.bundle.plans import FileEntry, PlanFile, PlanSet, Platform
from engines.errors import BundleError
from engines.spec import golden_run
from engines.storage import sha256_of

DEMO_BUNDLE = Path(__file__).parents[1] / "data" / "demo"
BUNDLES = Path("bundles")
"""Where builds put bundles whose place nobody names, relative to the working folder."""


class Bundle(Manifest):
    """A folder whose files were verified, with the facts of its manifest. `open` is the way to get one.

    What needs no file takes a `Manifest`, and a bundle is one. What describes another bundle is derived from
    `manifest`: there is no bundle with one fact replaced.
    """

    path: Path
    """The folder."""
    manifest: Manifest
    """The facts alone."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        vars(self).update(vars(manifest), path=path, manifest=manifest)  # frozen, like every manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read a folder; `verify`: compare every file's SHA-256, as sizes are compared always.

        Raises `BundleError` where anything is missing, damaged, or of another schema.
        """
        path = Path(path)
        bundle = cls(path, Manifest.read(path))
        for name, entry in bundle.files.items():
            _check_file(path / name, entry, verify)
        return bundle

    def graph_path(self, graph: str) -> Path:
        """The ONNX file of a graph. Raises `BundleError` where the bundle was built without it."""
        if graph not in self.graphs:
            raise BundleError(
                f"{self.path} was built with --form {self.form} and has no {graph} graph; use --form both"
            )
        return self.path / f"{graph}.onnx"

    def plans_for(self, here: Platform, graph: str) -> PlanSet:
        """The newest plan set that runs a graph on this machine. Raises `BundleError` that says why none does."""
        reasons = []
        for plans in reversed(self.plans):
            reason = plans.why_not(here, self.files, graph)
            if reason is None:
                return plans
            reasons.append(f"{plans.name}: {reason}")
        build = f"build one with: var-export build {self.path} --target {here.target}"
        if not reasons:
            raise BundleError(f"{self.path} holds no plans; {build}")
        raise BundleError(f"{self.path} holds no plan for {here} ({'; '.join(reasons)}); {build}")

    def plan_problem(self, plan: PlanFile) -> str | None:
        """Why a plan's file cannot be trusted, or None. Hashes the file: call it right before the file is used."""
        try:
            _check_file(self.path / plan.file, plan, True)
        except BundleError as error:
            return str(error)
        return None

    def constant(self, name: str) -> NDArray[Any]:
        """A constant of the scale loop, mapped from the weight file."""
        entry = self.constants[name]
        return np.memmap(self.path / WEIGHTS, entry.dtype, "r", entry.offset, entry.shape)

    @cached_property
    def golden(self) -> Mapping[str, NDArray[Any]]:
        """Arrays of the golden run (docs/fidelity.md). Raises `BundleError` where one is missing or unreadable."""
        file = self.path / GOLDEN
        arrays = golden_run.GOLDEN_ARRAYS | (golden_run.SMOOTH_ARRAYS if self.smooth else {})
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in arrays}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{file} is no golden run ({error!s:.200}); build the bundle again") from error


def _check_file(file: Path, entry: FileEntry, verify: bool) -> None:
    if not file.is_file():
        raise BundleError(f"{file} is missing; copy the whole folder, or build the bundle again")
    size = file.stat().st_size
    if size != entry.size:
        raise BundleError(f"{file} has {size} bytes instead of {entry.size}; copy it again, or build again")
    if verify and sha256_of(file) != entry.sha256:
        raise BundleError(f"{file} is not the file that was built (SHA-256 differs); copy it again, or build again")


def default_bundle() -> tuple[Path, str]:
    """The bundle to use where none is named: the newest under `bundles/`, else the embedded demo.

    Returns its path and a phrase that says which it is.
    """
    folders = BUNDLES.iterdir() if BUNDLES.is_dir() else ()
    found = [folder for folder in folders if not folder.name.startswith(".") and is_bundle(folder)]
    if found:
        newest = max(found, key=lambda path: (path / MANIFEST).stat().st_mtime)
        return newest, f"the newest bundle, {newest}"
    return DEMO_BUNDLE, "the embedded demo bundle"
