"""Images of classes, where they go, what is reported."""

import json
from pathlib import Path

import numpy as np
import pytest
import var_run_fake as fake
from PIL import Image
from var_run_fake import error_of, names

from engines.files.images import load_picture, read_picture_text


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
    assert call("--class", 0)[0] == 0
    assert call("--class", "parrot", "--cfg", 1)[0] == 0  # the bundle's own value, said aloud
    assert pipeline.made == [(0, 0), (0, 0)]


@pytest.mark.parametrize("change", [("--cfg", 2), ("--top-k", 3), ("--top-p", 0.1), ("--temperature", 0.5)])
def test_other_settings_do_not_replace_a_picture(call, pipeline, change):
    call("--class", 0)
    assert "--overwrite" in error_of(call("--class", 0, *change))
    assert len(pipeline.loads) == 1
    assert call("--class", 0, *change, "--overwrite")[0] == 0


def test_another_bundle_does_not_replace_a_picture(call, monkeypatch):
    call("--class", 0)
    fake.install(monkeypatch.setattr, fake.bundle(build_key="b2" * 32))
    assert "--overwrite" in error_of(call("--class", 0))


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
        "0-parrot-5.png",
        "0-parrot-6.png",
        "2-t-shirt-7.png",
        "2-t-shirt-8.png",
        "3-great-white-shark-10.png",
        "3-great-white-shark-9.png",
        "job.json",
    ]
    assert out.splitlines() == [
        "out/0-parrot-5.png",
        "out/0-parrot-6.png",
        "out/2-t-shirt-7.png",
        "... and 3 more in out",
    ]
    assert "6 images in" in err
    assert np.array_equal(load_picture(Path("out/3-great-white-shark-10.png")), fake.image_of(3, 10))


def test_no_class_is_a_class(call, pipeline):
    assert call("--class", "none")[1] == "var-none-0.png\n"
    assert pipeline.made == [(6, 0)]


def test_classes_of_one_label_get_different_names(call):
    call("--class", "1,4", "--out", "x")
    assert names("x") == ["1-crane-1-0.png", "4-crane-4-1.png", "job.json"]


def test_a_bundle_without_labels(call, monkeypatch):
    fake.install(monkeypatch.setattr, fake.bundle(labels=None))
    assert call("--class", 3)[1] == "var-3-0.png\n"
    assert call("--class", "0-1")[0] == 0
    assert names("out") == ["0-0.png", "1-1.png", "job.json"]
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
        ("folder", ["folder/0-parrot-0.png", "folder/1-crane-1-1.png", "folder/job.json"]),
        ("deep/er/", ["deep/er/0-parrot-0.png", "deep/er/1-crane-1-1.png", "deep/er/job.json"]),
        ("v1.5", ["v1.5/0-parrot-0.png", "v1.5/1-crane-1-1.png", "v1.5/job.json"]),
    ],
)
def test_out_names_the_files(call, out, files):
    assert call("--class", "0-1", "--out", out)[0] == 0
    assert sorted(str(path) for path in Path().rglob("*") if path.is_file()) == files


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("a.png", "one file for 2 images: name a folder, or add --grid"),
        ("a.jpg", "images are written as .png"),
        ("{label.__class__}.png", "the fields are {class}, {label}, {seed}, {index}"),
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
    first = [f"out/0-parrot-{k}.png" for k in range(3)]
    assert out == [*first, "... and 6 more in out", "out/grid.png", "t.npz"]


def test_a_grid_in_one_file(call, pipeline):
    assert call("--class", "0-2", "--grid", "--out", "g.png")[1] == "g.png\n"
    assert names() == ["g.png"]
    assert load_picture(Path("g.png")).shape == (22, 22, 3)
    assert read_picture_text(Path("g.png"))["classes"] == "[0, 1, 2]"
    assert "--overwrite" in error_of(call("--class", "0-3", "--grid", "--out", "g.png"))


def test_a_grid_too_large_to_open_is_refused_before_work(call, pipeline, monkeypatch):
    monkeypatch.setattr("engines.files.images.MAX_GRID_PIXELS", 1100)
    assert "--grid takes up to 9 images" in error_of(call("--class", 0, "--count", 10, "--grid"))
    assert not pipeline.loads
    assert call("--class", 0, "--count", 9, "--grid")[0] == 0


def test_previews_show_every_scale(call):
    assert call("--class", "0-1", "--preview")[0] == 0
    picture = load_picture(Path("out/1-crane-1-1-preview.png"))
    assert picture.shape == (12, 32, 3)
    assert (picture[2:10, 2:10] == 0).all()
    assert (picture[2:10, 12:20] == 50).all()
    assert np.array_equal(picture[2:10, 22:30], fake.image_of(1, 1))
    assert np.array_equal(load_picture(Path("out/1-crane-1-1.png")), fake.image_of(1, 1))
    assert call("--class", 0, "--preview")[1] == "var-parrot-0.png\nvar-parrot-0-preview.png\n"


def test_json_is_one_document_and_nothing_else(call):
    code, out, _ = call("--class", "0-2", "--batch", 2, "--json", "--threads", 1, "--seed", 4)
    document = json.loads(out)
    assert code == 0
    assert document["files"] == ["out/0-parrot-4.png", "out/1-crane-1-5.png", "out/2-t-shirt-6.png"]
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
    out = call("--list-classes")[1]
    assert out.splitlines()[:2] == ["class  label", "    0  parrot"]
    assert len(out.splitlines()) == 7
    document = json.loads(call("--list-classes", "--json")[1])
    assert document["classes"][2] == {"index": 2, "label": "t-shirt"}
    assert document["unconditional"] == 6
    fake.install(monkeypatch.setattr, fake.bundle(labels=None))
    assert "0 to 5, without labels" in call("--list-classes")[1]
    assert not pipeline.loads
