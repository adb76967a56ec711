"""Detectors in ONNX files, against models made by hand whose findings are known."""

import numpy as np
import pytest

from engines.editing.detectors import Detector
from engines.editing.found import NothingFoundError
from engines.errors import BackendError, UsageError
from tests.detectors import FAR, save_detector

FORMS = ("end to end", "raw")
WHITE = (60, 20, 120, 50)


@pytest.fixture
def detector(tmp_path):
    return lambda form, **more: Detector(save_detector(tmp_path / "white.onnx", form, **more))


def photo(width=192, height=128, box=WHITE):
    """Grey, with a white box."""
    picture = np.full((height, width, 3), 50, np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    return picture


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("half", [False, True])
def test_what_is_found(detector, form, half):
    found = detector(form, half=half).find(photo(), "a.jpg")  # half the size fits
    assert [(item.name, item.number) for item in found] == [("dog", "1"), ("cat", "0"), ("dog", "1")]
    assert [item.score for item in found] == pytest.approx([0.9, 0.7, 0.5], abs=1e-3)
    assert found[0].box == found[1].box == pytest.approx(WHITE, abs=0.1)
    assert found[2].box == pytest.approx([2 * side for side in FAR], abs=0.1)
    assert all(item.paint is None for item in found)


@pytest.mark.parametrize("form", FORMS)
def test_of_what_is_found_only_what_is_wanted(detector, form):
    model = detector(form)
    assert [item.number for item in model.find(photo(), "a.jpg", objects=["Cat"])] == ["0"]
    assert [item.number for item in model.find(photo(), "a.jpg", objects=["1"], score=0.6)] == ["1"]
    low = model.find(photo(), "a.jpg", score=0.05)
    assert [item.name for item in low] == ["dog", "cat", "dog", "cat"]
    with pytest.raises(NothingFoundError, match=r"white\.onnx: it has 4 of a\.jpg \(cat, dog; scores up to 0\.9\)"):
        model.find(photo(), "a.jpg", objects=["it's"])
    with pytest.raises(NothingFoundError, match=r"it has 4 of a\.jpg .*scores up to 0\.9\)"):
        model.find(photo(), "a.jpg", score=0.95)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("width", "height"), [(300, 90), (90, 300), (96, 64), (50, 33), (1000, 999)])
def test_pictures_of_any_proportions(detector, form, dynamic, width, height):
    """Grey lies around them, above and below or on both sides, and never counts as the picture."""
    box = (width // 5, height // 4, width // 2, height * 3 // 4)
    found = detector(form, dynamic=dynamic).find(photo(width, height, box), "a.jpg", objects=["cat"])
    assert found[0].box == pytest.approx(box, abs=1.01 * max(width / 96, height / 64))


def test_a_model_of_any_size_gets_less_grey(detector):
    """The copy is 96 x 29, and a multiple of the stride is 32 high."""
    fixed, free = (detector("end to end", dynamic=dynamic) for dynamic in (False, True))
    wide = photo(300, 90, (0, 0, 300, 90))
    boxes = [model.find(wide, "a.jpg", objects=["dog"])[1].box for model in (fixed, free)]
    scale = 300 / 96
    assert boxes[0] == pytest.approx((8 * scale, 0, 24 * scale, (20 - 17) * scale), abs=0.5)
    assert boxes[1] == pytest.approx((8 * scale, (4 - 1) * scale, 24 * scale, (20 - 1) * scale), abs=0.5)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_segments_gives_outlines(detector, form):
    """Of an L, what is missing of its box is not painted."""
    picture = photo()
    picture[20:34, 92:120] = 50
    found = detector(form, masks=True).find(picture, "a.jpg")
    assert [item.number for item in found] == ["1", "0"]  # where nothing is white there is no outline, and no object
    mask = np.zeros((128, 192), bool)
    found[0].paint(mask)
    assert (mask == (picture[..., 0] == 255)).mean() > 0.985
    assert not mask[20:30, 96:].any()
    with pytest.raises(NothingFoundError, match=r"it has 0 of a\.jpg"):
        detector(form, masks=True).find(photo(box=(0, 0, 0, 0)), "a.jpg")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"names": None}, "have no names of classes"),
        ({"names": "{}"}, "have no names of classes"),
        ({"names": "{0: 'cat'"}, "as Python writes them"),
        ({"names": "{0: open('x')}"}, "it is no detector of Ultralytics"),
        ({"names": "3"}, "it is no detector of Ultralytics"),
        ({"task": "pose"}, "its task is pose, not detect or segment"),
        ({"stride": "x"}, "it is no detector of Ultralytics"),
        ({"dynamic": True, "imgsz": "[0, 64]"}, "its pictures have 64 x 0 pixels"),
        ({"dynamic": True, "imgsz": "[999999, 999999]"}, "pixels"),
    ],
)
def test_a_file_without_what_ultralytics_writes_is_one_line_with_the_remedy(detector, more, says):
    with pytest.raises(UsageError, match=r"white\.onnx: .*; export it again with Ultralytics: yolo export") as caught:
        detector("raw", **more)
    assert says in str(caught.value)


def test_an_output_of_neither_form_is_one_line(detector):
    with pytest.raises(UsageError, match=r"its output is \(1, 7, 5\), and for 80 classes \(1, n, 6\) or \(1, 84, n\)"):
        detector("raw", names=repr({k: str(k) for k in range(80)})).find(photo(), "a.jpg")


def test_other_files_are_one_line(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no model")
    for name, kind, says in (
        ("yolo26n.pt", UsageError, "export it with yolo export format=onnx model=.*yolo26n.pt"),
        ("none.onnx", UsageError, "there is no such file"),
        ("a.onnx", BackendError, "while loading"),
    ):
        with pytest.raises(kind, match=says):
            Detector(tmp_path / name)


def test_a_name_that_no_class_has_is_refused_with_near_ones(detector):
    model = detector("raw")
    model.check_names(["DOG ", "2", "it's"])
    with pytest.raises(UsageError, match=r"white\.onnx finds nothing that is called 'dgo'; it finds dog$"):
        model.check_names(["cat", "dgo"])
    with pytest.raises(UsageError, match=r"'zebra'; it finds cat, dog, it's$"):
        model.check_names(["zebra"])
