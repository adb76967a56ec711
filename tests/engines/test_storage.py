"""Files that are whole or not there, locks, digests: what all writers and caches stand on."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines import storage
from engines.errors import UsageError
from engines.storage import (
    Lock,
    atomic_write,
    digest_of,
    link_or_copy,
    parts,
    remove_dead_parts,
    sha256_of,
    source_digest,
    source_files,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_not_at_its_place_before_it_is_whole(tmp_path):
    path = tmp_path / "new folder" / "a.bin"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
        assert names(path.parent) == [f".a.bin.{os.getpid()}.part"]
        assert list(parts(path.parent, "a.bin")) == list(parts(path.parent)) == list(path.parent.iterdir())
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_the_old_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_full_disk_is_one_line_with_its_remedy(tmp_path, monkeypatch):
    def full(self, other):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError) as caught:
        write_text(tmp_path / "a.txt", "text", remedy="make room")
    assert str(caught.value) == f"cannot write {tmp_path}/a.txt: No space left on device; make room"
    assert names(tmp_path) == []


def test_what_is_synced_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And its name before the writer goes on."""
    order, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, other: (order.append("rename"), replace(self, other)))
    write_json(tmp_path / "a.json", {}, sync=True)
    assert order == ["sync", "rename", "sync"]


def test_the_users_mask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_second_name_is_a_link_or_a_copy(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"weights")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")

    def refuse(file, link):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "a").samefile(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"weights"


@pytest.mark.parametrize("linked", [True, False])
def test_a_second_name_of_a_link_is_that_of_what_it_leads_to(linked, tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(b"weights")
    (tmp_path / "b").symlink_to("blobs/a")
    if not linked:
        monkeypatch.setattr(os, "link", lambda file, link: (tmp_path / "missing").stat())
    (tmp_path / "deep").mkdir()
    link_or_copy(tmp_path / "b", tmp_path / "deep" / "c")
    assert not (tmp_path / "deep" / "c").is_symlink()
    assert (tmp_path / "deep" / "c").read_bytes() == b"weights"
    assert (tmp_path / "blobs" / "a").samefile(tmp_path / "deep" / "c") is linked


HOLDER = """
import sys
from pathlib import Path
from engines.storage import Lock

Lock(Path(sys.argv[1]), busy="").acquire()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_keeps_other_processes_out_until_its_own_dies(kind, tmp_path):
    place = tmp_path / "new" / "lock" if kind == "file" else tmp_path
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=storage.ROOT,
    )
    assert holder.stdout.readline() == b"locked\n"
    lock = Lock(place, busy="it is taken")
    with pytest.raises(UsageError, match=r"^it is taken$"):
        lock.acquire()
    lock.release()  # of what it does not hold
    holder.kill()
    holder.communicate()
    with lock, pytest.raises(UsageError, match=r"^it is taken$"):
        Lock(place, busy="it is taken").acquire()
    assert place.exists() == (kind == "folder"), "a file that was made for the lock goes with it"
    with lock:
        pass


def test_a_lock_on_a_file_that_its_holder_just_removed_is_none(tmp_path, monkeypatch):
    """Between opening the file and locking it, the holder ended and removed it."""
    import fcntl

    place, flock = tmp_path / "lock", fcntl.flock

    def removed_meanwhile(handle, how):
        place.unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with pytest.raises(UsageError, match="taken"):
        Lock(place, busy="taken").acquire()


def test_a_file_system_without_locks_stops_nobody(tmp_path, monkeypatch):
    import fcntl

    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Lock(tmp_path, busy="taken"):
        pass


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file: .*; choose another place"):
        Lock(tmp_path / "file" / "lock", busy="", remedy="choose another place").acquire()


def test_digests(tmp_path):
    assert digest_of({"b": 1, "a": [2]}) == digest_of({"a": [2], "b": 1}) != digest_of({"a": [1], "b": 2})
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ROOT", tmp_path)
    for name in ("one/__init__.py", "one/a.py", "one/in/b.py", "two/c.py", "one/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def named(*arguments):
        return [file.relative_to(tmp_path).as_posix() for file in source_files(*arguments)]

    assert named(["one"]) == ["one/__init__.py", "one/a.py", "one/in/b.py"]
    assert named(["one", "two/c"], ["one/in", "one/__init__"]) == ["one/a.py", "two/c.py"]
    before = source_digest(["one"], ["one/in"])
    (tmp_path / "one/in/b.py").write_text("changed")
    (tmp_path / "one/notes.txt").write_text("changed")
    assert source_digest(["one"], ["one/in"]) == before
    (tmp_path / "one/a.py").rename(tmp_path / "one/z.py")
    renamed = source_digest(["one"], ["one/in"])
    (tmp_path / "one/z.py").write_text("changed")
    assert len({before, renamed, source_digest(["one"], ["one/in"])}) == 3


def test_parts_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "missing folder" / "c.png"]
    for name in (".a.png.4000001.part", ".other.png.4000001.part", ".b.png.4000002.part"):
        (tmp_path / name).write_bytes(b"half")
    with atomic_write(files[0]) as file:
        file.write(b"whole")
        remove_dead_parts(files)
        assert names(tmp_path) == [f".a.png.{os.getpid()}.part", ".other.png.4000001.part"]
    assert names(tmp_path) == [".other.png.4000001.part", "a.png"]
    assert files[0].read_bytes() == b"whole"
