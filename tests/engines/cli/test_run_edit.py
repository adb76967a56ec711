"""`var-run edit` from end to end, on the embedded demo bundle; its mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from var_run_fake import error_of, names

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main
from engines.draw.pipeline import Pipeline
from engines.pictures.images import load_picture, read_picture_text
from tests.detectors import save_detector

demo = pytest.mark.skipif(
    not (DEMO_BUNDLE / "manifest.json").exists(), reason=f"no demo bundle in {DEMO_BUNDLE}: build it with var-export"
)
FOX, NONE = 48, 171


def smooth(width, height, seed=0):
    """A picture (height, width, 3) uint8 that no two corners of which are alike."""
    few = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def edit(tmp_path, monkeypatch, capsys):
    """Run `var-run edit` in a folder with some pictures; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth(64, 64)).save("square.png")
    Image.fromarray(smooth(120, 80)).save("wide.png")
    mask = np.zeros((80, 120), np.uint8)
    mask[40:, 40:80] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask * 0).save("black.png")
    Image.fromarray(mask[:, :80]).save("square-mask.png")
    found = {"name": "dog", "class": 16, "confidence": 0.9, "box": {"x1": 40.0, "y1": 40.0, "x2": 80.0, "y2": 80.0}}
    Path("boxes.json").write_text(json.dumps([found, {**found, "name": "cat", "confidence": 0.3}]))

    def run(*args):
        code = main(["edit", *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.slow
@demo
def test_what_is_kept_is_the_original_and_what_is_redrawn_the_models(edit):
    code, out, err = edit("square.png", "--box", "0,0.5,1,1", "--class", "fox", "--seed", 3)
    assert (code, out) == (0, "square-edited.png\n")
    assert "square.png has 64 x 64 pixels: edited at 64 x 64; 32 of 64 cells are redrawn" in err
    picture, edited = load_picture(Path("square.png")), load_picture(Path("square-edited.png"))
    grid = np.zeros((8, 8), bool)
    grid[4:] = True
    with Pipeline.load() as pipeline:
        wanted = pipeline.edit(picture, grid, FOX, seeds=3).images[0]
    np.testing.assert_array_equal(edited[32:], wanted[32:])
    np.testing.assert_array_equal(edited[:28], picture[:28])

    assert (
        edit("square.png", "--box", "0,0.5,1,1", "--class", "fox", "--seed", 3, "--no-composite", "--out", "p.png")[0]
        == 0
    )
    np.testing.assert_array_equal(load_picture(Path("p.png")), wanted)
    text = read_picture_text(Path("p.png"))
    assert (text["class"], text["edited"], text["composite"]) == (str(FOX), "square.png", "False")


@pytest.mark.slow
@demo
def test_boxes_masks_and_detections_of_the_same_place_are_the_same_edit(edit):
    for number, how in enumerate(
        (["--box", "40,40,80,80"], ["--mask", "mask.png"], ["--boxes", "boxes.json", "--object", "dog"])
    ):
        assert edit("wide.png", *how, "--out", f"{number}.png")[0] == 0
    first, *others = (load_picture(Path(f"{number}.png")) for number in range(3))
    assert first.shape == (80, 120, 3)
    assert all(np.array_equal(first, other) for other in others)
    assert (first[:, :20] == load_picture(Path("wide.png"))[:, :20]).all()


@demo
def test_an_outline_is_redrawn_and_not_its_box(edit):
    """A diagonal half of the picture, as the outline of a segmentation has it and as YOLO's labels do."""
    triangle = {"x": [0.0, 64.0, 0.0], "y": [0.0, 64.0, 64.0]}
    found = {"name": "dog", "class": 16, "box": {"x1": 0, "y1": 0, "x2": 64, "y2": 64}, "segments": triangle}
    Path("outline.json").write_text(json.dumps([{"path": "x/square.png", "boxes": [found]}]))
    Path("square.txt").write_text("16 0 0 1 1 0 1.0\n")
    for place in ("outline.json", "square.txt", "."):
        code, _, err = edit("square.png", "--boxes", place, "--object", "16", "--out", "o.png", "--overwrite")
        assert code == 0
        assert "; 1 object, 36 of 64 cells are redrawn" in err
        assert (load_picture(Path("o.png")) == load_picture(Path("square.png")))[:28, 36:].all()


@demo
def test_what_is_redrawn_grows_by_pixels_or_by_a_fraction(edit):
    for number, grow in enumerate((16, 0.25)):
        said = edit("square.png", "--box", "0,0,16,16", "--grow", grow, "--out", f"{number}.png")[2]
        assert "; 16 of 64 cells are redrawn" in said
    assert (load_picture(Path("0.png")) == load_picture(Path("1.png"))).all()


def white(width, height, *box):
    """A smooth picture, dark but for a white box."""
    picture = smooth(width, height) // 4
    for x0, y0, x1, y1 in box:
        picture[y0:y1, x0:x1] = 255
    return Image.fromarray(picture)


@demo
@pytest.mark.parametrize("form", ["end to end", "raw"])
def test_what_a_detector_finds_is_redrawn(edit, form):
    white(120, 80, (40, 40, 80, 80)).save("white.png")
    save_detector("found.onnx", form)
    code, out, err = edit("white.png", "--detect", "found.onnx", "--object", "CAT", "--class", "fox", "--json")
    assert code == 0
    assert "; 1 object, 16 of 64 cells are redrawn" in err
    document = json.loads(out)
    (found,) = document["objects"]
    assert (found["name"], found["score"]) == ("cat", pytest.approx(0.7))
    assert found["box"] == pytest.approx([40, 40, 80, 80], abs=1.3)
    assert edit("white.png", "--box", "40,40,80,80", "--class", "fox", "--out", "box.png")[0] == 0
    np.testing.assert_array_equal(load_picture(Path("white-edited.png")), load_picture(Path("box.png")))
    assert "--detect found.onnx --object CAT" in read_picture_text(Path("white-edited.png"))["area"]


@demo
def test_several_pictures_go_to_a_folder_under_their_names(edit):
    Path("in").mkdir()
    Path("in/notes.md").write_text("no picture")
    Path("in/.hidden.png").write_text("no picture")
    white(120, 80, (40, 40, 80, 80)).save("in/b.jpg", quality=95)
    white(64, 64, (0, 0, 32, 32)).save("in/a.png")
    white(64, 64).save("in/none.png")
    save_detector("found.onnx", "end to end", masks=True)
    args = ("in", "--detect", "found.onnx", "--object", "dog", "--class", "fox")
    code, out, err = edit(*args)
    assert (code, out.splitlines()) == (0, ["edited/a.png", "edited/b.png"])
    assert "none.png is left out: no detection is left of found.onnx: it has 0 of none.png" in err
    assert err.count("seed 0, as always") == 1
    before = {path: path.stat().st_mtime_ns for path in Path("edited").iterdir()}
    assert before.keys() == {Path("edited/a.png"), Path("edited/b.png")}
    assert edit("in/a.png", *args[1:], "--out", "one.png")[0] == 0
    np.testing.assert_array_equal(load_picture(Path("edited/a.png")), load_picture(Path("one.png")))

    white(64, 64, (32, 32, 64, 64)).save("in/c.png")  # a picture more: what was made stays
    code, out, err = edit(*args)
    assert (code, out.splitlines()) == (0, ["edited/a.png", "edited/b.png", "edited/c.png"])
    assert err.count("nothing to make") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


@demo
def test_places_for_several_pictures(edit):
    args = ("square.png", "wide.png", "--box", "0.4,0.4,0.6,0.9")
    assert edit(*args, "--out", "to/{name}.webp", "--save-tokens", "{name}.npz")[0] == 0
    assert names("to") == ["square.webp", "wide.webp"]
    assert {"square.npz", "wide.npz"} <= set(names())
    code, out, _ = edit(*args, "--out", "both", "-n", 2, "--json")
    assert code == 0
    assert [each["settings"]["edited"] for each in json.loads(out)["pictures"]] == ["square.png", "wide.png"]
    assert names("both/wide") == ["00000-none-0.png", "00001-none-1.png", "job.json"]
    assert edit(*args, "--out", "{name}/{seed}.png", "-n", 2)[0] == 0
    assert names("wide") == ["0.png", "1.png"]
    for option in (["--out", "a.png"], ["--out", "{seed}.png"], ["--save-tokens", "t.npz"]):
        assert "is for 2 pictures: put {name} into it" in error_of(edit(*args, *option))
    assert edit(*args, "--out", "last", "--save-tokens", "{name}/t.npz")[0] == 0
    assert [names(name) for name in ("square", "wide")] == [["0.png", "1.png", "t.npz"]] * 2
    Path("other").mkdir()
    Path("other/wide.jpg").write_bytes(Path("wide.png").read_bytes())
    several = ("wide.png", "other/wide.jpg", "--box", "0.4,0.4,0.6,0.9", "--out", "same")
    assert "--overwrite would keep one of the pictures called wide" in error_of(edit(*several, "--overwrite"))
    assert edit(*several)[1].splitlines() == ["same/wide.png", "same/wide-2.png"]


@demo
def test_a_place_that_is_taken_keeps_no_other_picture_from_it(edit):
    args = ("square.png", "wide.png", "--box", "0.4,0.4,0.6,0.9", "--out", "{name}-new.png")
    Path("square-new.png").write_text("mine")
    code, out, err = edit(*args)
    assert (code, out.splitlines()) == (2, ["wide-new.png"])
    assert "square.png is left out: square-new.png exists and is not what this command makes" in err
    assert Path("square-new.png").read_text() == "mine"


@demo
def test_boxes_and_masks_for_several_pictures(edit):
    Path("masks").mkdir()
    for name in ("square", "wide"):
        picture = Image.open(f"{name}.png")
        mask = Image.new("L", picture.size)
        mask.paste(255, (0, 0, picture.width // 2, picture.height // 2))
        mask.save(f"masks/{name}.png")
    found = {"name": "dog", "class": 16, "box": {"x1": 0, "y1": 0, "x2": 32, "y2": 32}}
    Path("nested.json").write_text(json.dumps([[found], [{**found, "box": {"x1": 0, "y1": 0, "x2": 60, "y2": 40}}]]))
    for number, how in enumerate((["--mask", "masks"], ["--boxes", "nested.json"])):
        code, _, err = edit("square.png", "wide.png", *how, "--fit", "stretch", "--out", f"{number}/")
        assert (code, err.count("16 of 64 cells are redrawn")) == (0, 2)
    for name in ("square.png", "wide.png"):
        np.testing.assert_array_equal(load_picture(Path("0", name)), load_picture(Path("1", name)))
    code, _, err = edit("square.png", "mask.png", "--mask", "masks", "--out", "2")
    assert (code, names("2")) == (2, ["square.png"])
    assert "mask.png is left out: masks has no mask that is called as mask.png" in err


@demo
def test_a_picture_that_cannot_be_edited_keeps_no_other_from_it(edit):
    Path("bad.png").write_text("no picture")
    code, out, err = edit("bad.png", "square.png", "--box", "0,0,.5,.5")
    assert (code, out) == (2, "edited/square.png\n")
    assert err.splitlines()[-1].startswith("Error: 1 of the 2 pictures could not be edited; the first: cannot read bad")
    code, out, err = edit("bad.png", "none.png", "--box", "0,0,.5,.5")
    assert (code, out) == (2, "")
    assert "Error: none of the 2 pictures could be edited" in err.splitlines()[-1]
    assert "no class is called" in error_of(edit("bad.png", "square.png", "--box", "0,0,.5,.5", "--class", "dragonfly"))


@demo
def test_outpainting_keeps_the_box(edit):
    assert edit("wide.png", "--box", "40,20,80,60", "--outpaint", "--fit", "stretch")[0] == 0
    picture, edited = load_picture(Path("wide.png")), load_picture(Path("wide-edited.png"))
    np.testing.assert_array_equal(edited[30:50, 53:67], picture[30:50, 53:67])  # what is blended lies in the box now
    assert (edited[:10] != picture[:10]).mean() > 0.9


@pytest.mark.slow
@demo
def test_variants_of_several_classes_with_all_that_goes_with_a_job(edit):
    args = ["wide.png", "--box", "40,40,80,80", "--class", "fox,none", "--count", 2, "--batch", 3]
    more = ["--preview", "--grid", "--save-tokens", "t.npz"]
    code, out, _ = edit(*args, *more, "--json")
    document = json.loads(out)
    assert (code, document["images_made"], document["redrawn_cells"]) == (0, 4, 16)
    stems = ["00000-fox-0", "00001-none-1", "00002-fox-2", "00003-none-3"]
    pictures = [f"{stem}{end}.png" for stem in stems for end in ("", "-preview")]
    assert names("wide-edited") == sorted([*pictures, "grid.png", "job.json"])
    assert load_picture(Path("wide-edited/00000-fox-0-preview.png")).shape == (68, 7 * 66 + 2, 3)
    assert load_picture(Path("wide-edited/grid.png")).shape == (2 * 82 + 2, 2 * 122 + 2, 3)
    with np.load("t.npz") as saved, Pipeline.load() as pipeline:
        assert saved["classes"].tolist() == [FOX, NONE, FOX, NONE]
        own = pipeline.encode(
            np.asarray(Image.fromarray(load_picture(Path("wide.png"))[:, 20:100]).resize((64, 64), 1))[None]
        )
        last = (saved["tokens"] == own)[:, -64:].reshape(4, 8, 8)
    assert last[:, :4].all()  # kept
    assert not last[:, 4:, 2:6].all()

    assert "nothing to make: all 4 images are there" in edit(*args, *more)[2]
    other = edit(*args, "--fit", "pad")
    assert (other[0], other[1].splitlines()[0]) == (0, "wide-edited-2/00000-fox-0.png")


@demo
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("none.png --box 0,0,1,.5", "there is no such file"),
        ("wide.png --box 0,0,1", "not four numbers"),
        ("wide.png --box 200,0,300,80", "outside of the picture, which has 120 x 80"),
        ("wide.png --box 0,0,10,80", "--fit pad"),
        ("wide.png --box 60,40,61,41", "the area is empty, or too small for the model's 8 x 8 cells"),
        ("wide.png --box 0,0,1,1", "the area is the whole picture"),
        ("wide.png --box 0,0,1,1 --outpaint", "the area is the whole picture"),
        ("wide.png --mask black.png", "the area is empty"),
        ("wide.png --mask black.png --outpaint", "the area is empty"),
        ("wide.png --mask square-mask.png", "the mask has 80 x 80 pixels and the picture 120 x 80"),
        ("wide.png --mask none.png", "there is no such file"),
        ("wide.png --boxes boxes.json --score 0.95", "no detection is left"),
        ("wide.png --boxes boxes.json --object bird", "no detection is left"),
        ("wide.png --boxes mask.png", "no JSON file"),
        ("wide.png --detect none.onnx", "there is no such file"),
        ("wide.png --detect yolo.pt", "export it with yolo export format=onnx"),
        ("wide.png --box 0,0,1,.5 --class dragonfly", "no class is called"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(edit, args, says):
    before = names()
    assert says in error_of(edit(*args.split()))
    assert names() == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("edit a.png", "--box X0,Y0,X1,Y1, --mask FILE or --boxes FILE"),
        ("edit a.png --outpaint", "--box X0,Y0,X1,Y1, --mask FILE or --boxes FILE"),
        ("edit a.png --box 0,0,1,.5 --score 0.5", "--boxes FILE"),
        ("edit a.png --boxes b.json --score 5", "--score"),
        ("edit a.png --box 0,0,1,.5 --object dog", "--detect MODEL.onnx"),
        ("edit a.png --box 0,0,1,.5 --grow -1", "--grow"),
        ("edit --box 0,0,1,.5", "PICTURE"),
        ("edit a.png --box 0,0,1,.5 --fit sideways", "--fit"),
        ("edit a.png --box 0,0,1,.5 --form fused --preview", "--preview"),
    ],
)
def test_options_that_make_no_sense(call, pipeline, args, says):
    assert says in error_of(call(*args.split()))
    assert names() == []
    assert not pipeline.loads


@pytest.mark.slow
@demo
def test_the_fused_form_edits_too(edit, demo_both_bundle):
    assert edit("wide.png", "--box", "40,40,80,80", "--bundle", demo_both_bundle, "--form", "fused")[0] == 0
    assert edit("wide.png", "--box", "40,40,80,80", "--bundle", demo_both_bundle, "--out", "s.png")[0] == 0
    one, other = (load_picture(Path(name)).astype(int) for name in ("s.png", "wide-edited.png"))
    assert np.abs(one - other).max() <= 1
    assert (one != other).mean() < 0.01
