"""Progress of long work in a log: what a line says, and that none is silent for ten seconds."""

import re
import time
from types import SimpleNamespace

import pytest
import var_run_fake as fake

from engines.cli import progress as module
from engines.cli.common import CLEAR
from engines.cli.progress import StageClock
from engines.cli.run import main
from engines.progress import Steps
from engines.words import duration


@pytest.fixture
def clock(monkeypatch):
    """The clock of the module, which a test sets; no thread looks at it."""
    at = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: at.now))
    return at


def test_share_time_of_a_step_and_time_left(clock, capsys):
    progress = StageClock()
    for step in range(4):
        clock.now = 5.0 * step
        progress("calibration", Steps(step, 32))
    assert capsys.readouterr().err == "   10.0 s  calibration (6%, 5 s each, 2 min left)\n"
    clock.now = 17.5  # inside of the fourth
    progress._tell()
    assert capsys.readouterr().err == "   17.5 s  calibration (11%, 5 s each, 2 min left)\n"
    clock.now = 60.0  # which takes longer than the others, and is not over
    progress._tell()
    assert "(12%, 5 s each," in capsys.readouterr().err


def test_what_an_earlier_run_did_is_in_the_share_but_not_in_the_rate(clock, capsys):
    progress = StageClock()
    progress("calibration", Steps(16, 32))
    clock.now = 10.0
    progress("calibration", Steps(17, 32))
    assert "(53%, 10 s each, 2 min left)" in capsys.readouterr().err


def test_work_that_tells_no_share_says_for_how_long(clock, capsys):
    progress = StageClock()
    progress("graph: step")
    clock.now = 30.0
    progress._tell()
    progress("the next")
    lines = [line.split(" s  ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["graph: step", "graph: step (for 30 s)", "the next"]


def test_a_share_without_steps_has_a_time_left(clock, capsys):
    progress = StageClock()
    progress("engine 1 of 5: step", 0.0)
    clock.now = 50.0
    progress("engine 1 of 5: step", 0.25)
    assert "(25%, 2 min left)" in capsys.readouterr().err


def test_inside_of_one_slow_step_lines_come_by_themselves(monkeypatch, capsys):
    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(module, "TICK", 0.01)
    with StageClock() as progress:
        progress("0 of 1 images", Steps(0, 1))
        time.sleep(1.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3
    assert all(re.search(r"0 of 1 images \(0%(, for \S+ s)?\)", line) for line in lines)


def test_a_step_under_way_is_told_by_its_parts(clock, capsys):
    progress = StageClock()
    progress("0 of 2 images", Steps(0, 2))
    clock.now = 100.0  # of loading
    progress.restart()
    for now, done in ((100.0, 0), (109.5, 0.01), (119.0, 0.5)):
        clock.now = now
        progress("0 of 2 images", Steps(done, 2))
    lines = [line.split(" s  ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "0 of 2 images (0%)",
        "0 of 2 images (0%, for 10 s)",  # a hundredth of an image says little
        "0 of 2 images (25%, 38 s each, 57 s left)",
    ]
    clock.now = 190.0  # nothing came: it is not over
    progress._tell()
    assert "0 of 2 images (48%, 38 s each," in capsys.readouterr().err


@pytest.mark.parametrize("preview", [[], ["--preview"]])
def test_a_slow_image_is_told_by_its_scales(preview, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    fake.install(monkeypatch.setattr, fake.bundle())
    monkeypatch.setenv("FAKE_DELAY", "1.2")
    monkeypatch.setattr(module, "SILENCE", 0.05)
    monkeypatch.setattr(module, "TICK", 0.01)
    assert main(["parrot", *preview]) == 0
    shares = [int(share) for share in re.findall(r"0 of 1 images \((\d+)%", capsys.readouterr().err)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 100 * 5 // 37  # the last scale, 16 of 37 with the decoder's, has begun
    assert len(set(shares)) > 3


def test_a_terminal_has_one_live_line(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    fake.install(monkeypatch.setattr, fake.bundle())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["all"]) == 0
    shown = capsys.readouterr().err.split(CLEAR)
    assert any("0 of 6 images" in line for line in shown)
    assert shown[-1].startswith("6 images in")


def test_no_silence_reaches_ten_seconds():
    assert module.SILENCE + 2 * module.TICK <= 10


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.123, "0.12 s"), (9.0, "9 s"), (45.4, "45 s"), (200, "3 min"), (9000, "2.5 h")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
