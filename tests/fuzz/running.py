"""Cases run in child processes: where one dies or hangs, its case is a fault, and the next one goes on."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.worker import FAULT

ROOT = Path(__file__).parents[2]
SILENCE = 120  # seconds without a line: a case that hangs outside of Python; the start of a child, on a busy machine


def results(name: str, first: int, count: int) -> Iterator[dict[str, Any]]:
    """What came of the cases `first` to `first + count` of a class, in order."""
    end = first + count
    while first < end:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            begun = None
            for line in _lines(name, first, end - first, folder):
                begun = line
                if "outcome" in line:
                    first, begun = line["case"] + 1, None
                    yield line
        if first < end:
            if begun is None or "case" not in begun:
                raise RuntimeError(f"the child of {name} ended before case {first}: {begun}")
            yield {**begun, "outcome": FAULT, "why": "the process died, or hung outside of Python"}
            first = begun["case"] + 1


def command(name: str, *args: str) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-m", "tests.fuzz.worker", name, *args]


def _lines(name: str, first: int, count: int, folder: str) -> Iterator[dict[str, Any]]:
    work, log = Path(folder) / "work", Path(folder) / "log"
    work.mkdir()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command(name, str(first), str(count), str(work)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            pending = b""
            while selector.select(SILENCE) and (piece := os.read(process.stdout.fileno(), 1 << 16)):
                *lines, pending = (pending + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b'{"class"'):
                        yield json.loads(line)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
        if process.returncode not in (0, -9):
            sys.stderr.write(log.read_text(errors="replace")[-2000:])
