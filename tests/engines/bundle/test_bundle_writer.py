"""A bundle appears whole or not at all, whatever happens to the process that writes it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import tiny_config

from engines.bundle.bundle import Bundle
from engines.bundle.writer import BundleWriter
from engines.errors import BundleError, UsageError
from tests.emulation import fill_hollow


@pytest.fixture
def target(tmp_path):
    """Where a bundle goes; nothing else lies in its folder."""
    return tmp_path / "bundles" / "model"


def fill(folder, text):
    """The files and the manifest of a bundle of this name."""
    return fill_hollow(folder, tiny_config(text), form="stepwise")


def write(target, text, *, publish=True, meanwhile=lambda: None):
    with BundleWriter(target) as writer:
        writer.seal(fill(writer.folder, text))
        meanwhile()
        if publish:
            writer.publish()


def content(target):
    """What the bundle at `target` is called; it must be whole."""
    bundle = Bundle.open(target)
    assert bundle.graph_path("step").read_text() == f"step of {bundle.name}"
    return bundle.name


def around(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_publish_puts_the_bundle_in_place_and_leaves_nothing_else(target):
    write(target, "one")
    assert content(target) == "one"
    assert around(target) == ["model"]
    write(target, "two")
    assert content(target) == "two"
    assert around(target) == ["model"]


def test_without_publish_nothing_is_left(target):
    write(target, "one", publish=False)
    assert around(target) == []
    write(target, "one")
    write(target, "two", publish=False)
    assert content(target) == "one"
    assert around(target) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_what_was_there(error, target):
    write(target, "one")

    def interrupt():
        raise error

    with pytest.raises(error):
        write(target, "two", meanwhile=interrupt)
    assert content(target) == "one"
    assert around(target) == ["model"]


def test_the_bundle_is_not_in_place_before_publish(target):
    with BundleWriter(target) as writer:
        sealed = writer.seal(fill(writer.folder, "one"))
        assert (sealed.path, sealed.name) == (writer.folder, "one")
        assert not target.exists()
        assert writer.folder.name.startswith("."), "hidden from `bundles/*`"
        assert content(writer.folder) == "one", "but can be checked there"
        published = writer.publish()
    assert (published.path, published.manifest) == (target, sealed.manifest)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_rename_leaves_what_was_there(failing, target, monkeypatch):
    write(target, "one")
    calls, rename = [], Path.rename

    def fail(self, other):
        calls.append(self)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((OSError, UsageError)):
        write(target, "two")
    monkeypatch.undo()
    assert content(target) == "one"
    assert around(target) == ["model"]


KILLED = textwrap.dedent(
    """
    import os, shutil, sys
    from pathlib import Path
    from engines.bundle.writer import BundleWriter
    from tests.emulation import fill_hollow
    from tests.support import tiny_config

    target, point = Path(sys.argv[1]), sys.argv[2]
    rename, calls = Path.rename, []

    def die_after(count):
        def renaming(self, other):
            calls.append(rename(self, other))
            if len(calls) == count:
                os._exit(9)
        Path.rename = renaming

    with BundleWriter(target) as writer:
        manifest = fill_hollow(writer.folder, tiny_config("two"), form="stepwise")
        if point == "writing":
            os._exit(9)
        writer.seal(manifest)
        if point == "sealed":
            os._exit(9)
        die_after({"between the renames": 1, "before cleaning up": 2}[point])
        writer.publish()
    """
)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["writing", "sealed", "between the renames", "before cleaning up"])
def test_a_killed_process_costs_no_bundle(point, target):
    write(target, "one")
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(target), point], cwd=Path(__file__).parents[3], check=False
    )
    assert result.returncode == 9
    if point == "between the renames":
        assert not target.exists()  # for a moment; the next writer brings it back
    else:
        assert content(target) == ("two" if point == "before cleaning up" else "one")

    write(target, "three", publish=False)
    assert content(target) == ("two" if point == "before cleaning up" else "one")
    assert around(target) == ["model"]
    write(target, "three")
    assert content(target) == "three"
    assert around(target) == ["model"]


@pytest.mark.slow
def test_a_killed_process_without_a_previous_bundle_leaves_none(target):
    target.parent.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(target), "sealed"], cwd=Path(__file__).parents[3], check=False)
    assert not target.exists()
    write(target, "three")
    assert content(target) == "three"
    assert around(target) == ["model"]


def test_a_second_writer_is_turned_away(target):
    with BundleWriter(target) as first:
        manifest = fill(first.folder, "one")
        with pytest.raises(UsageError, match="another build is writing"), BundleWriter(target):
            pass
        first.seal(manifest)
        first.publish()
    assert content(target) == "one"
    assert around(target) == ["model"]


def test_a_second_process_is_turned_away(target):
    script = "import sys\nfrom pathlib import Path\nfrom engines.bundle.writer import BundleWriter\n"
    script += "with BundleWriter(Path(sys.argv[1])): pass\n"
    with BundleWriter(target):
        command = [sys.executable, "-c", script, str(target)]
        result = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert "UsageError: another build is writing" in result.stderr


def test_writers_of_different_bundles_do_not_meet(target):
    with BundleWriter(target), BundleWriter(target.with_name("other")) as other:
        other.seal(fill(other.folder, "two"))
        other.publish()
    assert around(target) == ["other"]


def test_a_target_in_the_working_directory_needs_no_slash(target, monkeypatch):
    target.parent.mkdir()
    monkeypatch.chdir(target.parent)
    write(Path("model"), "one")
    assert content(target) == "one"


def test_a_place_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UsageError, match=r"cannot write .*choose another --out"),
        BundleWriter(tmp_path / "file" / "model"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_a_bundle_can_be_written_again_and_again(target):
    """A link may be how a large disk is used; whichever of the two is replaced, nothing gets stuck."""
    real = target.with_name("real")
    write(real, "zero")
    target.symlink_to(real)
    for text in ("one", "two", "three"):
        write(target, text)
        assert content(target) == text
    assert set(around(target)) <= {"model", "real"}


def test_what_came_into_being_meanwhile_is_not_lost(target):
    """A build takes minutes: a folder that somebody made at `target` in that time is not the writer's to delete."""

    def somebody():
        target.mkdir()
        (target / "thesis.txt").write_text("mine")

    with pytest.raises(UsageError):
        write(target, "one", meanwhile=somebody)
    assert (target / "thesis.txt").read_text() == "mine"


def test_sealing_covers_every_file(target):
    with BundleWriter(target) as writer:
        sealed = writer.seal(fill(writer.folder, "one"))
        assert set(sealed.files) == {file.name for file in writer.folder.iterdir()} - {"manifest.json"}


def test_a_bundle_that_lacks_a_file_is_not_sealed(target):
    with BundleWriter(target) as writer:
        manifest = fill(writer.folder, "one")
        (writer.folder / "step.onnx").unlink()
        with pytest.raises(BundleError, match=r"files must be .*step\.onnx"):
            writer.seal(manifest)
    assert around(target) == []
