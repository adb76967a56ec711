"""Some 300 cases of `tests.fuzz`, in a child process for each class."""

import os
import sys
from collections import Counter

import click
import pytest

from engines.errors import UsageError
from tests.fuzz import running
from tests.fuzz.running import results
from tests.fuzz.worker import FAULT, REFUSED, HangError, peak_memory, reset_peak, run_case
from tests.support import need_torch

COUNTS = {"bundles": 120, "checkpoints": 70, "requests": 80, "commands": 40}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_nothing_foreign_comes_of_what_is_odd(name):
    need_torch()
    found = list(results(name, 0, COUNTS[name]))
    assert [each["case"] for each in found] == list(range(COUNTS[name]))
    assert [each for each in found if each["outcome"] == FAULT] == []
    outcomes = Counter(each["outcome"] for each in found)
    assert outcomes[REFUSED] > COUNTS[name] // 10, outcomes  # the cases are odd enough
    assert len(outcomes) > 1, outcomes  # and some are honest enough to be looked at further


class Raising:
    def __init__(self, error):
        self.error = error

    def run(self, rng):
        if isinstance(self.error, str):
            return self.error, "done"
        raise self.error


@pytest.mark.parametrize(
    ("error", "outcome", "says"),
    [
        ("kind", "done", None),
        (UsageError("say which"), REFUSED, "UsageError: say which"),
        (click.BadParameter("bad"), REFUSED, "bad"),
        (ValueError("foreign"), FAULT, "ValueError: 'foreign' test_fuzz.py"),
        (KeyboardInterrupt(), FAULT, "KeyboardInterrupt"),
        (SystemExit(1), FAULT, "SystemExit"),
        (MemoryError(), FAULT, "MemoryError"),
        (AssertionError("another picture, and no error"), FAULT, "another picture"),
        (HangError(), FAULT, "took over 10 s"),
        (click.UsageError("two\nlines"), FAULT, "no printable line"),
        (click.UsageError("\x1b[2J"), FAULT, "no printable line"),
        (click.UsageError("x" * 3000), FAULT, "no printable line"),
        (click.UsageError("\ud800"), FAULT, "cannot be encoded"),
    ],
)
def test_a_fault_is_seen(error, outcome, says):
    result = run_case(Raising(error), None)
    assert result["outcome"] == outcome
    assert says is None or says in result["why"]


@pytest.mark.slow
def test_a_process_that_dies_is_a_fault_and_the_others_go_on(monkeypatch, tmp_path):
    """Also one that hangs where no signal of Python's comes through, and one that takes memory."""
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys, time\n"
        "first, count = int(sys.argv[1]), int(sys.argv[2])\n"
        "for case in range(first, first + count):\n"
        "    print(json.dumps({'class': 'x', 'case': case}), flush=True)\n"
        "    if case == 1: os.abort()\n"
        "    if case == 2: time.sleep(60)\n"
        "    print(json.dumps({'class': 'x', 'case': case, 'outcome': 'done'}), flush=True)\n"
    )
    monkeypatch.setattr(running, "SILENCE", 3)
    monkeypatch.setattr(running, "command", lambda name, *args: [sys.executable, str(script), *args])
    found = list(results("x", 0, 4))
    assert [(each["case"], each["outcome"]) for each in found] == [(0, "done"), (1, FAULT), (2, FAULT), (3, "done")]


def test_memory_is_measured():
    reset_peak()
    before = peak_memory()
    assert len(bytearray(os.urandom(1 << 20) * 64)) == 1 << 26
    assert peak_memory() - before >= 1 << 26
