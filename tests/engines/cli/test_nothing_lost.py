"""Whatever is drawn, renamed, edited, interrupted or killed, in whatever order: no file of anybody is lost."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import var_run_fake as fake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from engines.cli.run import main
from engines.files.jobs import read_job_file
from engines.files.npz import record_of
from engines.pictures.images import read_picture_text

FAKE = Path(fake.__file__)
CLASSES = ("parrot", "t-shirt", "0,2", "all")
PLACES = ("", "-o out", "-o x.png", "-o mine/", "-o {label}.png", "-o w/{index}.webp", "--npz a.npz")
EXTRAS = ("", "--grid", "--preview", "--preview-as gif", "--save-tokens t.npz", "--cfg 1,2", "--cfg 3")
JOBS = st.builds(
    lambda *words: " ".join(filter(None, words)),
    st.sampled_from(CLASSES),
    st.sampled_from(("", "-n 2", "-n 3")),
    st.sampled_from(PLACES),
    st.sampled_from(EXTRAS),
    st.sampled_from(("", "", "--overwrite")),
)
STEPS = st.one_of(
    st.tuples(st.just("draw"), JOBS, st.none()),
    st.tuples(st.just("stop"), JOBS, st.integers(0, 4)),
    st.tuples(st.sampled_from(("rename", "edit", "copy", "hide")), st.integers(0, 99), st.none()),
    st.tuples(st.just("make"), st.sampled_from(("out", "out-2", "mine/00000-parrot-0.png", "parrot.png")), st.none()),
)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def may_change(path, before, now, command):
    """Whether what a job wrote may give way to what it writes now: a longer record of the same job."""
    if path.name == "job.json" or ".partial" in str(path):
        return True
    if "--overwrite" in command:
        return path in now  # replaced, not removed
    old, new = Path(".old"), path
    old = old.with_suffix(path.suffix)
    old.write_bytes(before)
    try:
        if path.suffix == ".npz":
            then, since = record_of(old), record_of(new)
            return then["key"] == since["key"] and then["images"] < since["images"]
        then, since = read_picture_text(old), read_picture_text(new)
        return "grid" in path.stem and then["job"] == since["job"]
    finally:
        old.unlink()


def check(before, command, own):
    """`own`: files that a user made, renamed or edited: without --overwrite, nothing whatever may happen to them."""
    now = files(Path())
    for path, content in before.items():
        if now.get(path) != content:
            assert may_change(path, content, now, command), (command, path)
            assert path not in own or "--overwrite" in command, (command, path)
    assert not [path for path in now if path.suffix == ".part"]


def user_step(kind, what, own):
    """What people do with their files."""
    there = sorted(path for path in files(Path()) if ".partial" not in str(path))
    if kind == "make":
        path = Path(what)
        if not path.exists() and not path.parent.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"mine")
            own.add(path)
    elif there:
        path = there[what % len(there)]
        favourite = path.with_name(f"favourite-{what}{path.suffix}")
        if kind == "edit" and path.suffix == ".png":
            Image.fromarray(np.full((3, 3, 3), what, np.uint8)).save(path)
            own.add(path)
        elif kind in ("rename", "copy") and not favourite.exists():
            favourite.write_bytes(path.read_bytes())
            own.add(favourite)
            if kind == "rename":
                path.unlink()
                own.discard(path)
        elif kind == "hide" and path.name == "job.json":
            path.unlink()


@given(steps=st.lists(STEPS, min_size=3, max_size=12))
@settings(
    max_examples=int(os.environ.get("VAR_EXPORT_EXAMPLES", 60)),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_sequence_of_jobs_and_of_what_people_do_loses_a_file(steps, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path_factory.mktemp("desk"))
    pipeline, own = fake.install(monkeypatch.setattr), set()
    for kind, what, stop in steps:
        if kind not in ("draw", "stop"):
            user_step(kind, what, own)
            continue
        before = files(Path())
        pipeline.interrupt_at = None if stop is None else len(pipeline.made) + stop
        code = main([*shlex.split(what), "--batch", "2"])
        assert code in (0, 2, 130)
        check(before, what, own)
        said = capsys.readouterr()
        if code == 0 and stop is None:  # the same command again makes nothing and says where it is
            made = len(pipeline.made)
            assert main([*shlex.split(what), "--batch", "2"]) == 0
            assert len(pipeline.made) == made, what
            assert capsys.readouterr().out == said.out
        elif code == 2:
            assert "Error: " in said.err
            assert len([line for line in said.err.splitlines() if line.startswith("Error")]) == 1
            assert files(Path()) == before, what


def test_a_job_that_is_refused_leaves_no_record_of_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake.install(monkeypatch.setattr)
    assert main(["parrot", "--seed", "9", "--save-tokens", "t.npz"]) == 0
    Path("mine").mkdir()
    Path("mine/own.png").write_bytes(b"mine")
    assert main(["0", "-o", "ours/"]) == 0
    before = files(Path())
    for job in ("t-shirt -o mine/", "0-2 -o ours/", "0 -n 3 -o ours/"):  # another's tokens are there already
        assert main([*job.split(), "--save-tokens", "t.npz"]) == 2, job
        assert files(Path()) == before, job


@pytest.mark.slow
def test_nor_does_a_kill(tmp_path, monkeypatch):
    """Two jobs in turns, each killed at some moment: at last both are there, and what a user kept."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(7)
    first, second = "0-5 -n 4 --grid --save-tokens a.npz", "0-5 -n 4 --cfg 2 --grid --preview-as gif"
    own = {}
    for kill in range(10):
        command = (first, second)[kill % 2]
        process = subprocess.Popen(
            [sys.executable, str(FAKE), *shlex.split(command), "--batch", "1"],
            env={**os.environ, "FAKE_DELAY": "0.05"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.3, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path, content in own.items():
            assert path.read_bytes() == content
        pictures = sorted(path for path in Path().glob("out*/0*.png") if path not in own)
        if pictures and kill < 4:
            kept = pictures[0].with_name(f"favourite-{kill}.png")
            pictures[0].rename(kept)
            own[kept] = kept.read_bytes()
    for command in (first, second):
        subprocess.run([sys.executable, str(FAKE), *shlex.split(command)], check=True, capture_output=True)
    folders = sorted(path for path in Path().iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["out", "out-2"]
    for folder in folders:
        assert len(list(folder.glob("0*[0-9].png"))) == 24
        assert (folder / "grid.png").is_file()
        assert read_job_file(folder / "job.json")["images"] == 24
        assert not list(folder.glob(".*"))
    assert all(path.read_bytes() == content for path, content in own.items())


def test_a_picture_stays_as_it_is_where_another_job_adds_a_preview(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake.install(monkeypatch.setattr)
    assert main(["parrot", "-o", "{label}.png"]) == 0
    before = files(Path())
    assert main(["0,2", "-o", "{label}.png", "--preview"]) == 0
    now = files(Path())
    assert now[Path("parrot.png")] == before[Path("parrot.png")]
    assert sorted(map(str, now)) == ["parrot-preview.png", "parrot.png", "t-shirt-preview.png", "t-shirt.png"]
    Path("parrot.png").unlink()
    assert main(["parrot", "-o", "{label}.png", "--preview"]) == 0
    assert files(Path())[Path("parrot-preview.png")] == now[Path("parrot-preview.png")]
