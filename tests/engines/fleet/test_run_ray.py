"""`var-run --ray`: the same files as without, whatever is killed; what it refuses; what it says."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engines.cli.run import main
from engines.packages import install_command

ROOT = Path(__file__).parents[3]
JOB = ("--class", "0-4", "--count", "4", "--batch", "2", "--threads", "1", "--check", "never")
RAY = ("--ray", "local", "--workers", "2")


def started(folder, *args):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-c", "import sys; from engines.cli.run import main; sys.exit(main())", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


def drawn(folder, *args):
    process = started(folder, *args)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    return out, err


def rows_in(folder):
    try:
        return (folder / "a.npz.partial/done").read_bytes().count(1)
    except FileNotFoundError:
        return 0


def stop_at(folder, images, number):
    """Start the job, and send its driver a signal once so many images are stored; its exit code, and what it told."""
    process = started(folder, *JOB, "--npz", "a.npz", *RAY)
    deadline = time.monotonic() + 120
    while rows_in(folder) < images:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--ray", "local", "--url", "triton://x"), "--ray and --url cannot be combined"),
        (("--ray", "parrot"), "a Ray cluster is named as 10.0.0.5:6379, local or auto, not 'parrot'"),
        (("--ray", "ray://host:10001"), "run this on a machine of the cluster"),
        (("--workers", "2"), "--workers needs --ray"),
        (("--mixed",), "--mixed needs --ray"),
        (("--write-at", "workers", "--npz", "a.npz"), "--write-at needs --ray"),
        (("--ray", "local", "--write-at", "workers"), "--write-at needs --npz"),
        (("--ray", "local", "--mixed", "--backend", "onnxruntime"), "cannot be combined"),
    ],
)
def test_mistakes_are_one_line(capsys, args, says):
    assert main(["0", *args]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert says in lines[-1]


def test_without_ray_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["0", "--ray", "local"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(install_command("ray"))
    assert list(tmp_path.iterdir()) == []


def test_no_cluster_is_one_line(monkeypatch, capsys, tmp_path):
    """Ray itself finds any cluster of this machine, those of other tests too: what it says where it finds none."""

    def init(*_, **options):
        assert options["log_to_driver"] is False
        raise ConnectionError("Could not find any running Ray instance.\nA second line")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", init)
    assert main(["0", "--ray"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "Error: no Ray cluster at auto (Could not find any running Ray instance.): start one with ray start --head, or "
        "take --ray local"
    )
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_address_where_nobody_listens_is_said_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with socket.socket() as taken:  # and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["0", "--ray", address]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"Error: no Ray cluster at {address} (")
    assert line.endswith("): is it up?")


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_driver_that_is_killed_or_interrupted_goes_on_to_the_same_file(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    drawn(here, *JOB, "--npz", "a.npz")
    code, _ = stop_at(tmp_path, 2, signal.SIGKILL)
    assert code == -signal.SIGKILL
    killed = rows_in(tmp_path)
    code, err = stop_at(tmp_path, killed + 2, signal.SIGINT)
    assert code == 130
    assert err.splitlines()[-1].endswith("of 20 images are done, the same command continues")
    stored = rows_in(tmp_path)
    assert killed < stored < 20
    out, err = drawn(tmp_path, *JOB, "--npz", "a.npz", *RAY, "--json")
    document = json.loads(out)
    assert document["images_made"] == 20 - stored
    workers = document["fleet"]["workers"]
    assert sum(worker["images"] for worker in workers) == 20 - stored
    assert {worker["runtime"]["backend"] for worker in workers} == {"onnxruntime"}
    assert "ray" not in json.dumps(document["settings"])
    assert (tmp_path / "a.npz").read_bytes() == (here / "a.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "here"]
    with np.load(tmp_path / "a.npz") as saved:
        assert saved["arr_0"].shape == (20, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_workers_that_write_themselves_leave_the_same_file(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    job = ("--class", "0-9", "--count", "20", "--cfg", "0", "--batch", "8", "--threads", "1", "--check", "never")
    drawn(here, *job, "--npz", "a.npz")
    there = (*job, "--npz", "a.npz", *RAY, "--write-at", "workers")
    process = started(tmp_path, *there)
    shards = tmp_path / "a.npz.shards-2"
    deadline = time.monotonic() + 120
    while not any(file.read_bytes().count(1) for file in shards.glob("*.npz.partial/done")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not (tmp_path / "a.npz").exists()
    stored = sum(file.read_bytes().count(1) for file in shards.glob("*.npz.partial/done"))
    assert not list(shards.glob("*.npz"))  # neither shard was finished
    out, err = drawn(tmp_path, *there, "--json")
    assert stored > 0
    assert json.loads(out)["images_made"] == 200 - stored
    assert (tmp_path / "a.npz").read_bytes() == (here / "a.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "here"]
    assert "nothing to make" in drawn(tmp_path, *there)[1]
