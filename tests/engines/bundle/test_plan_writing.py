"""Plans join a bundle whole or not at all, whatever happens to the process that builds them."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from plan_helpers import CONFIG, EMULATED, GRAPHS, files, manifest, refused

from engines.bundle.bundle import Bundle
from engines.bundle.writer import BundleWriter, PlanWriter, foreign_files, withdraw_plans
from engines.errors import BackendError, UsageError
from engines.storage import Lock
from tests.emulation import hollow_bundle
from tests.emulation.tensorrt import Builder

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path):
    """A bundle that has no plans yet, alone in its folder."""
    return hollow_bundle(tmp_path / "bundles" / "model", CONFIG)


@pytest.fixture
def machine(emulate):
    """Makes emulated machines that know the model of these bundles."""
    return lambda **options: emulate(**EMULATED, **options)


def names(path):
    return [entry.name for entry in Bundle.open(path).plans]


# --- builds that end early ----------------------------------------------------------------------------------------


@pytest.fixture(params=["no plans before", "plans for another GPU", "older plans for this GPU"])
def before(request, path, machine):
    """What the bundle held, with all files in and around it."""
    if request.param == "plans for another GPU":
        machine(name="Other GPU").build(path)
    elif request.param == "older plans for this GPU":
        machine().build(path, "1")
    return manifest(path), files(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_exception_between_two_graphs_leaves_the_bundle_as_it_was(error, before, path, machine):
    seen = []

    def progress(line, done):
        seen.append(line)
        if len({*seen}) == 3:
            raise error("enough")

    emulation = machine()
    with pytest.raises(error):
        emulation.build(path, progress=progress)
    assert seen[0] == "engine 1 of 6: cond"
    assert (manifest(path), files(path)) == before
    assert not emulation.build(path).reused
    emulation.load(path).generate([0])


@pytest.mark.parametrize("how", ["it raises", "it returns nothing", "interrupted", "out of memory"])
def test_a_builder_that_fails_leaves_the_bundle_as_it_was(how, before, path, machine, monkeypatch):
    emulation = machine()

    def fail(file):
        if file.endswith("decode.onnx"):
            if how == "interrupted":
                raise KeyboardInterrupt
            raise MemoryError("out of memory") if how == "out of memory" else RuntimeError("internal error (7)")

    if how == "it returns nothing":
        monkeypatch.setattr(Builder, "build_serialized_network", lambda *args: None)
        refused(lambda: emulation.build(path), "TensorRT 10.3.0 failed while building cond.onnx", kind=BackendError)
        monkeypatch.undo()
        emulation = machine()
    else:
        emulation.trt.during_build = fail
        kind = KeyboardInterrupt if how == "interrupted" else BackendError
        with pytest.raises(kind) as caught:
            emulation.build(path)
        if how == "it raises":
            assert str(caught.value) == "TensorRT 10.3.0 failed while building decode.onnx: internal error (7)"
        if how == "out of memory":
            assert "lower --batch" in str(caught.value)
        emulation.trt.during_build = lambda file: None
    assert (manifest(path), files(path)) == before
    assert not emulation.build(path).reused


def test_a_progress_bar_that_fails_stops_the_build(path, machine):
    """It is called from TensorRT's thread, where the vendor's binding would print its exception and go on."""
    before = files(path)

    def progress(line, done):
        if done:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        machine().build(path, progress=progress)
    assert files(path) == before


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path

    import pytest
    from support import tiny_config

    from engines.bundle import writer as bundle_writer
    from tests.emulation.machine import Emulation

    path, point = Path(sys.argv[1]), sys.argv[2]
    die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    rename, replace = Path.rename, Path.replace

    def renaming(self, other):
        result = rename(self, other)
        if point == "between the folder and the manifest":
            die()
        return result

    def replacing(self, other):
        if other.name != "manifest.json":
            return replace(self, other)
        if point == "the new manifest half written":
            self.write_text(self.read_text()[:100])
            die()
        result = replace(self, other)
        if point == "before cleaning up":
            die()
        return result

    Path.rename, Path.replace = renaming, replacing
    with pytest.MonkeyPatch.context() as patch:
        emulation = Emulation(patch, model=(tiny_config(), "fp16"))
        if point == "while building":
            emulation.trt.during_build = lambda file: die() if file.endswith("decode.onnx") else None
        emulation.build(path, "1:2:8")
    """
)
POINTS = [
    "while building",
    "between the folder and the manifest",
    "the new manifest half written",
    "before cleaning up",
]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_build_costs_nothing(point, path, machine):
    old = machine().build(path, "1").plans.name
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", KILLED, str(path), point]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr

    emulation = machine()
    with emulation.load(path) as pipeline:  # whatever happened, a whole set is there
        pipeline.generate([0])
    if point != "before cleaning up":
        assert names(path) == [old]
    again = emulation.build(path, "1:2:8")
    assert again.reused == (point == "before cleaning up")
    if not again.reused:
        assert again.superseded == (old,)
    emulation.build(path, "1:1:3")  # whoever builds next cleans up
    name = emulation.build(path, "1:2:8").plans.name
    assert names(path) == [name]
    assert [folder.name for folder in (path / "plans").iterdir()] == [name]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert foreign_files(path) == []


def test_two_builds_at_once(path, machine):
    """The second is told so in one line, and leaves the first alone."""
    emulation = machine()
    inside, go_on = threading.Event(), threading.Event()
    outcome = []

    def wait(file):
        inside.set()
        go_on.wait(30)

    emulation.trt.during_build = wait
    thread = threading.Thread(target=lambda: outcome.append(emulation.build(path)))
    thread.start()
    inside.wait(30)
    try:
        message = refused(lambda: emulation.build(path, "2"), "another build is writing", kind=UsageError)
        assert "--out" not in message, "there is no such option for plans"
        refused(lambda: BundleWriter(path).__enter__(), "another build is writing", kind=UsageError)
        refused(lambda: withdraw_plans(path, "any"), "another build is writing", kind=UsageError)
        assert Bundle.open(path).plans == ()
    finally:
        go_on.set()
        thread.join()
    assert not outcome[0].reused
    emulation.load(path).generate([0])


# --- building again -----------------------------------------------------------------------------------------------


def test_nothing_is_built_where_nothing_changed(path, machine):
    emulation = machine()
    first = emulation.build(path, "1:2:4")
    stamp = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    again = machine().build(path, "1:2:4")
    assert (first.reused, again.reused) == (False, True)
    assert again.plans == first.plans
    assert again.superseded == ()
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == stamp
    assert len(emulation.trt.builds) == len(GRAPHS)


def test_a_timing_cache_decides_nothing(path, machine, tmp_path):
    machine().build(path)
    assert machine().build(path, timing_cache=tmp_path / "kernels").reused


@pytest.mark.parametrize(
    "changed",
    [
        {"batch": "1:1:4"},
        {"workspace": 64},
        {"optimization_level": 1},
        {"weight_streaming": True},
        {"hardware_compatibility": "ampere+"},
        {"extra": {"max_aux_streams": 2}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_options_take_the_place_of_the_older_set(changed, path, machine):
    """Of the same GPU and TensorRT; those of other machines stay."""
    emulation = machine(name="Other GPU")
    other = emulation.build(path).plans.name
    old = machine().build(path).plans.name
    emulation = machine()
    built = emulation.build(path, changed.get("batch", "1:1:8"), **{k: v for k, v in changed.items() if k != "batch"})
    assert not built.reused
    assert built.superseded == (old,)
    assert names(path) == [other, built.plans.name]
    assert sorted(folder.name for folder in (path / "plans").iterdir()) == sorted([other, built.plans.name])
    emulation.load(path).generate([0])


@pytest.mark.parametrize("damage", ["changed", "missing", "the whole folder"])
def test_damaged_plans_are_built_again(damage, path, machine):
    emulation = machine()
    name = emulation.build(path).plans.name
    file = path / "plans" / name / "decode.plan"
    if damage == "changed":
        file.write_bytes(b"x" * file.stat().st_size)
    elif damage == "missing":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
    built = emulation.build(path)
    assert (built.reused, built.plans.name, built.superseded) == (False, name, ())
    emulation.load(path).generate([0])


def test_a_newer_tensorrt_gets_plans_of_its_own(path, machine):
    machine().build(path)
    built = machine(version="10.4.0").build(path)
    assert (built.reused, built.superseded) == (False, ())
    assert len(names(path)) == 2


def test_the_onnx_graphs_are_not_touched(path, machine):
    before = {name: (path / name).read_bytes() for name in manifest(path)["files"]}
    machine().build(path)
    assert {name: (path / name).read_bytes() for name in manifest(path)["files"]} == before
    after = manifest(path)
    assert after.pop("plans")
    hollow = hollow_bundle(path.with_name("again"), CONFIG)
    before = manifest(hollow)
    assert before.pop("plans") == []
    assert {**after, "digest": ""} == {**before, "digest": ""}


def test_withdrawn_plans_are_gone(path, machine):
    first = machine().build(path).plans.name
    second = machine(name="Other GPU").build(path).plans.name
    withdraw_plans(path, first)
    assert names(path) == [second]
    assert [folder.name for folder in (path / "plans").iterdir()] == [second]
    withdraw_plans(path, "no such set")
    withdraw_plans(path, second)
    assert names(path) == []
    assert not (path / "plans").exists()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "the lock is gone too"


def test_what_somebody_put_beside_the_plans_stays(path, machine):
    machine().build(path, "1")
    (path / "plans" / "notes").mkdir()
    (path / "plans" / "notes" / "read me.txt").write_text("mine")
    (path / "plans" / "list.txt").write_text("mine")
    name = machine().build(path, "2").plans.name
    withdraw_plans(path, name)
    assert (path / "plans" / "notes" / "read me.txt").read_text() == "mine"
    assert (path / "plans" / "list.txt").read_text() == "mine"


def test_a_link_to_a_bundle(path, machine, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    emulation = machine()
    emulation.build(link)
    assert link.is_symlink()
    assert machine().build(path).reused
    emulation.load(link).generate([0])


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["decode.plan", "manifest.json", "rename"])
def test_a_full_disk_leaves_nothing(what, before, path, machine, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    rename, opened = Path.rename, Path.open

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.stream.close()

        def fileno(self):
            return self.stream.fileno()

        def write(self, data):
            self.stream.write(bytes(data)[:10])
            raise full

    def open_full(self, *args, **options):
        stream = opened(self, *args, **options)
        return Full(stream) if f".{what}." in self.name and args == ("wb",) else stream

    def rename_full(self, other):
        raise full

    if what == "rename":
        monkeypatch.setattr(Path, "rename", rename_full)
    else:
        monkeypatch.setattr(Path, "open", open_full)
    emulation = machine()
    message = refused(lambda: emulation.build(path), "No space left on device", "make room", kind=UsageError)
    assert str(path) in message
    for name, real in (("open", opened), ("rename", rename)):
        monkeypatch.setattr(Path, name, real)
    assert (manifest(path), files(path)) == before
    emulation.build(path)
    emulation.load(path).generate([0])


def test_a_folder_around_it_that_cannot_be_written(path, machine, monkeypatch):
    """As where a container mounts one bundle."""
    os_open = os.open

    def refuse(file, flags, *args, **options):
        if Path(file).parent == path.parent and flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return os_open(file, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    emulation = machine()
    name = emulation.build(path).plans.name
    withdraw_plans(path, name)
    assert names(path) == []


@pytest.mark.parametrize("what", ["its root", "its plans"])
def test_a_bundle_that_cannot_be_written(what, path, machine, monkeypatch):
    """As where it is part of an installed package, or on a disk that is read-only. (Root may write anywhere, so that
    the answer of the system is made up.)
    """
    before = files(path)
    denied = OSError(errno.EROFS, os.strerror(errno.EROFS))
    os_open, mkdir = os.open, Path.mkdir

    def refuse_lock(file, *args, **options):
        if str(file).endswith(".lock"):
            raise denied
        return os_open(file, *args, **options)

    def refuse_folder(self, *args, **options):
        if self.name == "plans":
            raise denied
        return mkdir(self, *args, **options)

    if what == "its plans":
        monkeypatch.setattr(Path, "mkdir", refuse_folder)
    else:
        monkeypatch.setattr(os, "open", refuse_lock)
    emulation = machine()
    message = refused(
        lambda: emulation.build(path), "Read-only file system", "copy the bundle elsewhere", kind=UsageError
    )
    assert "--out" not in message
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(os, "open", os_open)
    assert files(path) == before


def test_plans_that_are_there_need_no_writing(path, machine, monkeypatch):
    """A bundle on a read-only disk, with its plans: building again finds them, and running needs no lock."""
    emulation = machine()
    emulation.build(path)

    def refuse(self):
        raise AssertionError("nothing is to be written")

    monkeypatch.setattr(Lock, "acquire", refuse)
    assert emulation.build(path).reused
    emulation.load(path).generate([0])


def test_a_writer_that_is_left_without_publishing(path):
    before = files(path)
    with PlanWriter(Bundle.open(path), "set") as writer:
        writer.add("step.plan", b"plan")
        assert writer.folder.name.startswith("."), "hidden until it is whole"
        assert Bundle.open(path).plans == ()
    assert files(path) == before
