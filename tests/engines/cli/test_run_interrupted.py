"""Ctrl-C, kill -9, and two processes at once."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import var_run_fake as fake
from var_run_fake import names

from engines.pictures.images import load_picture, read_picture_text

FAKE = Path(fake.__file__)


def test_ctrl_c_says_how_far_it_came(call, pipeline):
    pipeline.interrupt_at = 4
    code, out, err = call("--class", "all", "--batch", 2)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: 4 of 6 images are done, the same command continues"
    pipeline.interrupt_at = None
    code, _, err = call("--class", "all", "--batch", 2)
    assert code == 0
    assert "2 images in" in err
    assert "4 were there" in err
    assert len(set(pipeline.made)) == len(pipeline.made) == 6
    assert "nothing to make: all 6 images are there" in call("--class", "all", "--batch", 2)[2]
    assert len(pipeline.loads) == 2  # the third run needed no engine


def start(folder, *args, delay=0.05):
    # The environment is inherited: the fake needs the project's interpreter and nothing else.
    command = [sys.executable, str(FAKE), *args]
    environment = {**os.environ, "FAKE_DELAY": str(delay)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("route", ["folder", "npz"])
def test_kill_9_loses_nothing_and_leaves_nothing_half(tmp_path, route):
    args = ["--class", "all", "--count", "10", "--batch", "2", "--save-tokens", "t.npz"]
    args += ["--npz", "a.npz"] if route == "npz" else ["--out", "x"]
    progress = tmp_path / "t.npz.partial" / "done"
    done = lambda: sum(progress.read_bytes()) if progress.exists() else 0  # noqa: E731
    reached = 0
    for kill_at in (6, 20, 40):
        process = start(tmp_path, *args)
        wait_until(lambda at=kill_at: done() >= at, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert reached < done() < 60
        reached = done()
        assert not (tmp_path / "a.npz").exists()
        for path in (tmp_path / "x").glob("*.png") if route == "folder" else []:
            assert read_picture_text(path)["key"]  # whole
    process = start(tmp_path, *args, "--json", delay=0)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["images_made"] <= 60 - reached
    if route == "npz":
        assert names(tmp_path) == ["a.npz", "t.npz"]
        images = np.load(tmp_path / "a.npz")["arr_0"]
    else:
        assert len(names(tmp_path / "x")) == 61
        assert not [name for name in names(tmp_path / "x") if name.startswith(".")]
        by_seed = {int(path.stem.rsplit("-", 1)[1]): path for path in (tmp_path / "x").glob("*.png")}
        images = [load_picture(by_seed[k]) for k in range(60)]
    assert all(np.array_equal(images[k], fake.image_of(k % 6, k)) for k in range(60))
    assert np.array_equal(np.load(tmp_path / "t.npz")["tokens"], [fake.tokens_of(k % 6, k) for k in range(60)])


def test_a_real_ctrl_c(tmp_path):
    process = start(tmp_path, "--class", "all", "--count", "100", "--batch", "1")
    wait_until(lambda: (tmp_path / "out" / "00000-parrot-0.png").exists(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 600 images are done, the same command continues" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_terminal_has_a_line_that_goes_on_and_a_log_shows_lines(tmp_path, call, monkeypatch):
    terminal, end = pty.openpty()
    command = [sys.executable, str(FAKE), "--class", "all", "--batch", "2"]
    result = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=end, text=True, timeout=60, check=True
    )
    os.close(end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "images" in shown
    assert "6 of 6 images (100%" in shown
    assert result.stdout.startswith("out/")
    with monkeypatch.context() as slow:
        slow.setattr("engines.cli.progress.SILENCE", 0.0)
        err = call("--class", "0-3", "--batch", 2, "--out", "x")[2]
    assert re.search(r"2 of 4 images \(50%, [\d.]+ s each, [\d.]+ s left", err)
    assert " of " not in call("--class", "0-3", "--batch", 4, "--out", "y")[2]


@pytest.mark.slow
def test_a_second_process_is_told_to_wait(tmp_path):
    args = ["--class", "all", "--count", "10", "--batch", "1"]
    first = start(tmp_path, *args)
    wait_until(lambda: (tmp_path / "out" / "00000-parrot-0.png").exists(), first)
    second = start(tmp_path, *args, delay=0)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "another process is writing to out" in err
    first.kill()
    first.communicate()


@pytest.mark.slow
def test_two_jobs_at_the_same_moment_get_a_folder_each(tmp_path):
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        both = [start(folder, "all", "-n", "2", "--cfg", cfg, delay=0.02) for cfg in ("1", "2")]
        said = [process.communicate(timeout=60) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert names(folder) == ["out", "out-2"]
        assert [len(list((folder / name).glob("*.png"))) for name in names(folder)] == [12, 12]
