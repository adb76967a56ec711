"""A step in a process of its own: whatever that process does, the check goes on and says what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from var_export.gpu_check import isolation
from var_export.gpu_check.cases import CheckStep, StepJob

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a job in `odd_worker.py`; returns its outcome, what it told, and its log."""
    monkeypatch.setattr(isolation, "WORKER", (sys.executable, str(HERE / "odd_worker.py")))
    monkeypatch.setattr(isolation, "GRACE", 1.0)

    def go(how, tell=lambda line, done: None):
        told, log = [], tmp_path / "logs/step.log"

        def both(line, done):
            told.append((line, done))
            tell(line, done)

        return (
            isolation.run(StepJob(step=CheckStep(kind="bench", model=how), out=tmp_path), log=log, tell=both),
            told,
            log,
        )

    return go


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_result(run):
    outcome, told, log = run("works")
    assert outcome == isolation.Outcome({"answer": 42}, None, [], ["something to know"])
    assert told == [("working", 0.5)]
    assert log.read_text() == "loading the engines\n"


def test_an_error_of_its_own(run):
    outcome = run("raises")[0]
    assert (outcome.result, outcome.error, outcome.trace) == (None, "it cannot be", ["line 1"])


def test_a_crash_says_which_and_what_was_printed_last(run):
    outcome = run("crashes")[0]
    assert outcome.error == "its process was ended by SIGSEGV before its work was done"
    assert outcome.trace == ["loading the engines", "CUDA error: an illegal memory access"]


def test_an_end_without_a_word(run):
    assert run("leaves")[0].error == "its process ended with code 7 before its work was done"
    assert run("cut")[0].error == "its process ended with code 0 before its work was done"


def test_a_crash_after_the_work_is_a_note(run):
    outcome = run("crashes-late")[0]
    assert (outcome.result, outcome.error) == ({"answer": 42}, None)
    assert outcome.notes[-1] == "its process was ended by SIGABRT after its work was done"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["leaves-a-child", "hangs-late"])
def test_what_is_left_running_is_stopped(run, how):
    start = time.monotonic()
    outcome = run(how)[0]
    assert outcome.result == {"answer": 42}
    assert time.monotonic() - start < 30


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "deaf"])
def test_one_that_hangs_is_stopped(run, monkeypatch, how):
    monkeypatch.setitem(isolation.LIMITS, "bench", 1)
    start = time.monotonic()
    assert run(how)[0].error == "it took longer than 1 s and was stopped"
    assert time.monotonic() - start < 30


def test_ctrl_c_reaches_it_and_waits_for_it(run, tmp_path):
    def interrupt(line, done):
        if line == "ready":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("polite", interrupt)
    assert (tmp_path / "logs/step.log").read_text().endswith("tidied up\n")


def test_no_descriptor_is_left(run):
    run("works")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for how in ("works", "crashes", "leaves"):
        run(how)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.slow
def test_the_real_worker_reports_and_follows_its_parent(tmp_path):
    """Its own words on the pipe; and when stdin closes, as it does when the parent dies, it ends."""
    job = StepJob(step=CheckStep(kind="bundle", model="demo", precision="fp8", form="both"), out=tmp_path)

    def start():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*isolation.WORKER, job.to_json()], cwd=ROOT, **pipes)

    with start() as process:
        messages = [json.loads(line) for line in process.stdout]
        assert process.wait(60) == 0
    assert messages[0] == {"say": "loading PyTorch", "done": None}
    assert messages[-1]["error"].startswith("unknown precision 'fp8'")
    assert messages[-1]["trace"][-1].startswith("engines.errors.UsageError: ")

    with start() as process:
        process.stdin.close()
        assert process.wait(60) in (130, -signal.SIGINT)
