"""Bundles: the directory that a user copies to a device, and everything that guards it.

Layout: `manifest.json`, one `.onnx` file per graph, `weights.bin` (which all graphs reference),
`golden.npz`, and `plans/` with the engines that were built for GPUs. Nothing is trusted before its size and
SHA-256 match the manifest. docs/bundles.md has the format.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from engines.bundle.held import HeldFiles
from engines.bundle.manifest import GOLDEN, MANIFEST, WEIGHTS, Manifest, graph_file, is_bundle
from engines.bundle.plans import FileEntry, PlanFile, PlanSet, Platform
from engines.errors import BundleError, UsageError
from engines.foreign import read_arrays, reading
from engines.hub import download, is_hub_name, parse_hub_folder
from engines.spec import golden_run
from engines.spec.choices import CHECKPOINT_SUFFIXES
from engines.storage import expanded, sha256_of

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
    held: HeldFiles
    """The files that the manifest lists, as they were when the bundle was opened."""

    def __init__(self, path: Path, manifest: Manifest, held: HeldFiles) -> None:
        vars(self).update(vars(manifest), path=path, manifest=manifest, held=held)  # frozen, like every manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read a folder; `verify`: compare every file's SHA-256, as sizes are compared always.

        Raises `BundleError` where anything is missing, damaged, or of another schema.
        """
        if not str(path):
            raise BundleError("the path of the bundle is empty: name a folder, or None for the default")
        path = _downloaded(path) if is_hub_name(path) else expanded(path)
        while True:  # until no other bundle takes its place meanwhile
            place, problem = place_of(path), None
            before = _identity(place)
            try:
                bundle = cls._open(place, verify)
            except BundleError as error:
                problem = error
            if _settled(path, place, before):
                if problem is not None:
                    raise problem
                return bundle

    @classmethod
    def _open(cls, path: Path, verify: bool) -> Bundle:
        manifest = Manifest.read(path)
        for name in manifest.files:
            if not (path / name).is_file():
                raise BundleError(f"{path / name} is missing; copy the whole folder, or build the bundle again")
        try:
            bundle = cls(path, manifest, HeldFiles(path, manifest.files))
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}; copy it again, or build again") from error
        for name, entry in manifest.files.items():
            known = partial(bundle.held.sha256, name) if verify else partial(str, entry.sha256)
            _check(path / name, entry, bundle.held.size(name), known)
        return bundle

    def graph_path(self, graph: str, *, cpu: bool = False) -> Path:
        """The ONNX file of a graph, for a GPU or a `cpu`, for who opens it by its name, as its weights beside it.

        Raises `BundleError` where the bundle has none, or was replaced since it was opened.
        """
        name = self.graph_name(graph, cpu=cpu)
        if not self.held.in_place(name, WEIGHTS):
            raise BundleError(f"{self.path} was replaced since it was opened; open it again")
        return self.path / name

    def graph_name(self, graph: str, *, cpu: bool = False) -> str:
        """The name of a graph's ONNX file, for a GPU or a `cpu`. Raises `BundleError` where the bundle has none."""
        if graph not in self.graphs:
            raise BundleError(
                f"{self.path} was built with --form {self.form} and has no {graph} graph; use --form both"
            )
        return graph_file(graph, self.precision, cpu=cpu)

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
            _check_file(self.path / plan.file, plan)
        except BundleError as error:
            return str(error)
        return None

    def constant(self, name: str) -> NDArray[Any]:
        """A constant of the scale loop, mapped from the weight file."""
        entry = self.constants[name]
        count = int(np.prod(entry.shape))
        return np.frombuffer(self.held.view(WEIGHTS), entry.dtype, count, entry.offset).reshape(entry.shape)

    @cached_property
    def golden(self) -> Mapping[str, NDArray[Any]]:
        """Arrays of the golden run (docs/fidelity.md). Raises `BundleError` where one is missing or unreadable."""
        file, form = self.path / GOLDEN, golden_run.GoldenForm(self.config, smooth=self.smooth)
        how: Any = {"what": "golden run", "error": BundleError, "remedy": "build the bundle again"}
        arrays = read_arrays(file, form.names, form.accept, data=self.held.read(GOLDEN), **how)
        with reading(file, **how):
            form.check_values(arrays)
        return arrays


def _check_file(file: Path, entry: FileEntry) -> None:
    """Raises `BundleError` unless a file is as its entry says."""
    if not file.is_file():
        raise BundleError(f"{file} is missing; copy the whole folder, or build the bundle again")
    _check(file, entry, file.stat().st_size, lambda: sha256_of(file))


def _check(file: Path, entry: FileEntry, size: int, sha256: Callable[[], str]) -> None:
    """Raises `BundleError` unless a file has the size and the SHA-256 of its entry."""
    if size != entry.size:
        raise BundleError(f"{file} has {size} bytes instead of {entry.size}; copy it again, or build again")
    if sha256() != entry.sha256:
        raise BundleError(f"{file} is not the file that was built (SHA-256 differs); copy it again, or build again")


def _downloaded(name: str | Path) -> Path:
    """The local folder of a bundle of the Hub, all files of one commit. Raises `BundleError`."""
    folder = parse_hub_folder(name)
    manifest = cast("Path", download(folder.inside(MANIFEST), error=BundleError))
    # The cache keeps a folder for each commit: the others come from the one that the manifest is of.
    commit = manifest.parents[len(Path(folder.file).parts)].name
    of_commit = dataclasses.replace(folder, revision=commit)
    facts = Manifest.read(manifest.parent)
    for file in (*facts.files, *(plan.file for plans in facts.plans for plan in plans.graphs.values())):
        download(of_commit.inside(file), error=BundleError)
    return manifest.parent


def is_hub_bundle(name: str | Path) -> bool:
    """Whether an `hf://` name means a folder that is a bundle; False too where the Hub cannot be asked."""
    try:
        folder = parse_hub_folder(name)
    except UsageError:
        return False
    if folder.file.endswith(CHECKPOINT_SUFFIXES):
        return False
    return download(folder.inside(MANIFEST), missing_ok=True, unreachable_ok=True) is not None


def place_of(path: Path) -> Path:
    """Where a bundle lies: at its path, or beside it where a build was killed in the moment of replacing it."""
    previous = previous_of(path)
    with reading(path, "bundle", error=BundleError):  # whose name may be too long to ask
        return previous if not path.exists() and previous.is_dir() else path


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name; None where there is none."""
    try:
        state = folder.stat()
    except (OSError, ValueError):  # ValueError: of a null character
        return None
    return state.st_dev, state.st_ino


def _settled(path: Path, place: Path, before: tuple[int, int] | None) -> bool:
    """Whether the bundle at `path` is still the one that lay at `place`, with the identity `before`, or still none."""
    if before is None:  # one that is being replaced lies at one of its two places at any time
        return all(_identity(at) is None for at in (path, previous_of(path), path))
    return place_of(path) == place and _identity(place) == before


def previous_of(path: Path) -> Path:
    """Where a bundle lies while another takes its place."""
    return path.parent / f".{path.name}.previous"


def standing_bundles(under: Path = BUNDLES) -> list[Path]:
    """The bundles in a folder, the newest first; by default in `bundles/`, where a build without --out leaves them."""
    folders = list(under.iterdir()) if under.is_dir() else []
    names = {re.sub(r"^\.(.+)\.previous$", r"\1", folder.name) for folder in folders}
    places = [under / name for name in names if not name.startswith(".")]
    found = [place for place in places if is_bundle(place_of(place))]
    return sorted(found, key=lambda place: (place_of(place) / MANIFEST).stat().st_mtime, reverse=True)


def default_bundle() -> tuple[Path, str]:
    """The bundle to use where none is named: the newest under `bundles/`, else the embedded demo.

    Returns its path and a phrase that says which it is.
    """
    found = standing_bundles()
    if not found:
        return DEMO_BUNDLE, "the embedded demo bundle"
    more = f", of {len(found)} (--bundle BUNDLE takes another, var-export list shows them)" if len(found) > 1 else ""
    return found[0], f"the newest bundle, {found[0]}{more}"
