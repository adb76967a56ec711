import errno
import json

import numpy as np
import pytest
from job_helpers import SIDE, Producer, check_pictures, grid_of, image_of, job_of, names, pictures, rows
from PIL import Image

from engines.errors import UsageError
from engines.files.jobs import JobInterruptedError, TakenError, held, make_job, run_job
from engines.pictures.images import load_picture, read_picture_text


def test_image_k_has_seed_s_plus_k():
    job = job_of((3, 5), seed=10, count=2)
    assert [(i.index, i.class_id, i.seed) for i in job.items] == [(0, 3, 10), (1, 5, 11), (2, 3, 12), (3, 5, 13)]


def test_a_larger_job_begins_with_the_images_of_a_smaller_one():
    small, large = job_of(count=2), job_of(count=5)
    assert small.key == large.key
    assert large.items[: len(small.items)] == small.items


def test_a_sweep_draws_each_image_with_every_combination():
    settings = {"build_key": "ab", "provider": "cpu", "temperature": 1.0}
    job = make_job((3, 5), seed=7, count=2, settings=settings, sweep={"cfg": (1.0, 4.0), "top_p": (0.5, 0.9, 1.0)})
    assert [item.index for item in job.items] == list(range(24))
    assert {(item.class_id, item.seed) for item in job.items[:6]} == {(3, 7)}
    assert [tuple(item.sampling.values()) for item in job.items[6:12]] == [
        (cfg, top_p) for cfg in (1.0, 4.0) for top_p in (0.5, 0.9, 1.0)
    ]
    alone = make_job((5,), seed=8, count=1, settings={**settings, "cfg": 4.0, "top_p": 0.9})
    assert alone.items[0].key == job.items[10].key  # the same image as without a sweep
    assert (job.settings["cfg"], job.settings["top_p"]) == ([1.0, 4.0], [0.5, 0.9, 1.0])
    assert len({item.key for item in job.items}) == 24


def test_keys_follow_from_what_decides_the_pixels():
    job = job_of((3,), seed=0, count=2)
    assert job_of((3,), seed=1, count=1).items[0].key == job.items[1].key  # the same image in another job
    others = [job_of((4,), 0, 2), job_of((3,), 1, 2), job_of((3,), 0, 2, cfg=2.0), job_of((3,), 0, 2, build_key="cd")]
    assert len({job.key, *(other.key for other in others)}) == 5


@pytest.mark.parametrize("seed", [-1, 2**64 - 1, 2**70])
def test_seeds_beyond_64_bits_are_refused(seed):
    with pytest.raises(UsageError, match="seeds run from"):
        job_of((1,), seed=seed, count=2)


def test_a_job_runs_in_batches_and_tells_its_progress(tmp_path):
    job, produce, seen = job_of(), Producer(), []
    assert run_job(job, [pictures(job, tmp_path / "out")], produce, batch=3, progress=seen.append) == 8
    assert produce.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert seen == [0, 3, 6, 8]
    check_pictures(job, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "job.json").read_text())
    assert record["key"] == job.key
    assert (record["images"], record["classes"], record["seed"], record["build_key"]) == (8, [3, 5], 10, "ab")


def test_an_interrupted_job_continues_where_it_stopped(tmp_path):
    job, out, npz = job_of(), tmp_path / "out", tmp_path / "all.npz"
    with pytest.raises(JobInterruptedError, match=r"3 of 8 images are done, the same command continues"):
        run_job(job, [pictures(job, out), rows(job, npz)], Producer(stop_at=1), batch=3)
    assert not npz.exists()
    produce = Producer()
    assert run_job(job, [pictures(job, out), rows(job, npz)], produce, batch=3) == 5
    assert produce.batches == [[3, 4, 5], [6, 7]]
    check_pictures(job, out)
    with np.load(npz) as saved:
        assert np.array_equal(saved["arr_0"], np.stack([image_of(item) for item in job.items]))
        assert saved["seeds"].tolist() == list(range(10, 18))
    assert names(tmp_path) == ["all.npz", "out"]


def test_an_error_keeps_what_was_made(tmp_path):
    job = job_of()
    with pytest.raises(ZeroDivisionError):
        run_job(job, [pictures(job, tmp_path)], Producer(stop_at=2, error=ZeroDivisionError), batch=2)
    produce = Producer()
    run_job(job, [pictures(job, tmp_path)], produce, batch=8)
    assert produce.batches == [[4, 5, 6, 7]]


def test_a_finished_job_makes_nothing_again(tmp_path):
    job = job_of()
    for expected in (8, 0):
        assert run_job(job, [pictures(job, tmp_path), rows(job, tmp_path / "a.npz")], Producer(), batch=8) == expected


def test_only_what_is_missing_or_damaged_is_made_again(tmp_path):
    job, out = job_of(), tmp_path / "out"
    run_job(job, [pictures(job, out)], Producer(), batch=8)
    (out / "5-11.png").unlink()
    (out / "5-15.png").write_bytes((out / "5-15.png").read_bytes()[:100])
    (out / "5-17.png").write_bytes(b"")
    produce = Producer()
    run_job(job, [pictures(job, out)], produce, batch=8)
    assert produce.batches == [[1, 5, 7]]
    check_pictures(job, out)


def test_images_that_another_sink_lacks_are_made_again(tmp_path):
    job, out = job_of(), tmp_path / "out"
    run_job(job, [pictures(job, out)], Producer(), batch=8)
    with_previews = Producer()
    run_job(job, [pictures(job, out, previews="strip")], with_previews, batch=8)
    assert sum(map(len, with_previews.batches)) == 8
    assert load_picture(out / "3-10-preview.png").shape == (SIDE + 4, 2 * (SIDE + 2) + 2, 3)
    with_rows = Producer()
    run_job(job, [pictures(job, out), rows(job, tmp_path / "a.npz")], with_rows, batch=8)
    assert sum(map(len, with_rows.batches)) == 8


def test_a_folder_of_another_job_is_refused_and_left_alone(tmp_path):
    first, second = job_of(), job_of(cfg=2.0)
    run_job(first, [pictures(first, tmp_path)], Producer(), batch=8)
    with pytest.raises(TakenError, match=r"holds another job: choose another folder with --out, or .*--overwrite"):
        pictures(second, tmp_path)
    check_pictures(first, tmp_path)


def test_overwrite_replaces_the_files_of_this_job_and_removes_none(tmp_path):
    first, second = job_of((3, 5)), job_of((5, 3), count=2)
    run_job(first, [pictures(first, tmp_path), grid_of(first, tmp_path)], Producer(), batch=8)
    (tmp_path / "3-10.png").rename(tmp_path / "favourite.png")
    (tmp_path / "notes.txt").write_text("keep")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    sink = pictures(second, tmp_path, overwrite=True)
    run_job(second, [sink], Producer(), batch=8)
    assert sink.replaced == 0  # it writes 5-10, 3-11, 5-12 and 3-13, which were not there
    after = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert before.items() - after.items() == {("job.json", before["job.json"])}
    assert run_job(second, [pictures(second, tmp_path)], Producer(), batch=8) == 0
    other = job_of((3, 5), cfg=2.0)
    sink = pictures(other, tmp_path, overwrite=True)
    run_job(other, [sink], Producer(), batch=8)
    assert sink.replaced == 7  # of its eight, 3-10 had been renamed
    assert (tmp_path / "favourite.png").read_bytes() == before["favourite.png"]


def test_a_larger_count_goes_on_in_the_same_folder(tmp_path):
    small, large = job_of(count=2), job_of(count=4)
    run_job(small, [pictures(small, tmp_path), grid_of(small, tmp_path)], Producer(), batch=8)
    produce = Producer()
    run_job(large, [pictures(large, tmp_path), grid_of(large, tmp_path)], produce, batch=8)
    assert [index for batch in produce.batches for index in batch] == list(range(8))  # the grid alone keeps no images
    check_pictures(large, tmp_path)
    assert json.loads((tmp_path / "job.json").read_text())["images"] == 8
    assert load_picture(tmp_path / "grid.png").shape[0] == 3 * (SIDE + 2) + 2
    produce = Producer()
    larger = job_of(count=5)
    run_job(larger, [pictures(larger, tmp_path)], produce, batch=8)
    assert produce.batches == [[8, 9]]
    assert run_job(small, [pictures(small, tmp_path)], Producer(), batch=8) == 0  # and a smaller one is there
    assert json.loads((tmp_path / "job.json").read_text())["images"] == 10


def test_a_job_that_fails_at_once_claims_no_folder(tmp_path):
    job = job_of()
    sinks = [pictures(job, tmp_path / "out"), rows(job, tmp_path / "a.npz"), grid_of(job, tmp_path / "g")]
    with pytest.raises(UsageError):
        run_job(job, sinks, Producer(stop_at=0, error=UsageError("cfg")), batch=8)
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", None])
def test_a_file_of_somebody_else_is_never_lost(tmp_path, content):
    job, path = job_of(), tmp_path / "3-12.png"
    if content is None:
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"3-12.png exists .* --overwrite"):
        pictures(job, tmp_path)
    assert path.read_bytes() == before
    run_job(job, [pictures(job, tmp_path, overwrite=True)], Producer(), batch=8)
    check_pictures(job, tmp_path)


def test_a_picture_of_other_settings_is_never_lost(tmp_path):
    first, second = job_of((3,), count=1), job_of((3,), count=1, cfg=2.0)
    run_job(first, [pictures(first, tmp_path, own=False)], Producer(), batch=1)
    assert names(tmp_path) == ["3-10.png"]
    with pytest.raises(UsageError, match="--overwrite"):
        pictures(second, tmp_path, own=False)
    assert run_job(first, [pictures(first, tmp_path, own=False)], Producer(), batch=1) == 0


def test_a_foreign_job_json_is_never_lost(tmp_path):
    (tmp_path / "job.json").write_text('{"name": "print job"}')
    with pytest.raises(UsageError, match=r"none of ours.*--out"):
        pictures(job_of(), tmp_path)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "3-10.png").mkdir()
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        pictures(job_of(), tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="is a folder"):
        rows(job_of(), tmp_path / "a.npz", overwrite=True)


def test_two_processes_do_not_write_the_same_job(tmp_path):
    job = job_of()
    lock = held(tmp_path)
    with pytest.raises(UsageError, match="another process"):
        run_job(job, [pictures(job, tmp_path)], Producer(), batch=8)
    assert names(tmp_path) == []
    lock.release()
    run_job(job, [pictures(job, tmp_path)], Producer(), batch=8)


def test_leftovers_of_a_killed_process_go(tmp_path):
    job = job_of()
    for name in (".3-10.png.123.part", ".job.json.123.part", ".mine.part"):
        (tmp_path / name).write_bytes(b"half")
    run_job(job, [pictures(job, tmp_path)], Producer(), batch=8)
    assert [name for name in names(tmp_path) if name.startswith(".")] == [".mine.part"]


def test_a_full_disk_is_one_line_and_the_job_continues_later(tmp_path, monkeypatch):
    job, save = job_of(), Image.Image.save
    count = iter(range(100))

    def full(image, file, **options):
        if next(count) == 5:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, file, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        with pytest.raises(UsageError, match=r"cannot write .*: No space left on device"):
            run_job(job, [pictures(job, tmp_path)], Producer(), batch=2)
    assert len([name for name in names(tmp_path) if name.endswith(".png")]) == 5
    produce = Producer()
    run_job(job, [pictures(job, tmp_path)], produce, batch=8)
    assert produce.batches == [[5, 6, 7]]


def test_a_grid_of_the_files_that_a_job_wrote(tmp_path):
    job = job_of()
    for expected in (8, 0):
        files = [tmp_path / f"{item.class_id}-{item.seed}.png" for item in job.items]
        assert run_job(job, [pictures(job, tmp_path), grid_of(job, tmp_path, files)], Producer(), batch=3) == expected
    picture = load_picture(tmp_path / "grid.png")
    assert picture.shape == (3 * (SIDE + 2) + 2, 3 * (SIDE + 2) + 2, 3)
    assert np.array_equal(picture[2 : 2 + SIDE, 10 : 10 + SIDE], image_of(job.items[1]))
    assert read_picture_text(tmp_path / "grid.png")["bundle"] == "b"


def test_a_grid_alone_starts_again_when_interrupted(tmp_path):
    job = job_of()
    with pytest.raises(JobInterruptedError):
        run_job(job, [grid_of(job, tmp_path)], Producer(stop_at=1), batch=3)
    assert names(tmp_path) == []
    assert run_job(job, [grid_of(job, tmp_path)], Producer(), batch=3) == 8
    assert run_job(job, [grid_of(job, tmp_path)], Producer(), batch=3) == 0
    with pytest.raises(UsageError, match="--overwrite"):
        grid_of(job_of(cfg=2.0), tmp_path)


def test_leftovers_of_a_killed_pattern_job_go(tmp_path):
    """Its folder belongs to nobody, so a lock on each part says whether its writer lives."""
    job = job_of()
    (tmp_path / f".{job.items[1].class_id}-{job.items[1].seed}.png.4000001.part").write_bytes(b"half")
    (tmp_path / ".mine.png.4000001.part").write_bytes(b"of another job")
    run_job(job, [pictures(job, tmp_path, own=False)], Producer(), batch=2)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".mine.png.4000001.part"]
