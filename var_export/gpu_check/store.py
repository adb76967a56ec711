"""Outcomes of steps on disk, each under a key over all that decides it: a second run takes what still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle
from engines.errors import BundleError
from engines.foreign import MALFORMED, read_json
from engines.storage import digest_of, write_json
from var_export.gpu_check.cases import CheckStep, StepJob
from var_export.gpu_check.isolation import Outcome

DONE, MISSED, FAILED = "done", "missed", "failed"
ROOM = "make room, or choose another --out; the same command continues with what is there"
EXPORTERS = ("torch", "onnx", "onnxscript", "numpy", "onnxruntime", "onnxruntime-gpu")


@dataclass(kw_only=True)
class Record(Outcome):
    """What came of one step, and when."""

    step: CheckStep
    key: str
    started: str
    """Date and time."""
    seconds: float

    @property
    def status(self) -> str:
        """`done`; `missed`: a verification came to its end and misses a threshold; `failed`: it came to no end."""
        if self.error is not None or self.result is None:
            return FAILED
        return DONE if self.result.get("passed", True) else MISSED

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, what was done before what came of it; `from_dict` is the inverse."""
        done = {name: getattr(self, name) for name in ("step", "key", "started", "seconds")}
        return {"name": self.step.name, "status": self.status, **done, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Record:
        """See `to_dict`. Raises `TypeError` and `KeyError` on what is none."""
        fields = {name: item for name, item in value.items() if name not in ("name", "status")}
        return cls(**fields | {"step": CheckStep(**fields["step"])})


class Store:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, step: CheckStep, key: str) -> Record | None:
        """The record of a step that went through under this key, whose outcome is still there."""
        try:
            record = Record.from_dict(read_json(self._file(step, key)))
        except MALFORMED:  # a UsageError too
            return None
        return record if record.key == key and record.status != FAILED and _still_there(record) else None

    def save(self, record: Record) -> None:
        """Whole or not at all."""
        write_json(self._file(record.step, record.key), record.to_dict(), allow_nan=False, remedy=ROOM)

    def _file(self, step: CheckStep, key: str) -> Path:
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


def key_of(job: StepJob, surroundings: Mapping[str, Any]) -> str:
    """SHA-256 over a job without its folders, and whatever else decides its outcome."""
    value = {
        "step": asdict(job.step),
        "device": job.device,
        "batches": job.batches,
        "runs": job.runs,
        "surroundings": surroundings,
    }
    return digest_of(value)
