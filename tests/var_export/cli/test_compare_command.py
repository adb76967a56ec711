"""`var-export compare`: two bundles, two backends, and a file in place of either."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from engines.bundle.bundle import Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import UsageError
from engines.fidelity.side_by_side import Drawing, compare
from tests.bundles import shared_bundle

FAST = ("--threads", 1)


@pytest.fixture(scope="module")
def sides():
    return shared_bundle("demo-fp32"), shared_bundle("demo-int8")


def test_two_bundles(call, sides):
    code, out, err = call("compare", *sides, "--class", "88,3", "--seed", 5, "--json", *FAST)
    assert code == 0, err
    document = json.loads(out)
    assert [side["precision"] for side in document["sides"]] == ["fp32", "int8"]
    assert [(pair["index"], pair["seed"]) for pair in document["images"]] == [(88, 5), (3, 6)]
    drawn = []
    for path in sides:
        with Pipeline.load(path, check="never", threads=1) as pipeline:
            drawn.append(pipeline.generate([88, 3], seeds=[5, 6]))
    offsets = [*Bundle.open(sides[0], verify=False).config.scale_offsets]
    for place, pair in enumerate(document["images"]):
        same = drawn[0].tokens[place] == drawn[1].tokens[place]
        assert pair["alike"] == pytest.approx(same.mean())
        first = np.flatnonzero(~same)
        assert pair["first"] == (None if not len(first) else max(k for k, at in enumerate(offsets) if at <= first[0]))


def test_histograms_of_tokens_from_16_images_on(call, tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for name, tokens in (("a", rng.integers(0, 9, (20, 5))), ("b", rng.integers(0, 3, (20, 5)))):
        facts = {"labels": ["x"] * 20, "seconds": [1.0] * 20, "precision": "fp32"}
        arrays = {"images": np.zeros((20, 4, 4, 3), np.uint8), "classes": np.zeros(20, np.int64)}
        files.append(tmp_path / f"{name}.npz")
        drawing(tokens=tokens, seeds=np.arange(20, dtype=np.uint64), facts=facts, **arrays).save(files[-1])
    code, out, err = call("compare", *files)
    assert code == 0, err
    assert re.search(r"^histograms of tokens: 0\.\d+ apart, beyond the noise of 0\.\d+$", out, re.M)
    document = json.loads(call("compare", *files, "--json")[1])
    assert [len(document["tokens"]), len(document["images"])] == [3, 20]
    assert document["images"][0]["psnr"] is None, "equal pixels"
    assert "within the noise" in call("compare", files[0], files[0])[1]


def test_a_bundle_beside_itself_is_the_same(call, sides):
    code, out, _ = call("compare", sides[0], sides[0], "--class", "88", *FAST)
    assert code == 0
    assert "100.00% of the tokens alike, 1 of 1 images with all; every pixel the same" in out
    assert "histograms" not in out, "of one image they would say nothing"


def test_a_file_stands_for_a_side(call, sides, tmp_path):
    file, sheet, page = tmp_path / "a.npz", tmp_path / "sheet.png", tmp_path / "page.html"
    code, out, err = call("compare", sides[0], "--save", file, "--class", "88,4", "--seed", 9, "--cfg", 2, *FAST)
    assert (code, out) == (0, ""), err
    kept = Drawing.load(file)
    assert (kept.seeds.tolist(), kept.facts["sampling"]["cfg"]) == ([9, 10], 2.0)
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    code, out, err = call("compare", file, sides[1], "--out", sheet, "--html", page, *FAST)
    assert code == 0, err
    assert re.search(r"88 .* 9 ", out)
    assert Image.open(sheet).size[0] > 2 * 64
    text = page.read_text()
    assert text.count("<figure>") == 6
    assert "demo-int8" in text
    code, out, _ = call("compare", file, file)
    assert code == 0
    assert "every pixel the same" in out


@pytest.mark.slow
def test_two_backends(call, sides):
    pytest.importorskip("openvino")
    code, out, err = call("compare", sides[0], sides[0], "--backend", "onnxruntime,openvino", "--class", "88", "--json")
    assert code == 0, err
    assert [side["runtime"]["backend"] for side in json.loads(out)["sides"]] == ["onnxruntime", "openvino"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("BUNDLE",), ("--save",)),
        (("BUNDLE", "missing"), ("missing",)),
        (("missing.npz", "BUNDLE"), ("missing.npz",)),
        (("BUNDLE", "BUNDLE", "--cfg", "1,2"), ("cfg takes one value",)),
        (("BUNDLE", "BUNDLE", "--backend", "a,b"), ("'a' is none of",)),
        (("BUNDLE", "BUNDLE", "--backend", "onnxruntime,openvino,tensorrt"), ("one for each side",)),
        (("BUNDLE", "BUNDLE", "--class", "nothing"), ("nothing",)),
    ],
)
def test_mistakes_are_one_line(call, sides, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("compare", *(sides[0] if word == "BUNDLE" else word for word in arguments))
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert all(word in last for word in words)


def test_files_that_are_no_drawing(call, sides, tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, arr_0=np.zeros((1, 4, 4, 3), np.uint8))
    code, _, err = call("compare", file, sides[0])
    assert code == 2
    assert "no array images" in err
    call("compare", sides[0], "--save", file, "--class", "88", *FAST)
    whole = dict(np.load(file))
    for damage in (
        {"facts": np.frombuffer(b"{}", np.uint8)},
        {"seeds": np.zeros(5, np.uint64)},
        {"images": np.zeros(3)},
    ):
        np.savez(file, **{**whole, **damage})
        with pytest.raises(UsageError):
            Drawing.load(file)


def drawing(**changed):
    facts = {
        "name": "a",
        "scales": [1, 2],
        "labels": ["x"],
        "sampling": {},
        "seconds": [1.0],
        "runtime": {},
        "bytes": 1,
    }
    arrays = {
        "images": np.zeros((1, 4, 4, 3), np.uint8),
        "tokens": np.zeros((1, 5), np.int64),
        "classes": np.zeros(1, np.int64),
        "seeds": np.zeros(1, np.uint64),
    }
    facts |= changed.pop("facts", {})
    return Drawing(**{**arrays, **changed}, facts=facts)


@pytest.mark.parametrize(
    "changed",
    [
        {"images": np.zeros((1, 8, 8, 3), np.uint8)},
        {"tokens": np.zeros((1, 9), np.int64)},
        {"seeds": np.ones(1, np.uint64)},
        {"classes": np.ones(1, np.int64)},
        {"facts": {"sampling": {"cfg": 1.0}}},
        {"facts": {"scales": [1, 3]}},
    ],
)
def test_other_requests_are_not_compared(changed):
    with pytest.raises(UsageError, match="compare the same requests"):
        compare(drawing(), drawing(**changed))


@pytest.mark.parametrize(("at", "scale"), [(0, 0), (1, 1), (4, 1), (None, None)])
def test_the_first_scale_that_differs(at, scale):
    tokens = np.zeros((1, 5), np.int64)
    if at is not None:
        tokens[0, at] = 1
    (pair,) = compare(drawing(), drawing(tokens=tokens))
    assert pair.first == scale
    assert pair.alike == (1 if at is None else 0.8)
