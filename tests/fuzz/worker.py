"""The child process that runs cases, a line of JSON each: `python -m tests.fuzz.worker CLASS FIRST COUNT FOLDER`."""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import click
import numpy as np

from engines.errors import VarExportError
from tests.fuzz import MEMORY, SECONDS

CLASSES = ("bundles", "checkpoints", "requests", "commands")
LONGEST_MESSAGE = 2200
REFUSED, FAULT = "refused", "fault"


class HangError(BaseException):
    """A case took too long."""


def cases_of(name: str, folder: Path):
    """The cases of a class, set up in an empty folder of their own."""
    if name == "bundles":
        from tests.fuzz.bundles import Bundles as Cases
    elif name == "checkpoints":
        from tests.fuzz.checkpoints import Checkpoints as Cases
    elif name == "requests":
        from tests.fuzz.requests import Requests as Cases
    else:
        from tests.fuzz.commands import Commands as Cases
    return Cases(folder)


def run_case(cases, rng) -> dict[str, str]:
    """What came of a case: its kind and outcome, or the fault."""
    try:
        kind, outcome = cases.run(rng)
        return {"kind": kind, "outcome": outcome}
    except (VarExportError, click.ClickException) as error:
        message = str(error)
        if len(message) > LONGEST_MESSAGE or "\n" in message or any(c in message for c in "\x00\x1b\x9b\u202e"):
            return {"outcome": FAULT, "why": f"a message that is no printable line: {message[:300]!r}"}
        try:
            message.encode()
        except UnicodeEncodeError:
            return {"outcome": FAULT, "why": f"a message that cannot be encoded: {message[:300]!r}"}
        return {"outcome": REFUSED, "why": f"{type(error).__name__}: {message[:200]}"}
    except HangError:
        return {"outcome": FAULT, "why": f"took over {SECONDS} s: {_where()}"}
    except BaseException as error:
        return {"outcome": FAULT, "why": f"{type(error).__name__}: {str(error)[:600]!r} {_where()}"}


def _where() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-8:]))


def peak_memory() -> int:
    """The most memory since the last `reset_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) << 10


def reset_peak() -> None:
    """Begin to measure anew."""
    Path("/proc/self/clear_refs").write_text("5")


def main(name: str, first: int, count: int, folder: Path) -> None:
    """Run cases and print what came of each."""

    def hang(number, frame):
        raise HangError

    import torch

    torch.set_num_threads(1)
    out = sys.stdout
    cases = cases_of(name, folder)
    honest = peak_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, hang)
    for case in range(first, first + count):
        print(json.dumps({"class": name, "case": case}), file=out, flush=True)
        reset_peak()
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            result = run_case(cases, np.random.default_rng([CLASSES.index(name), case]))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        grown = peak_memory() - honest
        if grown > MEMORY:
            result = {"outcome": FAULT, "why": f"took {grown / 2**20:.0f} MiB more than an honest case; {result}"}
        taken = round(time.process_time() - start, 3)
        print(json.dumps({"class": name, "case": case, "seconds": taken, **result}), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
