import contextlib
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from job_helpers import SIDE, Producer, image_of, job_of, names, rows

from engines.errors import UsageError
from engines.files.jobs import JobInterruptedError, Made, held, run_job
from engines.files.npz import NpzRows


def test_npz_is_what_the_evaluators_read(tmp_path):
    job, path = job_of(), tmp_path / "new" / "a.npz"
    run_job(job, [rows(job, path)], Producer(), batch=3)
    with np.load(path) as saved:
        assert saved.files[0] == "arr_0"
        assert saved["arr_0"].shape == (8, SIDE, SIDE, 3)
        assert saved["arr_0"].dtype == np.uint8
    assert names(tmp_path / "new") == ["a.npz"]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_the_same_rows_give_the_same_bytes(tmp_path):
    job = job_of()
    for name in ("a.npz", "b.npz"):
        run_job(job, [rows(job, tmp_path / name)], Producer(), batch=3)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_npz_never_replaces_what_is_not_its_own(tmp_path):
    job, other, path = job_of(), job_of(cfg=2.0), tmp_path / "a.npz"
    np.savez(path, arr_0=np.zeros(3))
    for wrong in (job, other):
        with pytest.raises(UsageError, match="--overwrite"):
            rows(wrong, path)
    run_job(job, [rows(job, path, overwrite=True)], Producer(), batch=8)
    with pytest.raises(UsageError, match="--overwrite"):
        rows(other, path)
    with pytest.raises(UsageError, match=r"must be called \.npz"):
        rows(job, tmp_path / "a.npy")


def test_rows_of_an_interrupted_npz_are_not_lost_to_another_job(tmp_path):
    job, other, path = job_of(), job_of(cfg=2.0), tmp_path / "a.npz"
    with pytest.raises(JobInterruptedError):
        run_job(job, [rows(job, path)], Producer(stop_at=2), batch=2)
    with pytest.raises(UsageError, match="rows of another job"):
        rows(other, path)
    produce = Producer()
    run_job(job, [rows(job, path)], produce, batch=8)
    assert produce.batches == [[4, 5, 6, 7]]


def test_overwrite_drops_the_rows_of_another_job(tmp_path):
    job, other, path = job_of(), job_of((7,)), tmp_path / "a.npz"
    with pytest.raises(JobInterruptedError):
        run_job(job, [rows(job, path)], Producer(stop_at=2), batch=2)
    assert run_job(other, [rows(other, path, overwrite=True)], Producer(), batch=8) == 4
    with np.load(path) as saved:
        assert np.array_equal(saved["arr_0"], np.stack([image_of(item) for item in other.items]))
    assert names(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("stop_at", [1, None], ids=["interrupted", "whole"])
def test_a_larger_count_takes_over_the_rows_of_a_smaller_one(tmp_path, stop_at):
    small, large, path = job_of(count=2), job_of(count=5), tmp_path / "a.npz"
    with contextlib.suppress(JobInterruptedError):
        run_job(small, [rows(small, path)], Producer(stop_at=stop_at), batch=2)
    produce, sink = Producer(), rows(large, path)
    assert run_job(large, [sink], produce, batch=8) == (8 if stop_at else 6)
    assert sink.replaced == 0
    with np.load(path) as saved:
        assert np.array_equal(saved["arr_0"], np.stack([image_of(item) for item in large.items]))
        assert saved["seeds"].tolist() == [item.seed for item in large.items]
    with pytest.raises(UsageError, match="has 10 images of this job, more than 4"):
        rows(small, path)
    assert names(tmp_path) == ["a.npz"]


def test_a_smaller_count_may_give_up_a_larger_one_that_was_interrupted(tmp_path):
    small, large, path = job_of(count=2), job_of(count=5), tmp_path / "a.npz"
    with pytest.raises(JobInterruptedError):
        run_job(large, [rows(large, path)], Producer(stop_at=4), batch=2)
    with pytest.raises(UsageError, match="rows of another job"):
        rows(small, path)
    assert run_job(small, [rows(small, path, overwrite=True)], Producer(), batch=2) == 4
    with np.load(path) as saved:
        assert np.array_equal(saved["arr_0"], np.stack([image_of(item) for item in small.items]))
    assert names(tmp_path) == ["a.npz"]


def test_a_larger_count_that_is_interrupted_keeps_what_was_there(tmp_path):
    small, large, path = job_of(count=2), job_of(count=5), tmp_path / "a.npz"
    run_job(small, [rows(small, path)], Producer(), batch=2)
    before = path.read_bytes()
    with pytest.raises(JobInterruptedError):
        run_job(large, [rows(large, path)], Producer(stop_at=1), batch=2)
    assert path.read_bytes() == before
    produce = Producer()
    run_job(large, [rows(large, path)], produce, batch=8)
    assert produce.batches == [[6, 7, 8, 9]]
    with np.load(path) as saved:
        assert np.array_equal(saved["arr_0"], np.stack([image_of(item) for item in large.items]))


def test_an_npz_killed_before_its_first_row_starts_again(tmp_path):
    job, path = job_of(), tmp_path / "a.npz"
    partial = tmp_path / "a.npz.partial"
    partial.mkdir()
    for name in ("arr_0.npy", "done", ".job.json.77.part"):
        (partial / name).write_bytes(b"half")
    assert run_job(job, [rows(job, path)], Producer(), batch=8) == 8
    assert names(tmp_path) == ["a.npz"]


def test_an_npz_interrupted_while_it_is_put_together_needs_no_image(tmp_path, monkeypatch):
    job, path = job_of(), tmp_path / "a.npz"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NpzRows, "_content_of", interrupted)
        with pytest.raises(JobInterruptedError, match="8 of 8"):
            run_job(job, [rows(job, path)], Producer(), batch=8)
    assert not path.exists()
    assert run_job(job, [rows(job, path)], Producer(), batch=8) == 0
    assert names(tmp_path) == ["a.npz"]


def test_two_processes_do_not_write_the_same_npz(tmp_path):
    job, partial = job_of(), tmp_path / "a.npz.partial"
    partial.mkdir()
    lock = held(partial)
    with pytest.raises(UsageError, match="another process"):
        run_job(job, [rows(job, tmp_path / "a.npz")], Producer(), batch=8)
    lock.release()


@pytest.mark.slow
def test_a_large_npz_does_not_pass_through_memory(tmp_path):
    side, count = 128, 1000  # 49 MB
    job = job_of((1,), count=count)
    arrays = {"arr_0": ((side, side, 3), np.dtype(np.uint8))}
    sink = NpzRows(job, tmp_path / "a.npz", arrays, lambda _, made: {"arr_0": made.images})
    tracemalloc.start()
    run_job(job, [sink], lambda items: Made(np.full((len(items), side, side, 3), 7, np.uint8)), batch=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    with np.load(tmp_path / "a.npz") as saved:
        assert (saved["arr_0"] == 7).all()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("full", ["arr_0", "done"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(full, tmp_path):
    job, producer = job_of(), Producer()

    run_out = rows(job, tmp_path / "a.npz")
    write = run_out.write

    def write_until_full(items, made):
        if items[0].index >= 4:
            run_out._files[full].close()
            run_out._files[full] = Path("/dev/full").open("r+b")  # noqa: SIM115  # the sink closes it
        write(items, made)

    run_out.write = write_until_full
    with pytest.raises(UsageError, match=r"cannot write .*a\.npz: No space left on device"):
        run_job(job, [run_out], producer, batch=2)
    assert not (tmp_path / "a.npz").exists()
    again = Producer()
    assert run_job(job, [rows(job, tmp_path / "a.npz")], again, batch=2) == 4
    with np.load(tmp_path / "a.npz") as saved:
        assert np.array_equal(saved["arr_0"], np.stack([image_of(item) for item in job.items]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_rows_that_another_program_changed(tmp_path):
    job = job_of()
    with pytest.raises(JobInterruptedError):
        run_job(job, [rows(job, tmp_path / "a.npz")], Producer(stop_at=1), batch=2)
    (tmp_path / "a.npz.partial" / "arr_0.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UsageError, match=r"arr_0\.npy was changed by another program"):
        run_job(job, [rows(job, tmp_path / "a.npz")], Producer(), batch=2)
