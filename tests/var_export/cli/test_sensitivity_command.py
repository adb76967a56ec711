"""`var-export sensitivity`, and what reads its table: `build --max-loss`, and `verify` of INT8 bundles that fail."""

import dataclasses
import json
import shutil
import sys

import pytest
from PIL import Image
from support import write_manifest

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.judging import thresholds
from engines.spec.policy import FLOAT

pytestmark = pytest.mark.slow

TABLE = "tiny.calibration.sensitivity-onnxruntime.json"
KEEP = ("--keep", "decode/post_quant_conv", "--keep", "decode/conv_in", "--samples", 4, "--threads", 1)


@pytest.fixture(scope="module")
def measured(tiny_build, tmp_path_factory):
    """A float bundle beside its calibration and table. Shared: copy it."""
    from var_export.cli.main import main

    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(tiny_build.path, folder / "tiny-fp32")
    assert main(["sensitivity", str(folder / "tiny-fp32"), "--samples", "4", "--threads", "1"]) == 0
    return folder


@pytest.fixture
def base(measured, tmp_path):
    """A copy of it."""
    return shutil.copytree(measured, tmp_path / "work") / "tiny-fp32"


def test_prints_a_table_per_part(call, base):
    code, out, _ = call("sensitivity", base, "--samples", 4, "--threads", 1)
    assert code == 0
    assert out.count("layer ") == 3
    lines = out.splitlines()
    kls = [float(line.split()[3]) for line in lines if line.startswith(("step/", "cond/"))]
    assert kls == sorted(kls, reverse=True)
    assert len(kls) > 8
    assert TABLE in lines[-1]
    assert sorted(file.name for file in base.parent.iterdir()) == ["tiny-fp32", "tiny.calibration.json", TABLE]


def test_json_has_every_effect(call, base):
    code, out, _ = call("sensitivity", base, "--samples", 4, "--threads", 1, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["target"] == "onnxruntime"
    assert document["unit"] == "seconds"
    assert {"layer", "way", "saved", "kl", "top1", "psnr", "reconstruction_loss", "role"} == set(document["effects"][0])
    assert document["effects"] == json.loads((base.parent / TABLE).read_text())["effects"]


def test_of_int4_it_tells_what_is_stored(call, base):
    code, out, _ = call("sensitivity", base, "--precision", "int4", "--samples", 4, "--threads", 1)
    assert code == 0
    assert "saved KiB" in out
    kept = base.parent / "tiny.calibration.sensitivity-int4-onnxruntime.json"
    document = json.loads(kept.read_text())
    assert document["unit"] == "bytes"
    ways = {effect["layer"]: [] for effect in document["effects"]}
    saved = {}
    for effect in document["effects"]:
        ways[effect["layer"]].append(effect["way"])
        saved[effect["layer"], effect["way"]] = effect["saved"]
    assert ways["step/blocks.0.attention.qkv"] == ["static", "4-bit"]
    assert ways["step/blocks.0.fc2"] == ["per-token", "4-bit"]
    assert ways["cond/linears.0"] == ["per-class", "4-bit"]
    assert saved["step/blocks.0.fc2", "4-bit"] > saved["step/blocks.0.fc2", "per-token"] > 0


def test_of_another_precision_the_float_bundle_beside_it_is_taken(call, base):
    """As a bundle in FP16 has one in FP32 beside it."""
    other = shutil.copytree(base, base.with_name("other"))
    write_manifest(other, json.loads((other / MANIFEST).read_text()) | {"precision": "bf16"})
    code, out, err = call("sensitivity", other, "--samples", 4, "--threads", 1, "--json")
    assert code == 0, err
    assert json.loads(out)["bundle"] == str(base)
    assert f"taking {base}, the FP32 bundle of the same model" in err


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_draws_the_table(call, base, suffix):
    file = base.parent / "drawn" / f"table{suffix}"
    code, _, err = call("sensitivity", base, "--samples", 4, "--threads", 1, "--plot", file)
    assert code == 0
    assert f"chart: {file}" in err
    assert [made.name for made in file.parent.iterdir()] == [file.name]
    if suffix == ".png":
        with Image.open(file) as image:
            assert min(image.size) > 600
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    else:
        text = file.read_text()
        for word in ("blocks.0.fc1", "decoder", "KL, nats", "fc2, static"):
            assert word in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "table.txt"), (".png", "table.txt")),
        (("--target", "tensorrt"), ("fp16", "fp32")),
        (("--smoothquant", "2"), ("--smoothquant",)),
        (("--classes", "nobody"), ("nobody",)),
    ],
)
def test_mistakes_are_one_line(call, base, arguments, words):
    code, out, err = call("sensitivity", base, *arguments)
    assert (code, out) == (2, "")
    assert all(word in err.splitlines()[-1] for word in words)
    assert "Traceback" not in err


def test_the_page(call, base):
    file = base.parent / "pages" / "table.html"
    arguments = ("sensitivity", base, "--samples", 4, "--threads", 1)
    code, out, err = call(*arguments, "--html", file, "--plot", file.with_suffix(".svg"))
    assert code == 0
    assert f"page: {file} (" in err
    page = file.read_text().replace("<wbr>", "")
    for word in ("each alone in INT8", "step/blocks.0.fc1", "Decoder", "Encoder", f"--html {file}", TABLE):
        assert word in page
    assert out == call(*arguments)[1]
    assert call(*arguments, "--html", file, "--json")[1] == call(*arguments, "--json")[1]


def test_max_loss_chooses_the_layers(call, base):
    file = base.parent / TABLE
    table = json.loads(file.read_text())
    for effect in table["effects"]:  # which layers save time, and how much, is the processor's and the moment's
        effect["saved"] = 1.0
    file.write_text(json.dumps(table))
    out_dir = base.parent / "chosen"
    code, out, err = call(
        "build", base, "--precision", "int8", "--max-loss", "kl=1e-4", "--max-loss", "psnr=33", "--samples", 4,
        "--threads", 1, "--out", out_dir, "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    check = document["checks"]["stepwise"]
    assert check["total"]["kl"] <= 1e-4
    assert check["image_psnr"] >= 33
    layers = Bundle.open(out_dir).provenance["quantisation"]["layers"]
    ways = {name: way for name, way in layers.items() if name.startswith(("step/blocks", "decode"))}
    assert FLOAT in ways.values()
    assert {*ways.values()} > {FLOAT}
    code, out, _ = call("verify", out_dir, "--json")
    assert json.loads(out)["total"]["kl"] == pytest.approx(check["total"]["kl"], rel=1e-3)
    code, out, _ = call("inspect", out_dir)
    assert "kl kept to 0.0001" in out


def test_max_loss_uses_what_was_measured(call, base, monkeypatch):
    from calib.judge.timing import Stopwatch

    monkeypatch.setattr(Stopwatch, "seconds", lambda *args: pytest.fail("timed again"))
    code, _, err = call(
        "build", base, "--precision", "int8", "--max-loss", "kl=1e-4", *KEEP, "--out", base.parent / "chosen"
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--max-loss", "ssim=1"), "kl=NATS"),
        (("--max-loss", "kl=-1"), "0 or more"),
        (("--max-loss", "kl=1", "--level", "3"), "--level"),
    ],
)
def test_bounds_that_cannot_be(call, base, arguments, word):
    code, out, err = call("build", base, "--precision", "int8", *arguments, "--out", base.parent / "x")
    assert (code, out) == (2, "")
    assert word in err
    assert not (base.parent / "x").exists()


@pytest.fixture
def failing(call, base, monkeypatch):
    """An INT8 bundle, and thresholds that it misses."""
    out = base.parent / "int8"
    assert call("build", base, "--precision", "int8", *KEEP, "--out", out)[0] == 0
    strict = dataclasses.replace(thresholds.THRESHOLDS["int8"], kl=1e-9, image_psnr=99.0)
    monkeypatch.setitem(thresholds.THRESHOLDS, "int8", strict)
    return out


def test_verify_says_which_layers_are_to_blame(call, failing):
    code, out, err = call("verify", failing, "--threads", 1)
    assert code == 1
    table = out.partition("would be")[2]
    for layers in ("fc1", "fc2", "qkv", "decode/up.0", "decode/conv_out"):
        assert layers in table
    assert "KL" in err.splitlines()[-1]


def test_verify_says_it_in_json(call, failing):
    code, out, _ = call("verify", failing, "--threads", 1, "--json")
    assert code == 1
    document = json.loads(out)
    assert {entry["part"] for entry in document["attribution"]} == {"transformer", "decoder"}
    assert all(entry["before"] != entry["after"] for entry in document["attribution"] if entry["layers"] == "fc1")


def test_verify_does_without_where_a_package_is_missing(call, failing, monkeypatch):
    monkeypatch.delitem(sys.modules, "calib.judge.attribution")
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    code, out, err = call("verify", failing, "--threads", 1)
    assert code == 1
    assert "would be" not in out
    assert "onnx_ir" in err


def test_a_failed_build_says_which_layers_are_to_blame(call, base, failing):
    code, out, err = call("build", base, "--precision", "int8", *KEEP, "--level", 3, "--out", base.parent / "again")
    assert (code, out) == (1, "")
    assert "most to blame in the transformer" in err.splitlines()[-1]
    assert not (base.parent / "again").exists()
