"""Writing a bundle so that it exists whole or not at all.

Files go to a hidden sibling of the target; the manifest, written last, makes it a bundle, and a rename
puts it in place. A lock keeps two builds of one target apart and tells a dead build's leftovers from a
live one's. Plans join a finished bundle in the same way: a folder first, the manifest last; the lock of
that lies in the bundle, since the folder around it may belong to somebody else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle, previous_of
from engines.bundle.manifest import MANIFEST, BuildFigures, Manifest, is_bundle, needed_files
from engines.bundle.plans import FOLDER, FileEntry, PlanSet
from engines.errors import BundleError, UsageError
from engines.spec.choices import BOTH
from engines.storage import Lock, atomic_write, parts, sha256_of, sync_to_disk, write_json, writing

COPY = "copy the bundle elsewhere"
ROOM = f"make room, or {COPY}"
PLAN_LOCK = ".plans.lock"
"""The file in a bundle that is locked while its plans change."""


def existing_bundle(out: Path, build_key: str, force: bool) -> Bundle | None:
    """The bundle at `out`, which a build may replace; None where there is none that can be read.

    Args:
        out: where the build is to put its bundle.
        build_key: the key of what is to be built: a bundle that has it is returned whatever else holds.
        force: whether a bundle made from something else may be replaced.

    Raises `UsageError` where `out` is not the build's to replace.

    """
    if not out.exists() and not out.is_symlink():
        return None
    if not is_bundle(out):
        raise UsageError(f"{out} exists and is no bundle; choose another --out")
    strangers = foreign_files(out)
    try:
        bundle = Bundle.open(out)
    except BundleError as error:
        if not force:
            raise UsageError(f"{error}; add --force to replace it, or choose another --out") from error
        bundle = None
    if bundle is not None and bundle.build_key == build_key:
        return bundle
    if strangers:
        raise UsageError(
            f"{out} holds files that are no part of a bundle ({', '.join(strangers[:3])}); "
            "move them, or choose another --out"
        )
    if not force:
        raise UsageError(
            f"{out} holds a bundle made from another checkpoint, option or version; "
            "add --force to replace it, or choose another --out"
        )
    return bundle


def foreign_files(path: Path) -> list[str]:
    """Names in a bundle's folder that no bundle has: somebody put them there."""
    own = {MANIFEST, *(part.name for part in parts(path, MANIFEST)), FOLDER, PLAN_LOCK, *needed_files(BOTH, "fp16")}
    return sorted(file.name for file in path.iterdir() if file.name not in own)


def bundle_lock(target: Path) -> Lock:
    """The lock of whoever puts the bundle `target` in place."""
    return _lock(target, target.parent / f".{target.name}.lock", "choose another --out")


def plans_lock(bundle: Path) -> Lock:
    """The lock of whoever changes the plans of a bundle, or takes its place."""
    return _lock(bundle, bundle / PLAN_LOCK, COPY)


def _lock(target: Path, file: Path, remedy: str) -> Lock:
    return Lock(file, busy=f"another build is writing {target}; wait for it, or {remedy}", remedy=remedy)


class BundleWriter:
    """Context manager over the folder that becomes the bundle on `publish`; gone without that."""

    def __init__(self, target: Path) -> None:
        self._named = target
        self.target = target.resolve()  # of a link, what it leads to
        self._replaces = False
        parent, name = self.target.parent, self.target.name
        self.folder = parent / f".{name}.partial"
        self._previous = previous_of(self.target)
        self._lock = bundle_lock(self.target)
        self._plans_lock = plans_lock(self.target)  # of the bundle that this one replaces

    def __enter__(self) -> BundleWriter:
        self._lock.acquire()
        # The lock is ours, so whatever lies here was left by a build that died.
        if self._previous.exists():
            if self.target.exists():
                shutil.rmtree(self._previous)
            else:
                self._previous.rename(self.target)
        self._replaces = self.target.exists()
        if self._replaces:
            try:
                self._plans_lock.acquire()
            except BaseException:
                self._lock.release()
                raise
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self

    def seal(self, manifest: Manifest) -> Bundle:
        """Hash the files and write the manifest, which names none of them yet: the hidden folder is a bundle now.

        It can be opened and checked where it is, and has another path once it is published.
        """
        entries = {}
        for file in sorted(set(self.folder.iterdir()) - {self.folder / MANIFEST}):  # that is left of an earlier seal
            entries[file.name] = FileEntry(file.stat().st_size, sha256_of(file))
            sync_to_disk(file)
        _write_manifest(self.folder, replace(manifest, files=entries))
        return Bundle.open(self.folder, verify=False)

    def publish(self, figures: Mapping[str, BuildFigures] | None = None) -> Bundle:
        """Put the sealed bundle in place of whatever was there; `figures`: what its check measured, by form."""
        if figures:
            _write_manifest(self.folder, replace(Manifest.read(self.folder), figures=figures))
        if self.target.exists():
            if not self._replaces:
                raise UsageError(f"{self.target} appeared while its bundle was built; move it, and build again")
            self.target.rename(self._previous)
            self._plans_lock.release(moved=True)
        self.folder.rename(self.target)
        sync_to_disk(self.target.parent)
        shutil.rmtree(self._previous, ignore_errors=True)
        return Bundle.open(self._named, verify=False)

    def __exit__(self, *raised: object) -> None:
        if self._previous.exists() and not self.target.exists():  # interrupted between the two renames
            self._previous.rename(self.target)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._plans_lock.release()
        self._lock.release()


class PlanWriter:
    """Context manager over the folder of a new plan set of a bundle; gone without `publish`."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.name = name
        self._bundle = bundle.path.resolve()
        self._plans = self._bundle / FOLDER
        self.folder = self._plans / f".{name}.partial"
        self._lock = plans_lock(self._bundle)

    def __enter__(self) -> PlanWriter:
        self._lock.acquire()
        try:
            with writing(self._plans, ROOM):
                self._plans.mkdir(exist_ok=True)
                for leftover in self._plans.glob(".*.partial"):  # of a build that died: the lock is ours
                    shutil.rmtree(leftover)
                self.folder.mkdir()
        except BaseException:
            self._lock.release()
            raise
        return self

    def add(self, file: str, plan: Any) -> FileEntry:
        """Store the bytes of one plan (a buffer)."""
        path = self.folder / file
        with atomic_write(path, sync=True, remedy=ROOM) as stream:
            stream.write(memoryview(plan))
        return FileEntry(path.stat().st_size, sha256_of(path))

    def publish(self, plans: PlanSet) -> tuple[str, ...]:
        """Put the set into the bundle; it takes the place of those for the same product and GPU, whose names return."""
        manifest = Manifest.read(self._bundle)
        same = [old for old in manifest.plans if _serves(old) == _serves(plans)]
        final = self._plans / self.name
        kept = tuple(old for old in manifest.plans if old not in same)
        with writing(self._bundle, ROOM):
            if final.exists():  # what lies there was damaged, or is not listed
                shutil.rmtree(final)
            self.folder.rename(final)
        _write_manifest(self._bundle, replace(manifest, plans=(*kept, plans)))
        return tuple(old.name for old in same if old.name != self.name)

    def __exit__(self, *raised: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for part in parts(self._bundle, MANIFEST):  # of a build that died
            part.unlink(missing_ok=True)
        _remove_unlisted(self._bundle)
        self._lock.release()


def withdraw_plans(path: Path, name: str) -> None:
    """Take a plan set out of a bundle again. Raises `UsageError` where another build is writing it."""
    path = path.resolve()
    with plans_lock(path):
        manifest = Manifest.read(path)
        kept = tuple(plans for plans in manifest.plans if plans.name != name)
        _write_manifest(path, replace(manifest, plans=kept))
        _remove_unlisted(path)


def _remove_unlisted(folder: Path) -> None:
    """Folders of plans that the manifest does not know: superseded, withdrawn, or left by a build that died."""
    try:
        listed = {plans.name for plans in Manifest.read(folder).plans}
        for plans in (folder / FOLDER).iterdir():
            ours = plans.is_dir() and all(file.suffix == ".plan" for file in plans.iterdir())
            if ours and plans.name not in listed:
                shutil.rmtree(plans, ignore_errors=True)
        if not listed:
            (folder / FOLDER).rmdir()
    except (OSError, BundleError):  # nothing to remove, or a file of somebody else in there
        pass


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """In one step: readers see the old manifest or the new one."""
    write_json(folder / MANIFEST, manifest.to_dict(), sync=True, remedy=ROOM)


def _serves(plans: PlanSet) -> tuple[object, ...]:
    """What two plan sets share when the newer takes the place of the older."""
    built = plans.built_on
    return built.target, built.version, built.system, built.gpu, plans.compute_capabilities
