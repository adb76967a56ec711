"""Outcomes of steps on disk, each under a key over all that decides it: a second run takes what still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle
from engines.errors import BundleError, UsageError
from var_export.gpu_check.cases import Job, Step

DONE, MISSED, FAILED = "done", "missed", "failed"
ROOT = Path(__file__).parents[2]
# What decides a figure; how a page looks does not.
SOURCES = (
    *("engines", "var_export/model", "var_export/graphs", "var_export/export"),
    *("calib/judge/assembly.py", "var_export/build.py", "var_export/golden.py", "var_export/live.py"),
    *(f"var_export/gpu_check/{name}.py" for name in ("building", "hardware", "race", "work")),
)
EXPORTERS = ("torch", "onnx", "onnxscript", "numpy", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What came of one step."""

    step: Step
    key: str
    status: str
    """`done`; `missed`: a verification came to its end and misses a threshold; `failed`: it came to no end."""
    started: str
    """Date and time."""
    seconds: float
    result: dict[str, Any] | None = None
    error: str | None = None
    trace: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {"name": self.step.name, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Record:
        """See `to_dict`. Raises `TypeError` and `KeyError` on what is none."""
        fields = {name: item for name, item in value.items() if name != "name"}
        return cls(**fields | {"step": Step(**fields["step"])})


class Store:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, step: Step, key: str) -> Record | None:
        """The record of a step that went through under this key, whose outcome is still there."""
        try:
            record = Record.from_dict(json.loads(self._file(step, key).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record if record.key == key and record.status != FAILED and _still_there(record) else None

    def save(self, record: Record) -> None:
        """Whole or not at all."""
        write(self._file(record.step, record.key), json.dumps(record.to_dict(), indent=1, allow_nan=False) + "\n")

    def _file(self, step: Step, key: str) -> Path:
        return self._folder / f"{step.slug}-{key[:12]}.json"


def _still_there(record: Record) -> bool:
    """Whether the bundle or the plans that a step made are where it left them."""
    result = record.result or {}
    if record.step.kind not in ("bundle", "plans"):
        return True
    try:
        bundle = Bundle.open(result["path"], verify=False)
    except BundleError:
        return False
    if record.step.kind == "bundle":
        return bool(bundle.build_key == result["build_key"])
    return any(
        plans.key == result["set"]["key"] and all((bundle.path / plan.file).is_file() for plan in plans.graphs.values())
        for plans in bundle.plans
    )


def key_of(job: Job, surroundings: Mapping[str, Any]) -> str:
    """SHA-256 over a job without its folders, and whatever else decides its outcome."""
    value = {
        "step": asdict(job.step),
        "device": job.device,
        "batches": job.batches,
        "runs": job.runs,
        "surroundings": surroundings,
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def source_digest() -> str:
    """Of the code that decides the figures."""
    files: list[Path] = []
    for name in SOURCES:
        place = ROOT / name
        files += [place] if place.is_file() else place.rglob("*.py")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def write(file: Path, text: str) -> None:
    """Replace a file in one step. Raises `UsageError` where it cannot be written."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise UsageError(
            f"cannot write {file} ({error.strerror}): make room, or choose another --out; "
            "the same command continues with what is there"
        ) from error
