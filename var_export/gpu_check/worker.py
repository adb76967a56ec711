"""The process of one step: `python -m var_export.gpu_check.worker JOB`.

It writes JSON lines to stdout: {"say": ..., "done": ...} while it works, {"note": ...} for what a reader of the
page should know, and at the end {"result": ...} or {"error": ..., "trace": [...]}. Whatever it or a library prints
goes to stderr, the log of the step.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from engines.cli.common import EXIT_INTERRUPTED
from engines.cli.interrupts import Interrupts
from engines.errors import VarExportError
from engines.progress import Progress
from var_export.gpu_check.cases import StepJob

Send = Callable[[dict[str, Any]], None]
TRACE_LINES = 16  # the end of a traceback, which says most
GRACE = 30  # seconds from the parent's death to our own


def main(arguments: Sequence[str]) -> int:
    """Do the job and send its outcome."""
    job, channel = StepJob.from_json(arguments[0]), os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
    with os.fdopen(channel, "w", encoding="utf-8", buffering=1) as pipe, Interrupts((signal.SIGINT,)) as interrupts:

        def send(message: dict[str, Any]) -> None:
            interrupts.check()
            pipe.write(json.dumps(message) + "\n")

        try:
            perform(job, send)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
    return 0


def perform(job: StepJob, send: Send) -> None:
    """Do the job here; whatever comes of it is sent."""
    notes = _Notes(send)
    logger = logging.getLogger("engines")
    level = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        result = _work_of(job.step.kind)(job, lambda line, done=None: send({"say": line, "done": done}))
        json.dumps(result, allow_nan=False)
        send({"result": result})
    except Exception as error:
        kind = "" if isinstance(error, VarExportError) else f"{type(error).__name__}: "
        lines = "".join(traceback.format_exception(error)).splitlines()
        trace = [line for line in lines if line.strip(" ^~")][-TRACE_LINES:]
        send({"error": " ".join(f"{kind}{error}".split())[:1000], "trace": trace})
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)


def _work_of(kind: str) -> Callable[[StepJob, Progress], dict[str, Any]]:
    """The function that does a kind of step."""
    if kind == "race":  # alone needs PyTorch
        from var_export.gpu_check.race import race_on_gpu

        return race_on_gpu
    from var_export.gpu_check import building, hardware, work

    kinds = {
        "probe": hardware.probe,
        "bundle": building.bundle,
        "plans": building.plans,
        "verify": work.verify,
        "bench": work.bench,
    }
    return kinds[kind]


class _Notes(logging.Handler):
    """Warnings, and what the runner says about CUDA graphs, become part of the outcome."""

    def __init__(self, send: Send) -> None:
        super().__init__(logging.INFO)
        self._send = send
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if (record.levelno >= logging.WARNING or "CUDA graph" in message) and message not in self._seen:
            self._seen.add(message)
            self._send({"note": message[:500]})


def _end_with_parent() -> None:
    """Nobody reads the outcome once the parent is gone, and the GPU is to be free again. Its end closes our stdin."""
    while True:
        try:
            if not os.read(0, 1):
                break
        except OSError:
            break
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
