"""Images of classes, where they go, what is reported."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import var_run_fake as fake
from PIL import Image
from var_run_fake import error_of, names

from engines.bundle.bundle import DEMO_BUNDLE
from engines.pictures.images import load_picture, read_picture_text


def test_one_image(call, pipeline):
    code, out, err = call("--class", "parrot")
    assert (code, out) == (0, "var-parrot-0.png\n")
    assert "using the embedded demo bundle" in err
    assert names() == ["var-parrot-0.png"]
    assert np.array_equal(load_picture(Path("var-parrot-0.png")), fake.image_of(0, 0))


def test_the_picture_tells_how_it_was_made(call):
    call("--class", "t shirt", "--seed", 7, "--cfg", 2.5, "--top-k", 9)
    text = read_picture_text(Path("var-t-shirt-7.png"))
    expected = {
        "class": "2",
        "label": "t-shirt",
        "seed": "7",
        "cfg": "2.5",
        "top_k": "9",
        "top_p": "0.5",
        "temperature": "1.0",
        "bundle": "fake-fp32",
        "precision": "fp32",
        "build_key": "a1" * 32,
        "provider": "cpu",
        "form": "stepwise",
    }
    assert expected.items() <= text.items()
    assert text["Software"].startswith("var-run ")


def test_the_same_command_twice(call, pipeline):
    assert call("parrot")[0] == 0
    code, out, err = call("--class", 0, "--cfg", 1)  # the bundle's own value, said aloud
    assert (code, out) == (0, "var-parrot-0.png\n")
    assert "nothing to make: the image is there" in err
    assert pipeline.made == [(0, 0)]


def test_a_class_is_an_argument_too(call, pipeline):
    assert call("parrot", "t-shirt", "--class", 3)[0] == 0
    assert pipeline.made == [(0, 0), (2, 1), (3, 2)]


def test_the_seed_is_told_where_nobody_named_it(call):
    assert "seed 0, as always: --seed 1, or --seed random, draws others" in call("parrot")[2]
    assert "seed" not in call("parrot", "--seed", 0)[2]
    code, out, err = call("parrot", "--seed", "random")
    seed = re.fullmatch(r"var-parrot-([0-9]+)\.png\n", out)[1]
    assert f"seed {seed}: --seed {seed} draws this again" in err
    before = Path(out.strip()).read_bytes()
    Path(out.strip()).unlink()
    assert call("parrot", "--seed", seed)[:2] == (code, out)
    assert Path(out.strip()).read_bytes() == before


@pytest.mark.parametrize("change", [("--cfg", 2), ("--top-k", 3), ("--top-p", 0.1), ("--temperature", 0.5)])
def test_other_settings_get_another_name(call, pipeline, change):
    call("parrot")
    before = Path("var-parrot-0.png").read_bytes()
    code, out, err = call("parrot", *change)
    assert (code, out) == (0, "var-parrot-0-2.png\n")
    assert "var-parrot-0.png is another picture: this goes to var-parrot-0-2.png" in err
    code, out, err = call("parrot", *change)
    assert (code, out) == (0, "var-parrot-0-2.png\n")
    assert "nothing to make" in err
    assert Path("var-parrot-0.png").read_bytes() == before
    code, out, err = call("parrot", *change, "--overwrite")
    assert (code, out) == (0, "var-parrot-0.png\n")
    assert ", 1 file replaced" in err


def test_another_bundle_does_not_replace_a_picture(call, monkeypatch):
    call("parrot")
    fake.install(monkeypatch.setattr, fake.bundle(build_key="b2" * 32))
    assert call("parrot")[1] == "var-parrot-0-2.png\n"


def test_another_job_gets_another_folder_and_the_same_one_goes_on(call, pipeline):
    assert call("0-1", "--count", 2)[1].startswith("out/")
    code, out, err = call("2-3", "--count", 2)
    assert (code, out.splitlines()[0]) == (0, "out-2/00000-t-shirt-0.png")
    assert "out holds another job: this goes to out-2" in err
    made = len(pipeline.made)
    assert call("2-3", "--count", 3)[1].startswith("out-2/00000")
    assert len(pipeline.made) == made + 2
    assert len(names("out-2")) == 7
    assert call("2-3", "--count", 1)[1] == "out-2/00000-t-shirt-0.png\nout-2/00001-great-white-shark-1.png\n"
    assert len(pipeline.made) == made + 2
    shutil.rmtree("out")
    call("2-3", "--count", 3)
    assert names() == ["out-2"]


def test_a_folder_that_was_named_gets_a_number_too(call):
    Path("mine").mkdir()
    Path("mine/00001-crane-1-1.png").write_text("mine")
    Path("mine-3.png").write_text("mine")
    assert call("0-1", "-o", "mine")[1].startswith("mine-2/")
    assert names("mine") == ["00001-crane-1-1.png"]


def test_a_bundle_is_no_place_for_pictures(call):
    shutil.copytree(DEMO_BUNDLE, "mine")
    before = names("mine")
    assert call("0-1", "-o", "mine")[1].startswith("mine-2/")
    assert "mine is a bundle: choose another folder" in error_of(call("0-1", "-o", "mine", "--overwrite"))
    assert names("mine") == before


def test_names_sort_in_the_order_of_the_images(call):
    call("3,0", "-n", 6, "--seed", 8)
    seeds = [int(name.removesuffix(".png").rsplit("-", 1)[1]) for name in names("out") if name.endswith(".png")]
    assert seeds == list(range(8, 20))


def test_a_sweep_is_a_labelled_grid(call, pipeline):
    code, out, _ = call("parrot", "--cfg", "1,2,4", "--top-p", "0.4,0.9", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["files"][:2] == ["out/00000-parrot-0-cfg-1-top-p-0.4.png", "out/00001-parrot-0-cfg-1-top-p-0.9.png"]
    assert document["settings"]["cfg"] == [1.0, 2.0, 4.0]
    assert set(pipeline.made) == {(0, 0)}
    text = read_picture_text(Path(document["files"][-2]))
    assert (text["cfg"], text["top_p"]) == ("4.0", "0.9")
    assert np.array_equal(load_picture(Path(document["files"][-2])), fake.image_of(0, 0, 4.0))
    assert document["files"][-1] == "out/grid.png"
    grid = load_picture(Path("out/grid.png"))
    assert grid.shape[0] > 3 * 10 + 2
    assert grid.shape[1] > 2 * 10 + 2
    assert np.array_equal(grid[-10:-2, -10:-2], fake.image_of(0, 0, 4.0))
    assert call("parrot", "--cfg", "1,2", "-o", "{label}-{cfg:g}-{top_p}.png")[0] == 0
    assert {"parrot-1-0.5.png", "parrot-2-0.5.png"} <= set(names())


def test_a_sweep_too_large_for_a_grid_has_none(call, monkeypatch):
    monkeypatch.setattr("engines.pictures.grids.MAX_GRID_PIXELS", 1100)
    assert call("parrot", "-n", 10, "--cfg", "1,2")[0] == 0
    assert "grid.png" not in names("out")
    assert "--grid takes up to" in error_of(call("parrot", "-n", 10, "--cfg", "1,2", "--grid", "-o", "x"))


def test_a_grid_too_large_for_its_format_is_refused_before_work(call, pipeline):
    assert "16383" in error_of(call("0", "-n", 1640, "--grid", "--cfg", "1,2", "-o", "g.webp"))
    assert not pipeline.loads


def test_a_sweep_is_checked_before_work(call, monkeypatch):
    """Each value alone could be: without top-k, top-p needs the whole vocabulary sorted."""
    pipeline = fake.install(monkeypatch.setattr, fake.bundle(max_top_k=32))
    assert call("parrot", "--top-k", "20,5", "--top-p", "0,0.5")[0] == 0
    assert "sorts 32 of 64" in error_of(call("parrot", "--top-k", "0,20", "--top-p", "0,0.5", "-o", "x"))
    assert not Path("x").exists()
    assert len(pipeline.loads) == 1


def test_a_sweep_of_one_value_is_none(call):
    assert call("parrot", "--cfg", "2,2")[1] == "var-parrot-0.png\n"


def test_unusual_settings_are_told(call):
    assert "--cfg 100 is unusual, and pictures suffer: 0 to 10 is usual" in call("parrot", "--cfg", 100)[2]
    assert "unusual" in call("parrot", "--temperature", "1,3")[2]
    assert "unusual" not in call("parrot", "--cfg", 4)[2]


def test_a_home_folder_that_the_shell_leaves(call, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert call("parrot", "--out=~/x.png")[1] == f"{tmp_path}/home/x.png\n"
    assert names() == ["home"]
    assert call("parrot", "-o", "~nobody.png")[1] == "~nobody.png\n"  # no user's home: a name like any other


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "PNG"])
def test_the_ending_of_a_name_decides_the_format(call, pipeline, suffix):
    for _ in range(2):
        assert call("parrot", "-o", f"x.{suffix}")[1] == f"x.{suffix}\n"
    assert len(pipeline.made) == 1
    assert read_picture_text(Path(f"x.{suffix}"))["label"] == "parrot"
    with Image.open(f"x.{suffix}") as image:
        assert image.format == {"webp": "WEBP", "PNG": "PNG"}.get(suffix, "JPEG")
    assert call("0-1", "-o", f"{{label}}.{suffix}")[0] == 0


def test_a_picture_of_somebody_else_is_not_replaced(call):
    Image.new("RGB", (4, 4)).save("photo.png")
    before = Path("photo.png").read_bytes()
    assert "photo.png" in error_of(call("--class", 0, "--out", "photo.png"))
    assert Path("photo.png").read_bytes() == before


def test_several_images_go_to_a_folder_and_carry_class_and_seed(call, pipeline):
    code, out, err = call("--class", "parrot", "--class", "2-3", "--count", 2, "--seed", 5)
    assert code == 0
    assert names() == ["out"]
    assert names("out") == [
        "00000-parrot-5.png",
        "00001-t-shirt-6.png",
        "00002-great-white-shark-7.png",
        "00003-parrot-8.png",
        "00004-t-shirt-9.png",
        "00005-great-white-shark-10.png",
        "job.json",
    ]
    assert out.splitlines() == [
        "out/00000-parrot-5.png",
        "out/00001-t-shirt-6.png",
        "out/00002-great-white-shark-7.png",
        "... and 3 more in out",
    ]
    assert "6 images in" in err
    assert np.array_equal(load_picture(Path("out/00005-great-white-shark-10.png")), fake.image_of(3, 10))


def test_no_class_is_a_class(call, pipeline):
    assert call("--class", "none")[1] == "var-none-0.png\n"
    assert pipeline.made == [(6, 0)]


def test_classes_of_one_label_get_different_names(call):
    call("--class", "1,4", "--out", "x")
    assert names("x") == ["00000-crane-1-0.png", "00001-crane-4-1.png", "job.json"]


def test_a_bundle_without_labels(call, monkeypatch):
    fake.install(monkeypatch.setattr, fake.bundle(labels=None))
    assert call("--class", 3)[1] == "var-3-0.png\n"
    assert call("--class", "0-1")[0] == 0
    assert names("out") == ["00000-class-0-0.png", "00001-class-1-1.png", "job.json"]
    assert "no labels" in error_of(call("--class", "parrot"))


def test_batches_are_no_larger_than_asked(call, pipeline):
    assert call("--class", "all", "--batch", 4)[0] == 0
    assert pipeline.loads[0].options["max_batch"] == 4
    assert len(pipeline.made) == 6
    assert pipeline.loads[0].closed


def test_options_reach_the_pipeline(call, pipeline):
    call("--class", 0, "--threads", 2, "--provider", "cuda", "--form", "fused", "--batch", 3)
    assert pipeline.loads[0].options == {"provider": "cuda", "threads": 2, "form": "fused", "max_batch": 3}


@pytest.mark.parametrize(
    ("out", "files"),
    [
        ("{label}/{seed}.png", ["crane-1/1.png", "parrot/0.png"]),
        ("a/b-{index:03d}.png", ["a/b-000.png", "a/b-001.png"]),
        ("{class:04d}-{{x}}.png", ["0000-{x}.png", "0001-{x}.png"]),
        ("folder", ["folder/00000-parrot-0.png", "folder/00001-crane-1-1.png", "folder/job.json"]),
        ("deep/er/", ["deep/er/00000-parrot-0.png", "deep/er/00001-crane-1-1.png", "deep/er/job.json"]),
        ("v1.5", ["v1.5/00000-parrot-0.png", "v1.5/00001-crane-1-1.png", "v1.5/job.json"]),
    ],
)
def test_out_names_the_files(call, out, files):
    assert call("--class", "0-1", "--out", out)[0] == 0
    assert sorted(str(path) for path in Path().rglob("*") if path.is_file()) == files


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("a.png", "one file for 2 images: name a folder, or add --grid"),
        ("a.bmp", "images are written as .png .jpg .jpeg .webp"),
        ("{label.__class__}.png", "the fields are {class}, {label}, {seed}, {index}, {cfg}"),
        ("{name}.png", "the fields are"),
        ("{}.png", "the fields are"),
        ("{seed!r}.png", "the fields are"),
        ("{seed:{index}}.png", "the fields are"),
        ("{label:d}.png", "no valid pattern"),
        ("{seed.png", "no valid pattern"),
        ("{label}", "must end in .png"),
        ("x{{y}}.png", "add {seed} or {index}"),
        ("file", "is a file"),
    ],
)
def test_an_out_that_cannot_be_is_one_line(call, pipeline, out, says):
    Path("file").write_text("")
    assert says in error_of(call("--class", "0-1", "--out", out))
    assert names() == ["file"]
    assert not pipeline.loads


def test_a_pattern_resumes_too(call, pipeline):
    for _ in range(2):
        assert call("--class", "0-3", "--out", "{label}.png")[0] == 0
    assert len(pipeline.made) == 4


def test_a_grid_beside_the_images(call):
    assert call("--class", "0-2", "--grid")[0] == 0
    picture = load_picture(Path("out/grid.png"))
    assert picture.shape == (22, 22, 3)
    assert np.array_equal(picture[2:10, 12:20], fake.image_of(1, 1))
    assert (picture[10:12] == 255).all()
    assert call("--class", 0, "--grid")[1] == "var-parrot-0.png\nvar-parrot-0-grid.png\n"
    assert call("--class", "0-1", "--grid", "--out", "x/y-{seed}.png")[0] == 0
    assert names("x") == ["grid.png", "y-0.png", "y-1.png"]


def test_of_many_files_the_first_few_are_listed(call):
    out = call("--class", "0", "--count", 9, "--grid", "--save-tokens", "t.npz")[1].splitlines()
    first = [f"out/0000{k}-parrot-{k}.png" for k in range(3)]
    assert out == [*first, "... and 6 more in out", "out/grid.png", "t.npz"]


def test_a_grid_in_one_file(call, pipeline):
    assert call("--class", "0-2", "--grid", "--out", "g.png")[1] == "g.png\n"
    assert names() == ["g.png"]
    assert load_picture(Path("g.png")).shape == (22, 22, 3)
    assert read_picture_text(Path("g.png"))["classes"] == "[0, 1, 2]"
    assert "--overwrite" in error_of(call("--class", "1-3", "--grid", "--out", "g.png"))


def test_a_grid_too_large_to_open_is_refused_before_work(call, pipeline, monkeypatch):
    monkeypatch.setattr("engines.pictures.grids.MAX_GRID_PIXELS", 1100)
    assert "--grid takes up to 9 images" in error_of(call("--class", 0, "--count", 10, "--grid"))
    assert not pipeline.loads
    assert call("--class", 0, "--count", 9, "--grid")[0] == 0


def test_previews_show_every_scale(call):
    assert call("--class", "0-1", "--preview")[0] == 0
    picture = load_picture(Path("out/00001-crane-1-1-preview.png"))
    assert picture.shape == (12, 32, 3)
    assert (picture[2:10, 2:10] == 0).all()
    assert (picture[2:10, 12:20] == 50).all()
    assert np.array_equal(picture[2:10, 22:30], fake.image_of(1, 1))
    assert np.array_equal(load_picture(Path("out/00001-crane-1-1.png")), fake.image_of(1, 1))
    assert call("--class", 0, "--preview")[1] == "var-parrot-0.png\nvar-parrot-0-preview.png\n"


def test_previews_of_a_source_that_holds_fewer_images(call, pipeline, monkeypatch):
    """As plans that were built for a smaller batch: it streams one part after the other."""
    whole = pipeline.stream

    def in_parts(self, classes, *, seeds, **sampling):
        for start in range(0, len(classes), 2):
            part = slice(start, start + 2)
            yield from whole(self, classes[part], seeds=seeds[part], **sampling)

    monkeypatch.setattr(pipeline, "stream", in_parts)
    assert call("all", "--preview", "--save-tokens", "t.npz")[0] == 0
    for index, item in enumerate(sorted(Path("out").glob("*[0-9].png"))):
        assert np.array_equal(load_picture(item), fake.image_of(index, index))
        assert load_picture(item.with_name(f"{item.stem}-preview.png")).shape == (12, 32, 3)
    with np.load("t.npz") as saved:
        assert len(saved["tokens"]) == 6


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_previews_as_an_animation(call, kind):
    assert call("parrot", "--preview-as", kind)[1] == f"var-parrot-0.png\nvar-parrot-0-preview.{kind}\n"
    with Image.open(f"var-parrot-0-preview.{kind}") as image:
        assert (image.n_frames, image.size) == (3, (8, 8))
    assert "nothing to make" in call("parrot", "--preview-as", kind)[2]


def test_json_is_one_document_and_nothing_else(call):
    code, out, _ = call("--class", "0-2", "--batch", 2, "--json", "--threads", 1, "--seed", 4)
    document = json.loads(out)
    assert code == 0
    assert document["files"] == ["out/00000-parrot-4.png", "out/00001-crane-1-5.png", "out/00002-t-shirt-6.png"]
    assert (document["images"], document["images_made"]) == (3, 3)
    assert document["settings"] == {
        "bundle": "fake-fp32",
        "build_key": "a1" * 32,
        "precision": "fp32",
        "provider": "cpu",
        "form": "stepwise",
        "cfg": 1.0,
        "top_k": 20,
        "top_p": 0.5,
        "temperature": 1.0,
        "smooth": False,
        "cfg_scales": 0,
        "classes": [0, 1, 2],
        "seed": 4,
        "count": 1,
        "batch": 2,
        "threads": 1,
    }
    timings = document["timings"]
    assert timings["scales_s"] == pytest.approx([0.2, 0.4, 0.6])  # of two batches
    assert (timings["cond_s"], timings["decode_s"]) == pytest.approx((0.02, 0.1))
    assert timings["outside_s"] == pytest.approx(0.08)
    assert min(timings["load_s"], timings["total_s"]) > 0
    assert 10e6 < document["peak_memory_bytes"] < 100e9
    assert document["bundle"]["name"] == "fake-fp32"
    assert set(document["versions"]) == {"var_export", "python"}
    assert document["runtime"] == {"onnxruntime": "0.fake", "provider": "cpu"}


def test_json_of_a_job_that_was_done(call):
    call("--class", "0-2")
    document = json.loads(call("--class", "0-2", "--json")[1])
    assert (document["images"], document["images_made"], document["runtime"]) == (3, 0, None)
    assert document["timings"]["scales_s"] is None


def test_errors_leave_stdout_empty_under_json(call):
    error_of(call("--class", "99", "--json"))


def test_list_classes(call, pipeline, monkeypatch):
    out = call("classes")[1]
    assert out.splitlines()[:2] == ["class  label", "    0  parrot"]
    assert len(out.splitlines()) == 7
    document = json.loads(call("classes", "--json")[1])
    assert document["classes"][2] == {"index": 2, "label": "t-shirt"}
    assert document["unconditional"] == 6
    fake.install(monkeypatch.setattr, fake.bundle(labels=None))
    assert "0 to 5, without labels" in call("classes")[1]
    assert not pipeline.loads
