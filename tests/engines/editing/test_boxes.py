"""Boxes as typed, and as detectors write them."""

import json
from pathlib import Path

import pytest

from engines.editing.boxes import parse_box, read_boxes
from engines.errors import UsageError

ULTRALYTICS = [
    {"name": "dog", "class": 16, "confidence": 0.9, "box": {"x1": 10.0, "y1": 20.0, "x2": 50.0, "y2": 60.0}},
    {
        "name": "cat", "class": 15, "confidence": 0.4, "track_id": 3,
        "box": {"x1": -2.5, "y1": 0.0, "x2": 30.0, "y2": 30.0},
        "segments": {"x": [0.0, 30.0], "y": [0.0, 30.0]},
    },
]  # fmt: skip
TURNED = [
    {
        "name": "ship", "class": 1, "confidence": 0.8,
        "box": {"x1": 30.0, "y1": 10.0, "x2": 50.0, "y2": 30.0, "x3": 30.0, "y3": 50.0, "x4": 10.0, "y4": 30.0},
    }
]  # fmt: skip
COCO = [
    {"image_id": 139, "category_id": 18, "bbox": [10, 20, 40, 40], "score": 0.7},
    {"image_id": 139, "category_id": 17, "bbox": [0, 0, 20, 20], "score": 0.2},
    {"image_id": 285, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.9},
]
DATA_SET = {
    "images": [{"id": 1, "file_name": "train/a.jpg", "width": 100, "height": 80}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    "annotations": [
        {"image_id": 1, "category_id": 18, "bbox": [10, 20, 40, 40], "iscrowd": 0},
        {"image_id": 2, "category_id": 17, "bbox": [0, 0, 20, 20]},
    ],
}
DOG = (10, 20, 50, 60)


@pytest.fixture
def read(tmp_path):
    def run(value, picture="a.jpg", size=(100, 80), **wanted):
        path = tmp_path / "boxes.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return read_boxes(path, Path("photos") / picture, *size, **wanted)

    return run


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("10,20,50,60", (10, 20, 50, 60)),
        (" 10, 20,50 ,60.5", (10, 20, 50, 60.5)),
        ("0,0.25,0.5,1", (0, 20, 50, 80)),
        ("0,0,1,1", (0, 0, 100, 80)),
        ("-10,-10,5,200", (0, 0, 5, 80)),
    ],
)
def test_a_box_in_pixels_or_fractions(text, box):
    assert parse_box(text, 100, 80) == box


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2,3", "not four numbers"),
        ("a,b,c,d", "not four numbers"),
        ("", "not four numbers"),
        ("nan,0,1,1", "has no area"),
        ("0,0,inf,1", "has no area"),
        ("50,20,10,60", "x0 must be below x1"),
        ("10,60,50,60", "y0 below y1"),
        ("100,0,200,80", "outside of the picture, which has 100 x 80"),
        ("-5,-5,0,0", "outside"),
    ],
)
def test_a_box_that_is_none(text, says):
    with pytest.raises(UsageError, match=says):
        parse_box(text, 100, 80)


def test_ultralytics(read):
    assert read(ULTRALYTICS) == [DOG, (0, 0, 30, 30)]
    assert read(ULTRALYTICS, classes=["Dog"]) == read(ULTRALYTICS, classes=["16"]) == [DOG]
    assert read(ULTRALYTICS, score=0.5) == [DOG]
    assert read(TURNED) == [(10, 10, 50, 50)]


def test_ultralytics_with_normalised_coordinates(read):
    scaled = [
        {**item, "box": {k: v / (100 if k[0] == "x" else 80) for k, v in item["box"].items()}} for item in ULTRALYTICS
    ]
    assert read(scaled, classes=["dog"]) == [pytest.approx(DOG)]


def test_coco_results(read):
    assert read(COCO, "000000000139.jpg") == [DOG, (0, 0, 20, 20)]
    assert read(COCO, "139.png", classes=["18"]) == [DOG]
    assert read(COCO[:2], "photo.jpg", score=0.5) == [DOG]  # of one picture alone: its number says nothing


def test_coco_data_set(read):
    assert read(DATA_SET, "a.jpg", classes=["DOG"]) == [DOG]
    assert read(DATA_SET, "b.jpg") == [(0, 0, 20, 20)]
    with pytest.raises(UsageError, match=r"about a picture of 100 x 80 pixels, and photos/a\.jpg has 80 x 100"):
        read(DATA_SET, "a.jpg", (80, 100))


@pytest.mark.parametrize(
    ("value", "wanted", "says"),
    [
        (ULTRALYTICS, {"classes": ["bird"]}, r"no detection is left .* \(cat, dog; scores up to 0.9\)"),
        (ULTRALYTICS, {"score": 0.95}, "no detection is left"),
        ([], {}, "no detection is left"),
        (COCO, {}, "several pictures, and none of a.jpg"),
        ({"images": []}, {}, "no boxes in a known format"),
        ([{"bbox": [1, 2, 3]}], {}, "no boxes in a known format"),
        ([1, 2], {}, "no boxes in a known format"),
        ("text", {}, "is no JSON file"),
        ([{**ULTRALYTICS[0], "box": {"x1": 200, "y1": 0, "x2": 300, "y2": 9}}], {}, "of dog in .* lies outside"),
    ],
)
def test_a_file_that_does_not_do(read, value, wanted, says):
    with pytest.raises(UsageError, match=says):
        read(value, **wanted)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_boxes(tmp_path / "none.json", Path("a.jpg"), 10, 10)
