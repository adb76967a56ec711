"""Shards of a job, drawn apart and merged: the same files, byte by byte, as one machine makes."""

import hashlib
import re
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from engines.errors import UsageError
from engines.files.jobs import make_job, shard_of
from engines.files.merging import merge
from engines.files.npz import npy_header, record_of, write_archive
from engines.files.shard import Shard

JOB = ("--class", "all", "--count", "3", "--seed", "5", "--batch", "2")
LONG = ("--class", "0,1,2", "--count", "7", "--cfg", "1,2")


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.mark.parametrize("of", [1, 2, 4, 5, 18])
def test_arrays_of_shards_merge_to_the_file_of_one_machine(call, of):
    assert call(*JOB, "--npz", "whole.npz", "--save-tokens", "tokens.npz")[0] == 0
    for number in range(1, of + 1):
        shard = ("--shard", f"{number}/{of}", "--npz", f"s-{number}.npz", "--save-tokens", f"t-{number}.npz")
        assert call(*JOB, *shard)[0] == 0
    for whole, part in (("whole.npz", "s"), ("tokens.npz", "t")):
        shards = [Path(f"{part}-{number}.npz") for number in reversed(range(1, of + 1))]
        assert merge(shards, Path("merged.npz"), overwrite=True) == 18
        assert Path("merged.npz").read_bytes() == Path(whole).read_bytes()
    assert not list(Path().glob("*.part*"))


def test_pictures_of_shards_merge_to_the_folder_of_one_machine(call):
    for job in (JOB, LONG, (*JOB, "--preview-as", "webp"), (*JOB, "--order", "class")):
        for old in Path().iterdir():
            shutil.rmtree(old)
        assert call(*job, "-o", "whole/")[0] == 0
        for number in (1, 2, 3):
            assert call(*job, "-o", f"s-{number}/", "--shard", f"{number}/3")[0] == 0
        Path("s-2/mine.png").write_bytes(b"a picture of its user")
        merge([Path(f"s-{number}") for number in (3, 1, 2)], Path("merged"))
        whole = hashes("whole")
        whole.pop("grid.png", None)  # of a sweep, which a shard does not draw
        assert hashes("merged") == whole
    assert call(*JOB, "--order", "class", "-o", "merged/")[2].count("nothing to make")  # it is that job's now


def test_a_shard_that_is_interrupted_goes_on(call, pipeline):
    command = (*JOB, "--npz", "s.npz", "--shard", "2/4")
    pipeline.interrupt_at = 2
    assert call(*command)[0] == 130
    pipeline.interrupt_at = None
    code, _, err = call(*command)
    assert (code, "2 were there" in err) == (0, True)
    assert len(pipeline.made) == len(set(pipeline.made)) == len(np.load("s.npz")["arr_0"]) == 5


def test_a_job_in_shards_grows(call, pipeline):
    grown = [word if word != "3" else "5" for word in JOB]
    for job in (JOB, grown):
        for number in (1, 2):
            assert call(*job, "--npz", f"s-{number}.npz", "--shard", f"{number}/2")[0] == 0
        merge([Path("s-1.npz"), Path("s-2.npz")], Path("merged.npz"), overwrite=True)
    assert len(pipeline.made) == 30  # none twice
    assert call(*grown, "--npz", "whole.npz")[0] == 0
    assert Path("merged.npz").read_bytes() == Path("whole.npz").read_bytes()


def test_what_cannot_be_merged_says_why(call):
    for number in (1, 2, 3):
        assert call(*JOB, "--npz", f"s-{number}.npz", "--shard", f"{number}/3")[0] == 0
        assert call(*JOB, "-o", f"f-{number}/", "--shard", f"{number}/3")[0] == 0
    call(*JOB, "--cfg", "2", "--npz", "other.npz", "--shard", "3/3")
    call(*JOB, "--npz", "whole.npz")
    shutil.copy("s-2.npz", "copy.npz")
    next(Path("f-2").glob("0*.png")).unlink()
    Path("text.npz").write_text("text")
    cut = Path("s-3.npz").read_bytes()
    for shards, out, says in [
        (["s-1.npz", "s-3.npz"], "o.npz", r"shard 2 of 3 is missing: draw it with --shard 2/3"),
        (["s-1.npz", "s-2.npz", "copy.npz"], "o.npz", r"copy\.npz and s-2\.npz are the same shard, 2/3"),
        (["s-1.npz", "s-2.npz", "other.npz"], "o.npz", r"other\.npz is a shard of another job than s-1\.npz"),
        (["s-1.npz", "whole.npz"], "o.npz", r"whole\.npz is no finished shard"),
        (["s-1.npz", "text.npz"], "o.npz", r"text\.npz is no finished shard"),
        (["s-1.npz", "none.npz"], "o.npz", r"there is no none\.npz"),
        (["s-1.npz", "f-2"], "o.npz", r"not both at once"),
        (["s-1.npz", "s-2.npz", "s-3.npz"], "whole.npz", r"whole\.npz is there already"),
        (["s-1.npz", "s-2.npz", "s-3.npz"], "o", r"o must be called \.npz"),
        (["f-1", "f-2", "f-3"], "o", r"f-2 holds 5 of its 6 pictures: run its command again"),
        (["f-1", "f-3"], "o", r"shard 2 of 3 is missing"),
    ]:
        before = hashes(".")
        with pytest.raises(UsageError, match=says):
            merge([Path(shard) for shard in shards], Path(out))
        assert hashes(".") == before
    Path("s-3.npz").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(UsageError, match=r"s-3\.npz is no finished shard"):
        merge([Path(f"s-{number}.npz") for number in (1, 2, 3)], Path("o.npz"))
    assert not Path("o.npz").exists()


def test_shards_that_cannot_be(call):
    for args, says in [
        (("--shard", "0/3"), "a shard is K/N with K from 1 to N"),
        (("--shard", "4/3"), "a shard is K/N with K from 1 to N"),
        (("--shard", "x"), "a shard is K/N with K from 1 to N"),
        (("--shard", "1/2", "--grid"), "--shard and --grid cannot be combined"),
        (("--shard", "19/19"), "shard 19/19 of 18 images has none: take fewer shards"),
    ]:
        code, out, err = call(*JOB, *args)
        assert (code, out) == (2, "")
        assert says in err


def test_every_part_of_a_job_has_all_classes():
    """An evaluator that splits into runs of images sees all classes in each: the classes come in turn."""
    job = make_job(range(10), seed=0, count=50, settings={})
    for start in range(0, 500, 100):
        assert set(Counter(item.class_id for item in job.items[start : start + 100]).values()) == {10}
    for number in (1, 2, 3):
        counts = Counter(item.class_id for item in shard_of(job, Shard(number, 3)).items)
        assert max(counts.values()) - min(counts.values()) <= 1
    by_class = make_job(range(10), seed=0, count=50, settings={}, order="class")
    assert [item.class_id for item in by_class.items] == sorted(item.class_id for item in job.items)
    assert {(item.class_id, item.seed) for item in by_class.items} == {(item.class_id, item.seed) for item in job.items}
    assert by_class.key != job.key


def inception_score(predictions, splits=10):
    """As ADM's evaluator has it: the exponential of the mean divergence within each run of images, averaged."""
    scores = []
    for part in np.array_split(predictions, splits):
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    return float(np.mean(scores))


def test_the_order_keeps_the_inception_score():
    """With ideal predictions of 50 classes: in turn as shuffled, and as without splits; class after class far below."""
    certain = np.full((50, 50), 0.05 / 49)
    np.fill_diagonal(certain, 0.95)
    scores = {}
    for order in ("turn", "class"):
        job = make_job(range(50), seed=0, count=1000, settings={}, order=order)
        scores[order] = inception_score(certain[[item.class_id for item in job.items]])
    shuffled = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 1000))
    wanted = inception_score(certain[shuffled])
    assert abs(scores["turn"] / wanted - 1) < 0.01
    assert scores["turn"] == pytest.approx(inception_score(certain[shuffled], splits=1))
    assert scores["class"] < wanted / 2


def test_a_large_merge_needs_little_memory(tmp_path):
    """50,000 rows of 64 x 64 pixels in 4 shards, made of one row each."""
    of, images, shape = 4, 50_000, (64, 64, 3)
    row = np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes()
    for number in range(1, of + 1):
        own = Shard(number, of).count(images)

        def content(_, own=own):
            yield npy_header((own, *shape), np.dtype(np.uint8))
            for _ in range(0, own, 100):
                yield row * min(100, own)

        record = {"format": 1, "key": f"{number}", "images": own, "shard": f"{number}/{of}",
                  "whole": {"key": "k", "images": images}}  # fmt: skip
        with (tmp_path / f"s-{number}.npz").open("wb") as file:
            write_archive(file, ["arr_0"], content, record)
    tracemalloc.start()
    assert merge([tmp_path / f"s-{number}.npz" for number in range(1, of + 1)], tmp_path / "whole.npz") == images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert record_of(tmp_path / "whole.npz")["images"] == images
    with np.load(tmp_path / "whole.npz", mmap_mode="r") as saved:
        assert saved["arr_0"].shape == (images, *shape)


def test_a_disk_that_is_too_small_is_said_before_anything_is_drawn(call, pipeline, monkeypatch):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6, 3000))
    code, _, err = call(*JOB, "--npz", "a.npz")
    assert code == 2
    assert re.search(r"a\.npz will have [\d.]+ MiB, needs [\d.]+ MiB while it is written, and .* are free there", err)
    assert pipeline.made == []
    assert list(Path().iterdir()) == []


def test_the_command(call, capsys):
    from var_export.cli.main import main

    for number in (1, 2):
        assert call(*JOB, "--npz", f"s-{number}.npz", "--shard", f"{number}/2")[0] == 0
    assert main(["merge", "s-1.npz", "--out", "whole.npz"]) == 2
    assert "shard 2 of 2 is missing" in capsys.readouterr().err
    assert main(["merge", "s-1.npz", "s-2.npz", "--out", "whole.npz"]) == 0
    said = capsys.readouterr()
    assert (said.out, "18 images of 2 shards" in said.err) == ("whole.npz\n", True)


def test_the_preset_of_an_fid(call, pipeline, monkeypatch):
    from engines.cli import actions
    from engines.spec.presets import PRESETS, Preset

    assert call("--preset", "fid", "--npz", "a.npz")[2].count("is for checkpoints of 1000 classes, and this one has 6")
    monkeypatch.setitem(PRESETS, "fid", Preset(**vars(PRESETS["fid"]) | {"num_classes": 6}))
    monkeypatch.setitem(actions.PRESETS, "fid", PRESETS["fid"])
    low = ("--top-k", "9")  # what the fake bundle sorts is less than ImageNet's
    assert call("--preset", "fid", *low, "--npz", "a.npz")[0] == 0
    assert Counter(class_id for class_id, _ in pipeline.made) == dict.fromkeys(range(6), 50)
    record = record_of(Path("a.npz"))
    assert [record[name] for name in ("cfg", "top_k", "top_p", "smooth", "count")] == [1.5, 9, 0.96, False, 50]
    assert call("2", "--preset", "fid", *low, "--count", "2", "--cfg", "3", "--npz", "b.npz")[0] == 0
    record = record_of(Path("b.npz"))
    assert [record[name] for name in ("classes", "count", "cfg", "top_p")] == [[2], 2, 3.0, 0.96]
