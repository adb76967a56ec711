"""`var-export inspect`: what a bundle says about itself."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from support import copy_bundle, write_manifest

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import GOLDEN, WEIGHTS
from engines.pictures.images import save_picture
from engines.spec.contract import GRAPHS


def test_says_what_is_in_it(call, tiny_build):
    code, out, err = call("inspect", tiny_build.path)
    assert (code, err) == (0, "")
    for expected in (
        "tiny, 8x8 pixels",
        "depth 1, width 64",
        "1, 2, 4 (21 tokens)",
        "5, no labels",
        "fp32",
        "both",
        "cfg 2, temperature 1, top-k 8, top-p 0.9 (top-k at most 64)",
        "var.safetensors, vae.safetensors",
        "torch ",
        GRAPHS["step"].meaning,
    ):
        assert expected in out
    files = {line.split()[0]: line.split() for line in out.splitlines() if line.endswith(" ok")}
    assert set(files) == {path.name for path in tiny_build.path.iterdir()} - {"manifest.json"}
    assert int(files[WEIGHTS][1]) == (tiny_build.path / WEIGHTS).stat().st_size


@pytest.mark.parametrize("graph", sorted(GRAPHS))
def test_graphs_lists_every_tensor(call, tiny_build, graph):
    out = call("inspect", tiny_build.path, "--graphs")[1]
    block = out.split(f"\n{graph}: ")[1].split("\n\n")[0]
    inputs, outputs = Bundle.open(tiny_build.path).tensors(graph)
    for info in (*inputs, *outputs):
        line = next(line for line in block.splitlines() if line.split()[1:2] == [info.name])
        assert info.dtype in line
        assert info.meaning in line


def test_only_classes_with_a_name_are_counted(call, tiny_build, tmp_path):
    folder = copy_bundle(tiny_build.path, tmp_path / "b")
    document = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, document | {"labels": ["tench", "", "goldfish", "", ""]})
    assert "5, 2 labels" in call("inspect", folder)[1]
    assert json.loads(call("inspect", folder, "--json")[1])["labels"] == 2


def test_json(call, tiny_build):
    code, out, _ = call("inspect", tiny_build.path, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["verified"] is True
    assert document["model"]["image_size"] == 8
    assert document["classes"] == 5
    assert document["labels"] is None
    assert {entry["state"] for entry in document["files"].values()} == {"ok"}
    (image,) = document["graphs"]["encode"]["inputs"]
    assert image == {"name": "image", "dtype": "uint8", "shape": ["B", 8, 8, 3], "meaning": "RGB"}


@pytest.mark.slow
def test_int8_layers_by_role_and_by_name(call, demo_int8_bundle):
    ways = Bundle.open(demo_int8_bundle).provenance["quantisation"]["layers"]
    code, out, err = call("inspect", demo_int8_bundle)
    assert (code, err) == (0, "")
    assert re.search(r"^quantised: +level 2, mse ranges of 8 images$", out, re.MULTILINE)
    table = out.split("graph   role        computed   layers\n")[1].split("\n(")[0]
    rows = [line.split() for line in table.splitlines()]
    assert rows[:4] == [
        ["cond", "adaln", "per-block", "5"],
        ["step", "qkv", "static", "4"],
        ["step", "proj", "static", "4"],
        ["step", "fc1", "per-token", "4"],
    ]
    assert {("decode", "conv", "float"), ("decode", "conv", "static")} <= {tuple(row[:3]) for row in rows}
    assert sum(int(row[3]) for row in rows) == len(ways)

    code, listed, _ = call("inspect", demo_int8_bundle, "--layers")
    assert code == 0
    table = listed.split("\nlayer ")[1].split("\n\n")[0]
    found = [line.split() for line in table.splitlines()[1:]]
    assert {name: way for name, _, way in found} == ways
    assert ["step/blocks.3.attention.qkv", "qkv", "static"] in found
    layers = json.loads(call("inspect", demo_int8_bundle, "--json")[1])["layers"]
    assert {layer["name"]: layer["way"] for layer in layers} == ways
    assert {"name": "step/head", "graph": "step", "role": "head", "way": "per-block"} in layers


def test_a_float_bundle_has_no_quantised_layers(call, tiny_build):
    assert "no layer is quantised: all are in fp32" in call("inspect", tiny_build.path, "--layers")[1]
    assert "quantised" not in call("inspect", tiny_build.path)[1]
    assert json.loads(call("inspect", tiny_build.path, "--json")[1])["layers"] == []


def test_layers_that_are_kept_in_fp32_are_listed(call, altered):
    kept = {"decode/conv_in": 70000.0, "step/head": None}
    path = altered(provenance={"kept_fp32": {"largest": kept, "patterns": []}})
    listed = call("inspect", path, "--layers")[1]
    assert "computed in FP32: decode/conv_in, which reaches 70,000\ncomputed in FP32: step/head\n" in listed
    assert "no layer is quantised: all others are in fp32" in listed
    assert "2 layers are computed in FP32 (--layers lists them)" in call("inspect", path)[1]
    assert json.loads(call("inspect", path, "--json")[1])["kept_fp32"] == kept


@pytest.mark.parametrize("recorded", [[], "x", {"largest": []}, {"largest": None}])
def test_a_record_of_kept_layers_that_is_none(call, altered, recorded):
    path = altered(provenance={"kept_fp32": recorded})
    assert json.loads(call("inspect", path, "--json")[1])["kept_fp32"] == {}


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_changed_file_is_named(call, altered, options):
    path = altered()
    content = bytearray((path / GOLDEN).read_bytes())
    content[100] ^= 1
    (path / GOLDEN).write_bytes(content)
    code, out, err = call("inspect", path, *options)
    assert code == 2
    assert "SHA-256 differs" in out
    assert f"Error: {path}: {GOLDEN} changed since the build" in err


def test_a_missing_file_is_one_line(call, altered):
    path = altered()
    (path / GOLDEN).unlink()
    code, out, err = call("inspect", path)
    assert (code, out) == (2, "")
    assert GOLDEN in err
    assert len(err.splitlines()) == 1


def test_a_picture_says_how_it_was_made(call, tmp_path):
    text = {"class": "1", "seed": "3", "cfg": "2.5", "label": "a \x1b[31mred", "key": "ab", "build_key": "cd"}
    save_picture(tmp_path / "a.webp", np.zeros((4, 4, 3), np.uint8), text)
    code, out, err = call("inspect", tmp_path / "a.webp")
    assert (code, err) == (0, "")
    assert "  var-run --class 1 --seed 3 --cfg 2.5 --bundle BUNDLE" in out.splitlines()
    assert "\x1b" not in out
    document = json.loads(call("inspect", tmp_path / "a.webp", "--json")[1])
    assert document["settings"] == text
    code, _, err = call("inspect", tmp_path / "a.webp", "--layers")
    assert (code, "--layers is for bundles" in err) == (2, True)
    save_picture(tmp_path / "b.png", np.zeros((4, 4, 3), np.uint8), {})
    code, out, err = call("inspect", tmp_path / "b.png")
    assert (code, out) == (2, "")
    assert "b.png holds no settings of var-run" in err


def test_list_shows_what_is_here(call, tiny_build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [line.split()[:2] for line in call("list")[1].splitlines()[1:2]] == [["*", "the"]]
    for number, name in enumerate(("old", "new", "broken")):
        shutil.copytree(tiny_build.path, tmp_path / "bundles" / name)
        os.utime(tmp_path / "bundles" / name / "manifest.json", (10**9 + number, 10**9 + number))
    (tmp_path / "bundles/old").rename(tmp_path / "bundles/.old.previous")
    manifest = (tmp_path / "bundles/broken/manifest.json").read_text()
    (tmp_path / "bundles/broken/manifest.json").write_text(manifest.replace('"schema": 2', '"schema": 1'))
    os.utime(tmp_path / "bundles/broken/manifest.json", (1, 1))
    code, out, _ = call("list")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[: 2 if "*" in line else 1] for line in lines[1:5]] == [
        ["*", "bundles/new"],
        ["bundles/old"],
        ["bundles/broken"],
        ["the"],
    ]
    assert "fp32" in lines[1]
    assert "has schema 1" in lines[3]
    document = json.loads(call("list", "--json")[1])
    assert [row["path"] for row in document["bundles"]][:2] == ["bundles/new", "bundles/.old.previous"]
    _, _, err = call("inspect")
    assert (
        "using the newest bundle, bundles/new, of 3 (--bundle BUNDLE takes another, var-export list shows them)" in err
    )
