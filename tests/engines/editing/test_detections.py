"""Files of detections, as detectors and data sets have them."""

import json
from pathlib import Path

import numpy as np
import pytest

from engines.editing.detections import Detections
from engines.editing.found import NothingFoundError
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
def read_all(tmp_path):
    """Everything about the objects that a file of this content has of one picture."""

    def run(value, picture="a.jpg", size=(100, 80), name="boxes.json", **wanted):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return Detections(path).find(Path("photos") / picture, *size, **wanted)

    return run


@pytest.fixture
def read(read_all):
    """The boxes of what was found, in order."""

    def run(value, picture="a.jpg", size=(100, 80), **wanted):
        return [item.box for item in read_all(value, picture, size, **wanted)]

    return run


def test_ultralytics(read):
    assert read(ULTRALYTICS) == [DOG, (0, 0, 30, 30)]
    assert read(ULTRALYTICS, objects=["Dog"]) == read(ULTRALYTICS, objects=["16"]) == [DOG]
    assert read(ULTRALYTICS, score=0.5) == [DOG]
    assert read(TURNED) == [(10, 10, 50, 50)]


def test_ultralytics_with_normalised_coordinates(read):
    scaled = [
        {**item, "box": {k: v / (100 if k[0] == "x" else 80) for k, v in item["box"].items()}} for item in ULTRALYTICS
    ]
    assert read(scaled, objects=["dog"]) == [pytest.approx(DOG)]


def test_coco_results(read):
    assert read(COCO, "000000000139.jpg") == [DOG, (0, 0, 20, 20)]
    assert read(COCO, "139.png", objects=["18"]) == [DOG]
    assert read(COCO[:2], "photo.jpg", score=0.5) == [DOG]  # of one picture alone: its number says nothing


def test_coco_data_set(read):
    assert read(DATA_SET, "a.jpg", objects=["DOG"]) == [DOG]
    assert read(DATA_SET, "b.jpg") == [(0, 0, 20, 20)]
    with pytest.raises(UsageError, match=r"about a picture of 100 x 80 pixels, and photos/a\.jpg has 80 x 100"):
        read(DATA_SET, "a.jpg", (80, 100))


@pytest.mark.parametrize(
    ("value", "wanted", "says"),
    [
        (ULTRALYTICS, {"objects": ["bird"]}, r"no detection is left .* \(cat, dog; scores up to 0.9\)"),
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


@pytest.mark.parametrize(
    "value",
    [
        [{"path": "/data/a.jpg", "boxes": ULTRALYTICS}, {"path": "/data/b.jpg", "boxes": []}],
        [{"path": "C:\\data\\a.jpg", "results": ULTRALYTICS}, {"path": "b.jpg", "results": ULTRALYTICS[:1]}],
        [
            {
                "file_name": "a.png",
                "boxes": [[10, 20, 50, 60, 0.9, 16], [0, 0, 30, 30, 1, 0.4, 15]],
                "names": {"16": "Dog"},
            },
            {"file_name": "b.png", "boxes": []},
        ],
        {"path": "a.jpg", "boxes": {"xyxy": [[10, 20, 50, 60], [0, 0, 30, 30]], "conf": [0.9, 0.4], "cls": [16, 15]}},
        {"images": [{"shape": [80, 100], "results": ULTRALYTICS, "speed": {}}], "metadata": {}},
        [ULTRALYTICS],
        [[10, 20, 50, 60, 0.9, 16], [0, 0, 30, 30, 0.4, 15]],
    ],
)
def test_ultralytics_of_several_pictures(read, value):
    assert read(value) == [DOG, (0, 0, 30, 30)]
    assert read(value, score=0.5) == read(value, objects=["16"]) == [DOG]


def test_names_of_rows(read_all):
    rows = [[10, 20, 50, 60, 0.9, 1]]
    (item,) = read_all([{"path": "a.jpg", "boxes": rows, "names": ["cat", "dog"]}], objects=["dog"])
    assert (item.name, item.number, item.score) == ("dog", "1", 0.9)
    assert [item.name for item in read_all(rows)] == ["class 1"]


def test_lists_without_names_go_to_the_pictures_in_order(read):
    nested = [ULTRALYTICS[:1], [], ULTRALYTICS[1:]]
    assert read(nested, place=(0, 3)) == [DOG]
    assert read(nested, place=(2, 3)) == [(0, 0, 30, 30)]
    with pytest.raises(NothingFoundError, match=r"it has 0 of a\.jpg"):
        read(nested, place=(1, 3))
    for place in ((0, 1), (0, 2)):
        with pytest.raises(NothingFoundError, match=r"several pictures, and none of a\.jpg"):
            read(nested, place=place)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([{"path": "b.jpg", "boxes": ULTRALYTICS}], "boxes of another picture, and none of a.jpg"),
        ({**DATA_SET, "images": DATA_SET["images"][1:]}, "boxes of several pictures, and none of a.jpg"),
        ([{"path": f"{name}/a.jpg", "boxes": []} for name in "xy"], "2 pictures called a.jpg"),
        ({"images": [{"shape": [100, 80], "results": ULTRALYTICS}]}, "a picture of 80 x 100 pixels"),
        ([{"path": "a.jpg", "boxes": [[1, 2, 3]]}], "no boxes in a known format"),
        ([{"path": "a.jpg", "boxes": [[1, 2, 3, 4, 0.5]]}], "no boxes in a known format"),
        ([{"path": "a.jpg", "boxes": {"xyxy": [[1, 2, 3, 4]], "conf": [0.5, 0.6]}}], "no boxes in a known format"),
        ([{**ULTRALYTICS[0], "segments": {"x": [1, 2, 3], "y": [1, 2]}}], "no boxes in a known format"),
        ([{**ULTRALYTICS[0], "segments": {"x": [1, 2, 3], "y": [1, 2, float("inf")]}}], "no boxes in a known format"),
    ],
)
def test_boxes_of_other_pictures_and_odd_ones_are_refused(read, value, says):
    with pytest.raises(UsageError, match=says):
        read(value)


def test_a_picture_of_a_data_set_in_which_nothing_is(read):
    with pytest.raises(NothingFoundError, match=r"it has 0 of b\.jpg"):
        read({**DATA_SET, "annotations": DATA_SET["annotations"][:1]}, "b.jpg")


def painted(item, size=(100, 80)):
    mask = np.zeros(size[::-1], bool)
    item.paint(mask)
    return mask


def expected(rows, columns, size=(100, 80)):
    mask = np.zeros(size[::-1], bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def assert_inside(item, rows, columns):
    """But for a pixel along the edge, where Pillow rounds."""
    around = expected((rows[0] - 1, rows[1] + 1), (columns[0] - 1, columns[1] + 1))
    assert not (painted(item) & ~around).any()
    assert painted(item)[rows[0] : rows[1], columns[0] : columns[1]].all()


SQUARE = {"x": [20.0, 60.0, 60.0, 20.0], "y": [10.0, 10.0, 30.0, 30.0]}
BOXED = {"name": "dog", "class": 16, "box": {"x1": 20, "y1": 10, "x2": 60, "y2": 30}}


def test_ultralytics_outlines(read_all):
    (item,) = read_all([{**BOXED, "segments": SQUARE}])
    assert_inside(item, (10, 30), (20, 60))
    (scaled,) = read_all(
        [
            {
                **BOXED,
                "box": {"x1": 0.2, "y1": 0.125, "x2": 0.6, "y2": 0.375},
                "segments": {"x": [0.2, 0.6, 0.6, 0.2], "y": [0.125, 0.125, 0.375, 0.375]},
            }
        ]
    )
    np.testing.assert_array_equal(painted(scaled), painted(item))
    (turned,) = read_all(TURNED)
    assert painted(turned)[30, 30]
    assert not painted(turned)[12:18, 12:18].any()  # a corner of the box around it
    assert painted(turned).sum() == pytest.approx(40 * 40 / 2, rel=0.1)
    assert read_all([{**BOXED, "segments": {"x": [1.0, 2.0], "y": [1.0, 2.0]}}])[0].paint is None  # no area
    (beyond,) = read_all([{**BOXED, "segments": {"x": [-1e300, 1e300, 1e300, -1e300], "y": [-1e9, -1e9, 40.0, 40.0]}}])
    np.testing.assert_array_equal(painted(beyond)[:40], True)
    np.testing.assert_array_equal(painted(beyond)[41:], False)


def runs_of(mask):
    """As `pycocotools` counts them."""
    flat = np.concatenate([[False], mask.T.reshape(-1), [not mask[-1, -1]]])
    counts = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
    return counts


def compressed(counts):
    """As `rleToString` of `pycocotools` writes them."""
    text = ""
    for index, value in enumerate(counts):
        x = value - counts[index - 2] if index > 2 else value
        more = True
        while more:
            bits = x & 0x1F
            x >>= 5
            more = x != (-1 if bits & 0x10 else 0)
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


def test_coco_outlines(read_all):
    shape = np.random.default_rng(0).random((80, 100)) < 0.3
    shape[:, 40:] = False
    counts = runs_of(shape)
    result = {"image_id": 1, "category_id": 18, "bbox": [20, 10, 40, 20]}
    for runs in (counts, compressed(counts)):
        (item,) = read_all([{**result, "segmentation": {"counts": runs, "size": [80, 100]}}])
        np.testing.assert_array_equal(painted(item), shape)
    polygons = [[20, 10, 40, 10, 40, 30, 20, 30], [40, 10, 60, 10, 60, 30, 40, 30]]
    (item,) = read_all({**DATA_SET, "annotations": [{**result, "segmentation": polygons}]}, objects=["dog"])
    assert_inside(item, (10, 30), (20, 60))
    assert read_all([{**result, "segmentation": []}])[0].paint is None


def test_pycocotools_own_text(read_all):
    """`mask.encode` of a 3 x 4 picture whose second column is set."""
    result = {"image_id": 1, "category_id": 18, "bbox": [1, 0, 1, 3]}
    (item,) = read_all([{**result, "segmentation": {"counts": "336", "size": [3, 4]}}], size=(4, 3))
    np.testing.assert_array_equal(painted(item, (4, 3)), expected((0, 3), (1, 2), (4, 3)))


@pytest.mark.parametrize(
    "outline",
    [
        {"counts": [8000], "size": [100, 80]},
        {"counts": [7999], "size": [80, 100]},
        {"counts": [-1, 8001], "size": [80, 100]},
        {"counts": [10**15], "size": [80, 100]},
        {"counts": "o" * 100, "size": [80, 100]},
        {"counts": ["a"], "size": [80, 100]},
        [["a"] * 6],
        [[1, 2, 3]],
    ],
)
def test_an_outline_that_is_none_is_one_line(read_all, outline):
    with pytest.raises(UsageError, match=r"boxes\.json"):
        read_all([{"image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4], "segmentation": outline}])


def test_yolo(read_all):
    text = "16 0.3 0.5 0.4 0.5\n\n15 0.15 0.1875 0.3 0.375 0.4\n"
    dog, cat = read_all(text, name="a.txt")
    assert dog.box == pytest.approx(DOG)
    assert cat.box == pytest.approx((0, 0, 30, 30))
    assert (dog.number, dog.score, cat.score, dog.name) == ("16", 1, 0.4, "class 16")
    assert [item.number for item in read_all(text, name="other.txt", objects=["15"])] == ["15"]
    (tracked,) = read_all("16 0.3 0.5 0.4 0.5 0.7 3", name="a.txt")
    assert (tracked.box, tracked.score) == (dog.box, 0.7)
    (tracked,) = read_all("16 0.3 0.5 0.4 0.5 3", name="a.txt")
    assert (tracked.box, tracked.score) == (dog.box, 1)


def test_outlines_of_yolo(read_all):
    square, scored, triangle = read_all(
        "0 0.2 0.125 0.6 0.125 0.6 0.375 0.2 0.375\n1 0.2 0.125 0.6 0.125 0.6 0.375 0.2 0.375 0.8\n2 0 0 1 0 0.5 1.0",
        name="a.txt",
    )
    assert square.box == pytest.approx((20, 10, 60, 30))
    assert_inside(square, (10, 30), (20, 60))
    assert (square.score, scored.score, scored.box) == (1, 0.8, square.box)
    assert triangle.box == (0, 0, 100, 80)
    assert painted(triangle).mean() == pytest.approx(0.5, abs=0.02)


def test_a_folder_of_labels(tmp_path, read_all):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("1 0.3 0.5 0.4 0.5\n")
    (labels / "b.json").write_text(json.dumps(ULTRALYTICS))
    (labels / "classes.txt").write_text("cat\ndog\n")
    (item,) = Detections(labels).find(Path("photos/a.jpg"), 100, 80, objects=["dog"])
    assert item.box == pytest.approx(DOG)
    assert len(Detections(labels).find(Path("b.jpg"), 100, 80)) == 2
    with pytest.raises(NothingFoundError, match=r"labels has no c\.txt and no c\.json for c\.jpg"):
        Detections(labels).find(Path("c.jpg"), 100, 80)


@pytest.mark.parametrize(
    "text",
    [
        "dog 0.1 0.1 0.1 0.1",
        "0 0.1",
        "0 10 20 30 40",
        "0 0.1 0.1 nan 0.1",
        "0 0.1 0.1 0.1 0.1 0.1 0.1 0.1 x",
        "0",
        "\xff",
    ],
)
def test_what_is_no_label_of_yolo_is_one_line(read_all, text):
    with pytest.raises(UsageError, match=r"^cannot read .*a\.txt: it is no label file of YOLO"):
        read_all(text, name="a.txt")


ODD = (None, True, -1, 1e308, float("nan"), float("inf"), "", "336", [], {}, [[]], 10**400, [1, 2], {"x": [1]}, "\0")


@pytest.mark.parametrize("seed", range(20))
def test_odd_documents_are_read_or_refused(read_all, seed):
    """Whatever stands where something else should: one error of ours, or objects that can be painted."""
    outlined = {"image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4]}
    honest = [
        [
            {"path": "a.jpg", "boxes": ULTRALYTICS},
            {"path": "b.jpg", "boxes": [[1, 2, 3, 4, 0.5, 1]], "names": ["x", "y"]},
        ],
        {"path": "a.jpg", "boxes": {"xyxy": [[1, 2, 3, 4]], "conf": [0.5], "cls": [1]}},
        {"images": [{"shape": [80, 100], "results": [{**BOXED, "segments": SQUARE}]}]},
        [{**outlined, "segmentation": {"counts": "336", "size": [3, 4]}}],
        {**DATA_SET, "annotations": [{**outlined, "segmentation": [[1, 2, 3, 4, 5, 6]]}]},
        [TURNED, COCO],
    ]
    random = np.random.default_rng(seed)
    for document in honest * 5:
        document = json.loads(json.dumps(document))
        node, place = document, None
        while isinstance(node, list | dict) and node and random.random() < 0.85:
            place = (
                node,
                list(node)[random.integers(len(node))] if isinstance(node, dict) else random.integers(len(node)),
            )
            node = node[place[1]]
        if place is not None:
            place[0][place[1]] = ODD[random.integers(len(ODD))]
        try:
            for item in read_all(document):
                if item.paint is not None:
                    painted(item)
        except UsageError:
            continue


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        Detections(tmp_path / "none.json")
