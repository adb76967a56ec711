"""A step in a process of its own.

A CUDA error that sticks, a crash inside of TensorRT or the system's out-of-memory killer ends one step; memory of the
GPU is free again when the next begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.progress import Progress
from var_export.gpu_check.cases import StepJob

WORKER: tuple[str, ...] = (sys.executable, "-X", "faulthandler", "-m", "var_export.gpu_check.worker")
LIMITS = {"probe": 300, "bundle": 3600, "plans": 4 * 3600, "verify": 1800, "bench": 1800, "race": 3600}
"""Seconds, by kind of step: for a Jetson; a step that hangs must not cost the others their turn."""
GRACE = 60  # seconds from the polite signal to the other one; TensorRT's builder stops between two kernels only
POLL = 0.2
LOG_LINES = 12
MAX_NOTES = 12


@dataclass
class Outcome:
    """What came of a step: a result or an error."""

    result: dict[str, Any] | None = None
    error: str | None = None
    trace: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, message: dict[str, Any], tell: Progress) -> None:
        """Keep, or pass on, one message of the worker."""
        if "say" in message:
            tell(message["say"], message["done"])
        elif "note" in message:
            if len(self.notes) < MAX_NOTES:
                self.notes.append(message["note"])
        elif "result" in message:
            self.result = message["result"]
        else:
            self.error, self.trace = message["error"], message["trace"]


def run(job: StepJob, *, log: Path, tell: Progress) -> Outcome:
    """Run a job in a process of its own, which prints into `log`, and wait for it.

    Raises KeyboardInterrupt on Ctrl-C, once the process has ended.
    """
    outcome, limit = Outcome(), LIMITS[job.step.kind]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [*WORKER, job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            start_new_session=True,  # Ctrl-C comes to us alone, and we pass it on once
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    try:
        for line in _lines(process, time.monotonic() + limit):
            with contextlib.suppress(ValueError, KeyError):  # half a line of a process that was killed
                outcome.take(json.loads(line), tell)
            if outcome.result is not None or outcome.error is not None:
                break
        if not _wait(process, GRACE):
            outcome.notes.append("its process did not end after its work, and was stopped")
    except TimeoutError:
        outcome.error = f"it took longer than {limit} s and was stopped"
    finally:
        _end(process)
    _judge_end(outcome, process.returncode, log)
    return outcome


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """What the process sends, until it closes the pipe or has ended: a grandchild may hold the pipe open."""
    assert process.stdout is not None
    pipe, rest = process.stdout.fileno(), b""
    while True:
        ended = _has_ended(process)
        ready, _, _ = select.select([pipe], [], [], 0 if ended else POLL)
        if ready:
            piece = os.read(pipe, 1 << 16)
            if not piece:
                return
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
        elif ended:
            return
        if time.monotonic() > deadline:
            raise TimeoutError


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Leaves the zombie, which holds the number of its process group: no other group can be meant by it."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ended within this time."""
    deadline = time.monotonic() + seconds
    while not _has_ended(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL / 4)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process if it still runs, and whatever it started."""
    try:
        if not _has_ended(process):
            _signal(process, signal.SIGINT)
            _wait(process, GRACE)
    finally:  # a second Ctrl-C leads here at once
        _signal(process, signal.SIGKILL)
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _judge_end(outcome: Outcome, code: int, log: Path) -> None:
    if outcome.result is not None:
        outcome.error = None
        if code:
            outcome.notes.append(f"its process {_ending(code)} after its work was done")
    elif outcome.error is None:
        outcome.error = f"its process {_ending(code)} before its work was done"
    if outcome.error is not None and not outcome.trace:
        outcome.trace = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    names = {number.value: number.name for number in signal.Signals}
    hint = ", as the system does where memory runs out," if code == -signal.SIGKILL else ""
    return f"was ended by {names.get(-code, f'signal {-code}')}{hint}"
