"""The run: probes, then every step in its order, each outcome kept at once.

out/gpu-check.json, gpu-check.md   the outcomes of what was asked for, written anew after every step
out/results/                       every outcome under the key of what decided it
out/bundles/                       bundles and their plans
out/logs/                          what each step printed
"""

from __future__ import annotations

import datetime
import time
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from calib.keys import FIGURES, code_digest
from engines.cli.common import version
from engines.errors import BackendError
from engines.host import environment
from engines.machine import machine
from engines.progress import Progress
from engines.spec.choices import BOTH, FORMS, ONNXRUNTIME
from engines.storage import write_json, write_text
from var_export.gpu_check import isolation, report
from var_export.gpu_check.cases import (
    PROBES,
    STATIC,
    CheckStep,
    Settings,
    Skipped,
    StepJob,
    bundle_folder,
    plan_steps,
    plans_folder,
)
from var_export.gpu_check.store import DONE, EXPORTERS, FAILED, MISSED, ROOM, Record, Store, key_of

SCHEMA = 1
PAGE, DOCUMENT = "gpu-check.md", "gpu-check.json"
JUDGED = ("bundle", "plans", "verify", "bench")
"""Steps whose failure fails the check; a race that PyTorch cannot take part in does not."""
TIMED = ("bench", "race")
CHANGING = ("free_memory", "nvidia_smi")
"""What a probe tells that differs from run to run."""


class GpuCheck:
    """One run of the check, with everything in the folder `out`; `resume` takes earlier outcomes that still hold."""

    def __init__(self, settings: Settings, out: Path, *, resume: bool = True, progress: Progress) -> None:
        self.settings, self.out = settings, out
        self._resume, self._progress = resume, progress
        self._store = Store(out / "results")
        self._probes: dict[str, Record] = {}
        self._records: list[Record] = []
        self._skipped: list[Skipped] = []
        self._folders: dict[CheckStep, Path] = {}
        """Where the engines of a set of plans lie, by a step without kind and rival."""
        self._keys: dict[tuple[str, str], str] = {}
        """Build key of each bundle, by model and precision."""
        self._sources = ""
        self._machine = asdict(machine())  # before there is any load of our own
        self._started = _now()
        self._state = "running"

    def run(self) -> dict[str, Any]:
        """Do everything, and return the document.

        Raises `BackendError` where nothing here computes on a GPU, `UsageError` where the folder cannot be written;
        KeyboardInterrupt on Ctrl-C: what was done by then is kept.
        """
        write_text(self.out / ".gitignore", "*\n", remedy=ROOM)
        self._sources = code_digest(FIGURES)
        capability = self._probe()
        problems = {name: record.error for name, record in self._probes.items()}
        steps, self._skipped = plan_steps(self.settings, problems, capability)
        try:
            for number, step in enumerate(steps, 1):
                self._take(step, f"{number}/{len(steps)}")
            self._state = "finished"
        except KeyboardInterrupt:
            self._state = "interrupted"
            raise KeyboardInterrupt(
                f"interrupted: {len(self._records)} outcomes are kept in {self.out}; the same command continues"
            ) from None
        finally:
            document = self._write()
        report.page(document)  # if it cannot be made, now is the time to say so
        return document

    def _probe(self) -> str:
        """Look for GPU, backends and PyTorch; the GPU's compute capability."""
        for name in PROBES:
            left_out = name in PROBES[1:-1] and name not in self.settings.backends
            no_torch = not self.settings.torch or (name == "torch" and self._probes["gpu"].error is not None)
            if left_out or (name == "torch" and no_torch):
                continue
            self._probes[name] = self._do(CheckStep(kind="probe", backend=name), None, "")
        gpu = self._probes["gpu"]
        reasons = {name: self._probes[name].error for name in self.settings.backends}
        if gpu.error or all(reasons.values()):
            found = ["" if gpu.error is None else f"GPU: {gpu.error}"]
            found += [f"{name}: {reason}" for name, reason in reasons.items() if reason and reason != gpu.error]
            raise BackendError(
                f"nothing here can be checked on a GPU: {'; '.join(filter(None, found))}; see also: var-export doctor"
            )
        assert gpu.result is not None
        return str(gpu.result["compute_capability"])

    def _take(self, step: CheckStep, count: str) -> None:
        """Do one step, unless what it builds upon failed."""
        if step.kind == "bundle":
            record = self._do(step, None, count)
            if record.result is not None:
                self._keys[step.model, step.precision] = record.result["build_key"]
        elif (step.model, step.precision) not in self._keys:
            self._skip(step, "its bundle could not be built")
        elif step.kind == "plans":
            self._plan(step, count)
        else:
            plain = step.backend == ONNXRUNTIME
            folder = bundle_folder(self.out, step) if plain else self._folders.get(_engines(step))
            if folder is None:
                self._skip(step, "its plans could not be built")
            else:
                self._do(step, folder, count)

    def _plan(self, step: CheckStep, count: str) -> None:
        """Plans of all forms at once; where that fails, each form alone, until one works."""
        if self._try_plans(step, count) or step.form != BOTH:
            return
        for form in FORMS:
            if self._try_plans(replace(step, form=form), count):
                return

    def _try_plans(self, step: CheckStep, count: str) -> bool:
        record = self._do(step, None, count)
        if record.status != DONE:
            return False
        for form in FORMS if step.form == BOTH else (step.form,):
            self._folders[_engines(replace(step, form=form))] = plans_folder(self.out, step)
        return True

    def _skip(self, step: CheckStep, reason: str) -> None:
        skipped = Skipped(step.case, reason)
        if skipped not in self._skipped:
            self._skipped.append(skipped)

    def _do(self, step: CheckStep, folder: Path | None, count: str) -> Record:
        """Run a step, or take its outcome from an earlier run; either way it is on disk when this returns."""
        timed = step.kind in TIMED
        job = StepJob(
            step=step,
            out=self.out,
            folder=folder,
            device=self.settings.device,
            batches=(1,) if step.batch == STATIC[2] else self.settings.batches,
            runs=self.settings.runs if timed else 0,
        )
        key = key_of(job if timed else replace(job, batches=()), self._surroundings(step))
        probe = step.kind == "probe"
        known = self._store.load(step, key) if self._resume and not probe else None
        if known is not None:
            self._progress(f"{count} {step.name}: known", None)
            self._records.append(known)
            self._write()
            return known

        def tell(line: str, done: float | None = None) -> None:
            self._progress(" ".join(filter(None, (count, step.name, "-", line))), done)

        started, start = _now(), time.monotonic()
        outcome = isolation.run(job, log=self.out / "logs" / f"{step.slug}.log", tell=tell)
        seconds = round(time.monotonic() - start, 1)
        record = Record(step=step, key=key, started=started, seconds=seconds, **vars(outcome))
        if not probe:
            self._records.append(record)
            self._store.save(record)
            self._write()
        return record

    def _surroundings(self, step: CheckStep) -> dict[str, Any]:
        """What decides the outcome of a step beside itself."""
        if step.kind == "probe":
            return {}
        here: dict[str, Any] = {"sources": self._sources}
        versions = environment.installed()
        if step.kind == "bundle":
            return here | {"packages": {name: versions.get(name) for name in EXPORTERS}}
        here["bundle"] = self._keys[step.model, step.precision]
        for name in ("gpu", step.backend, *(("torch",) if step.kind == "race" else ())):
            found = self._probes[name].result or {}
            here[name] = {field: value for field, value in found.items() if field not in CHANGING}
        return here

    def document(self) -> dict[str, Any]:
        """Everything that is known by now, as plain JSON types."""
        records = [record.to_dict() for record in self._records]
        return {
            "schema": SCHEMA,
            "version": version(),
            "state": self._state,
            "started": self._started,
            "updated": _now(),
            "verdict": verdict(self._records, self._state),
            "settings": asdict(self.settings),
            "machine": self._machine,
            "packages": environment.installed(),
            "probes": {
                name: {"problem": record.error, **(record.result or {})} for name, record in self._probes.items()
            },
            "steps": records,
            "not_run": [asdict(skipped) for skipped in self._skipped],
        }

    def _write(self) -> dict[str, Any]:
        """Put the document and its page on disk, as they are by now."""
        document = self.document()
        write_json(self.out / DOCUMENT, document, allow_nan=False, remedy=ROOM)
        try:
            page = report.page(document)
        except Exception:  # hours of a rented GPU must not end for a table
            page = f"This page could not be made; {DOCUMENT} holds everything.\n\n    {traceback.format_exc()}"
        write_text(self.out / PAGE, page, remedy=ROOM)
        return document


def verdict(records: list[Record], state: str) -> dict[str, Any]:
    """Passed where everything that is judged ran to its end and kept its thresholds."""
    failures = []
    for record in records:
        if record.step.kind not in JUDGED:
            continue
        if record.status == FAILED:
            failures.append(f"{record.step.name} failed: {record.error}")
        elif record.status == MISSED:
            assert record.result is not None
            failures.append(f"{record.step.name} misses the reference: {'; '.join(record.result['failures'])}")
    checked = [record for record in records if record.step.kind == "verify"]
    if state == "finished" and not checked and not failures:
        failures.append("nothing was checked: see what did not run")
    return {
        "passed": not failures and state == "finished",
        "checked": len(checked),
        "within_thresholds": sum(record.status == DONE for record in checked),
        "failures": failures,
    }


def _engines(step: CheckStep) -> CheckStep:
    return replace(step, kind="plans", rival="")


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
