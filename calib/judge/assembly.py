"""What every build of a bundle does, whatever it is made from: torch-free.

The place it may take, the table of its graphs, and the check by which it earns its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib.graphs.emulate import emulated
from engines import backends
from engines.bundle.bundle import Bundle, foreign_files, is_bundle_folder
from engines.draw.pipeline import Pipeline
from engines.errors import BundleError, CheckFailedError, UsageError
from engines.fidelity.checks import verify, verify_fused
from engines.fidelity.reports import FusedReport, Report
from engines.spec import contract
from engines.spec.config import ModelConfig

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """The outcome of `build`."""

    bundle: Bundle
    reused: bool
    reports: dict[str, Report | FusedReport]
    """The check of each form against the golden run; empty where a finished bundle was found."""


def existing_bundle(out: Path, build_key: str, force: bool) -> Bundle | None:
    """The bundle at `out`, if there is one that can be read. Raises `UsageError` where `out` is not ours to replace."""
    if not out.exists() and not out.is_symlink():
        return None
    if not is_bundle_folder(out):
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


def check(bundle: Bundle, threads: int | None) -> dict[str, Report | FusedReport]:
    """Run the engines of every form once against the golden run; emulated where this CPU has no such arithmetic."""
    reports: dict[str, Report | FusedReport] = {}
    emulate = bundle.for_gpus
    with emulated(bundle) if emulate else contextlib.nullcontext(bundle) as runnable:
        for form in bundle.forms:
            backend = backends.create("onnxruntime", threads=threads)
            with Pipeline(runnable, backend, form=form, max_batch=1) as pipeline:
                judge = verify if form == "stepwise" else verify_fused
                reports[form] = judge(pipeline, bundle.golden, bundle.precision)
            report = reports[form]
            if not report.passed:
                parts = report.failed_parts if isinstance(report, Report) else ()
                failures = "; ".join(report.failures)
                raise CheckFailedError(f"the exported {form} engines miss the reference: {failures}", parts)
    return reports


def graph_table(config: ModelConfig, form: str, precision: str, *, smooth: bool = False) -> dict[str, Any]:
    """Every input and output of every graph of a bundle, as the manifest lists them."""
    table = {}
    for name in contract.graphs_of(form):
        inputs, outputs = contract.resolve(contract.GRAPHS[name], config, precision, smooth=smooth)
        table[name] = {"inputs": [vars(info) for info in inputs], "outputs": [vars(info) for info in outputs]}
    return table


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def source_digest(sources: Sequence[str]) -> str:
    """Of code that decides what is in a bundle, files and folders relative to the packages: changed, it builds anew."""
    root = Path(__file__).parents[2]
    places = [root / name for name in sources]
    files = sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
