"""`var-export build --precision int8`: from a float bundle, and from a checkpoint."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.bundle.manifest import MANIFEST
from engines.draw.pipeline import Pipeline
from engines.packages import install_command
from tests.support import copy_bundle
from var_export.cli.main import main

CALIBRATION = "tiny.calibration.json"
# Random weights draw noise: with these two in 8 bits the decoder stays below its 28 dB by a hair.
KEEP = ("--keep", "decode/post_quant_conv", "--keep", "decode/conv_in")
FAST = ("--keep", "decode/*", "--keep", "encode/*")


def arguments(base, out, *more):
    return "build", base, "--precision", "int8", "--samples", 4, "--threads", 1, *KEEP, "--out", out, *more


@pytest.fixture(autouse=True)
def no_checkpoint_is_known(monkeypatch, tmp_path_factory):
    """As on a machine that has built nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def first(tiny_build, tmp_path_factory):
    """An INT8 bundle alone with its calibration, and what the command printed. Shared: copy it before changing it."""
    folder = tmp_path_factory.mktemp("int8")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments(tiny_build.path, folder / "tiny-int8")])
    assert code == 0, err.getvalue()
    return folder / "tiny-int8", out.getvalue(), err.getvalue()


@pytest.fixture
def made(first, tmp_path):
    """A copy of it."""
    folder = tmp_path / "work"
    shutil.copytree(first[0].parent, folder)
    return folder / "tiny-int8"


@pytest.fixture
def no_drawing(monkeypatch):
    """Whoever draws to calibrate fails."""

    def refuse(*args, **options):
        raise AssertionError("calibrated again")

    monkeypatch.setattr("calib.quantise.collect", refuse)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def one_line(answer, *words):
    code, out, err = answer
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "Traceback" not in err
    for word in words:
        assert str(word) in last


@pytest.mark.slow
def test_makes_a_bundle_and_a_calibration(first, tiny_build):
    path, out, err = first
    assert names(path.parent) == ["tiny-int8", CALIBRATION]
    bundle, base = Bundle.open(path), Bundle.open(tiny_build.path)
    assert (bundle.precision, bundle.form, bundle.target) == ("int8", "stepwise", "onnxruntime")
    assert (bundle.name, bundle.golden_key) == (base.name, base.golden_key)
    assert not bundle.plans
    assert bundle.weights_bytes() < 0.5 * base.weights_bytes()
    quantisation = bundle.provenance["quantisation"]
    assert quantisation["counts"]["static"] > 10
    assert quantisation["layers"]["step/blocks.0.fc1"] == "per-token"
    assert len(quantisation["calibration"]["requests"]["seeds"]) == 4
    assert out.startswith(f"{path} (")
    assert "check of the stepwise form against PyTorch: passed" in out
    assert out.splitlines()[-1] == f"next: var-run --bundle {path} --class 0"
    assert "calibration: 4 samples" in err
    assert "loading PyTorch" not in err


def test_draws_the_same_alone_and_in_any_batch(first):
    with Pipeline.load(first[0], threads=1) as pipeline:
        options = {"cfg": [2.0, 0.0, 1.0, 3.0], "top_k": [0, 5, 64, 20]}
        classes, seeds = [0, 4, 2, 5], [3, 1, 4, 9]
        together = pipeline.generate(classes, seeds=seeds, **options)
        for k in range(4):
            chosen = {name: values[k] for name, values in options.items()}
            alone = pipeline.generate(classes[k], seeds=seeds[k], **chosen)
            np.testing.assert_array_equal(alone.tokens[0], together.tokens[k])
            np.testing.assert_array_equal(alone.images[0], together.images[k])
        pipeline.encode(together.images)


def test_verify_accepts_it(call, first):
    code, out, err = call("verify", first[0], "--json")
    assert code == 0, err
    document = json.loads(out)
    assert "int8" in json.dumps(document)


def test_int4_is_another_bundle_from_the_same_calibration(call, made, tiny_build, no_drawing):
    out, calibration = made.parent / "tiny-int4", made.parent / CALIBRATION
    args = [*arguments(tiny_build.path, out, "--calibration", calibration)]
    args[args.index("int8")] = "int4"
    code, printed, err = call(*args)
    assert code == 0, err
    assert "check of the stepwise form against PyTorch: passed" in printed
    four, eight = Bundle.open(out), Bundle.open(made)
    assert (four.precision, four.target) == ("int4", "onnxruntime")
    assert four.weights_bytes() < eight.weights_bytes()
    ways = four.provenance["quantisation"]["layers"]
    assert (ways["step/blocks.0.attention.qkv"], ways["step/blocks.0.fc2"]) == ("4-bit", "per-token")  # narrow: level 1
    code, printed, err = call("verify", out)
    assert code == 0, err
    assert "within every threshold of int4" in printed
    code, printed, _ = call("inspect", out)
    assert "4-bit" in printed
    code, printed, _ = call("estimate", "--model", out)
    assert "int4, a range per block of weights" in printed


@pytest.mark.slow
def test_needs_no_torch(tiny_build, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "var_export.build", None)
    monkeypatch.setitem(sys.modules, "var_export.model.reference", None)
    args = arguments(tiny_build.path, tmp_path / "out", *FAST, "--smoothquant", "off")
    assert main([str(argument) for argument in args]) == 0


def test_the_same_again_is_up_to_date(call, made, tiny_build, no_drawing):
    before = (made / MANIFEST).stat().st_mtime_ns
    code, out, _ = call(*arguments(tiny_build.path, made))
    assert code == 0
    assert out.startswith(f"up to date: {made} (")
    assert (made / MANIFEST).stat().st_mtime_ns == before


def test_json(call, made, tiny_build):
    code, out, _ = call(*arguments(tiny_build.path, made, "--json"))
    document = json.loads(out)
    assert code == 0
    assert document["reused"] is True
    assert document["path"] == str(made)
    assert (document["precision"], document["form"], document["target"]) == ("int8", "stepwise", "onnxruntime")
    assert document["bytes"] == sum(file.stat().st_size for file in made.iterdir() if file.name != MANIFEST)


def test_a_pattern_that_fits_nothing_is_refused_before_anything_is_drawn(call, tiny_build, no_drawing, tmp_path):
    code, _, err = call("build", tiny_build.path, "--precision", "int8", "--keep", "no*", "--out", tmp_path / "x")
    assert (code, err.splitlines()[-1]) == (
        2,
        "Error: no layer is called like 'no*'; docs/int8.md says what they are called",
    )


def test_without_the_packages_it_says_which(tiny_build):
    block = "import sys; sys.modules['onnx_ir'] = None; from var_export.cli.main import main; raise SystemExit(main())"
    args = [sys.executable, "-c", block, "build", str(tiny_build.path), "--precision", "int8"]
    result = subprocess.run(args, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert result.stderr.startswith("Error: quantising needs more packages (")
    assert install_command("int8") in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_other_options_take_the_calibration_that_is_there(call, made, tiny_build, no_drawing):
    one_line(call(*arguments(tiny_build.path, made, "--level", 3)), made, "--force")
    code, _, err = call(*arguments(tiny_build.path, made, "--level", 3, "--keep", "decode/*", "--force"))
    assert code == 0, err
    counts = Bundle.open(made).provenance["quantisation"]["counts"]
    assert counts["per-block"] == 2  # AdaLN of the block and of the head
    ways = Bundle.open(made).provenance["quantisation"]["layers"]
    assert {way for name, way in ways.items() if name.startswith("decode/")} == {"float"}
    assert ways["step/head"] == ways["step/blocks.0.fc2"] == "static"


def test_a_calibration_that_is_named_is_taken_whatever_it_was_made_with(call, made, tiny_build, no_drawing):
    file = made.parent / CALIBRATION
    before = file.read_bytes()
    out = made.parent / "elsewhere" / "b"
    args = (
        "build",
        tiny_build.path,
        "--precision",
        "int8",
        "--calibration",
        file,
        "--threads",
        1,
        *KEEP,
        *FAST,
        "--out",
        out,
    )
    code, _, err = call(*args)
    assert code == 0, err
    assert file.read_bytes() == before
    assert names(out.parent) == ["b"]


def test_a_calibration_of_another_model_is_refused(call, made, tiny_build, no_drawing):
    file = made.parent / CALIBRATION
    document = json.loads(file.read_text()) | {"model": "0" * 64}
    file.write_text(json.dumps(document))
    out = made.parent / "new"
    one_line(call(*arguments(tiny_build.path, out, "--calibration", file)), file, "another checkpoint")
    one_line(call(*arguments(tiny_build.path, out)), file, "another checkpoint")
    file.write_text("{")
    one_line(call(*arguments(tiny_build.path, out)), file, "no JSON file")
    file.write_text("{}")
    one_line(call(*arguments(tiny_build.path, out)), file, "no calibration of this version")
    assert names(made.parent) == ["tiny-int8", CALIBRATION]


@pytest.mark.parametrize(
    "option",
    [
        ("--level", "2"),
        ("--quantize", "*"),
        ("--keep", "*"),
        ("--reduce-range",),
        ("--ranges", "mse"),
        ("--percentile", "99"),
        ("--smoothquant", "off"),
        ("--samples", "32"),
        ("--classes", "0-3"),
        ("--images", "."),
        ("--calibration", "file.json"),
    ],
    ids=lambda option: option[0],
)
def test_options_of_int8_need_int8(call, option):
    one_line(call("build", *option), f"{option[0]} needs --precision int8 or int4")


def test_what_cannot_be_is_refused_before_anything_is_drawn(call, tiny_build, tmp_path, no_drawing):
    out = tmp_path / "out"
    base = tiny_build.path
    for more, words in {
        ("--smoothquant", "much"): ("--smoothquant",),
        ("--smoothquant", "1.5"): ("--smoothquant",),
        ("--classes", "3"): ("class 3 alone",),
        ("--classes", "77"): ("77",),
        ("--images", tmp_path): ("no pictures",),
        ("--images", tmp_path / "missing"): ("missing", "No such file"),
        ("--name", "other"): ("--name is for checkpoints",),
        ("--reduce-range", "--target", "tensorrt", "--no-plans"): ("--reduce-range is for CPUs", "leave it out"),
    }.items():
        one_line(call(*arguments(base, out, *more)), *words)
    assert call(*arguments(base, out, "--samples", 0))[0] == 2
    assert call(*arguments(base, out, "--level", 4))[0] == 2
    assert names(tmp_path) == []


def test_a_pattern_that_fits_nothing_leaves_no_bundle(call, made, tiny_build):
    out = made.parent / "new"
    one_line(call(*arguments(tiny_build.path, out, "--keep", "nothing/*")), "no layer is called like 'nothing/*'")
    assert names(made.parent) == ["tiny-int8", CALIBRATION]


def test_a_folder_of_somebody_else_is_refused_before_anything_is_drawn(call, tiny_build, made, tmp_path, no_drawing):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    one_line(call(*arguments(tiny_build.path, out, "--force")), out, "is no bundle")
    (made.parent / CALIBRATION).unlink()
    (made / "letter.txt").write_text("dear")
    one_line(call(*arguments(tiny_build.path, made, "--force")), "letter.txt")
    assert names(out) == ["letter.txt"]


def test_an_int8_bundle_is_no_base(call, made, tmp_path, no_drawing):
    one_line(call(*arguments(made, tmp_path / "out")), "bundle in fp32 that has the stepwise form", "is int8")


def test_a_base_without_the_stepwise_form_is_refused(call, altered, tmp_path, no_drawing):
    base = altered(form="fused")
    for form in ("stepwise", "fused", "both"):
        answer = call(*arguments(base, tmp_path / "out", "--form", form))
        one_line(answer, base, "that has the stepwise form", "is fp32, fused")
    assert names(tmp_path) == [base.name]


@pytest.mark.slow
def test_pictures_for_the_encoder(call, tiny_build, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(2):
        Image.effect_noise((9 + k, 12), 80).save(pictures / f"{k}.PNG")
    (pictures / "notes.txt").write_text("no picture")
    code, _, err = call(*arguments(tiny_build.path, tmp_path / "out", *FAST, "--images", pictures))
    assert code == 0, err
    requests = Bundle.open(tmp_path / "out").provenance["quantisation"]["calibration"]["requests"]
    assert len(requests["images"]) == 2
    (pictures / "2.png").write_text("no picture")
    one_line(call(*arguments(tiny_build.path, tmp_path / "other", "--images", pictures)), "2.png")


@pytest.mark.slow
def test_interrupted_it_leaves_no_bundle_and_goes_on(call, first, tiny_build, tmp_path, monkeypatch):
    from engines.cli.progress import StageClock

    monkeypatch.setattr("calib.observe.collect.SAVE_EVERY", -1)
    seen = []

    def stop(progress, line, done=None):
        seen.append(line)
        if line == "calibration: sample 3 of 4":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageClock, "__call__", stop)
        code, out, _ = call(*arguments(tiny_build.path, tmp_path / "tiny-int8"))
    assert (code, out) == (130, "")
    assert names(tmp_path) == [f"{CALIBRATION}.partial"]

    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(StageClock, "__call__", lambda progress, line, done=None: seen.append(line))
        assert call(*arguments(tiny_build.path, tmp_path / "tiny-int8"))[0] == 0
    assert [line for line in seen if line.startswith("calibration: sample")] == [
        f"calibration: sample {k} of 4" for k in (3, 4)
    ]
    assert names(tmp_path) == ["tiny-int8", CALIBRATION]
    # And what comes of it is what an uninterrupted run makes.
    assert Bundle.open(tmp_path / "tiny-int8").build_key == Bundle.open(first[0]).build_key
    assert Bundle.open(tmp_path / "tiny-int8").files == Bundle.open(first[0]).files
    assert (tmp_path / CALIBRATION).read_bytes() == (first[0].parent / CALIBRATION).read_bytes()


def test_a_failed_check_leaves_no_bundle(call, tiny_build, made, monkeypatch):
    from engines.errors import CheckFailedError

    def fail(*args, **options):
        raise CheckFailedError("the exported stepwise engines miss the reference: KL")

    monkeypatch.setattr("calib.quantise.check", fail)
    code, out, err = call(*arguments(tiny_build.path, made, *FAST, "--force"))
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].endswith("miss the reference: KL")
    assert names(made.parent) == ["tiny-int8", CALIBRATION]
    assert Bundle.open(made).provenance["quantisation"]["options"]["exclude"] == [*KEEP[1::2]]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fused", "both"])
def test_the_fused_form(call, made, tiny_build, no_drawing, form):
    """Of the same calibration; each form is checked."""
    out = made.parent / f"tiny-{form}"
    code, printed, err = call(*arguments(tiny_build.path, out, "--form", form))
    assert code == 0, err
    bundle = Bundle.open(out)
    assert (bundle.precision, bundle.form) == ("int8", form)
    assert ("fused" in bundle.graphs) and ("step" in bundle.graphs) is (form == "both")
    checks = re.findall(r"check of the (\w+) form against PyTorch: passed", printed)
    assert checks == list(bundle.forms)
    assert bundle.build_key != Bundle.open(made).build_key
    with Pipeline.load(out, threads=1) as pipeline, Pipeline.load(made, threads=1) as stepwise:
        options = {"classes": [0, 4, 2], "seeds": [3, 1, 4], "cfg": [2.0, 0.0, 1.0]}
        np.testing.assert_array_equal(pipeline.generate(**options).tokens, stepwise.generate(**options).tokens)


@pytest.mark.slow
def test_without_out_the_name_says_the_form(call, made, tiny_build, no_drawing, monkeypatch):
    monkeypatch.chdir(made.parent)
    args = [*arguments(tiny_build.path, "none", "--form", "fused", "--calibration", made.parent / CALIBRATION)]
    at = args.index("--out")
    code, _, err = call(*args[:at], *args[at + 2 :])
    assert code == 0, err
    assert names(made.parent / "bundles") == ["tiny-int8-fused"]


def test_from_a_bundle_of_the_hub(call, made, tiny_build, no_drawing, monkeypatch, hub, tmp_path):
    pytest.importorskip("huggingface_hub")
    copy_bundle(tiny_build.path, hub.root / "owner/repo/tiny")
    monkeypatch.chdir(tmp_path)
    name = "hf://owner/repo/tiny"
    code, out, err = call(*arguments(name, "int8", "--calibration", made.parent / CALIBRATION))
    assert code == 0, err
    assert out.startswith("int8 (")
    assert not any(path.is_symlink() for path in (tmp_path / "int8").iterdir())
    assert Bundle.open("int8").golden_key == Bundle.open(tiny_build.path).golden_key
    one_line(call("build", name), f"{name} is a bundle already, which ONNX Runtime runs as it is")
    one_line(call("build", name, "--target", "tensorrt"), "no plans can join it: download it first")


@pytest.mark.slow
def test_from_a_checkpoint_the_float_bundle_stays_beside(call, tiny_checkpoint, tmp_path):
    args = arguments(tiny_checkpoint, tmp_path / "bundles" / "small", *FAST, "--form", "both")
    code, out, err = call(*args)
    assert code == 0, err
    assert out.startswith(str(tmp_path / "bundles" / "small"))
    assert names(tmp_path / "bundles") == ["small", "tiny-fp32", CALIBRATION]
    bundles = [Bundle.open(tmp_path / "bundles" / name) for name in ("tiny-fp32", "small")]
    assert [(bundle.precision, bundle.form) for bundle in bundles] == [("fp32", "stepwise"), ("int8", "both")]
    code, out, _ = call(*args)
    assert code == 0
    assert out.startswith("up to date: ")


@pytest.fixture
def fp16(call, tiny_checkpoint, tmp_path, monkeypatch):
    """The FP16 bundle of a checkpoint with labels and settings of its own, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    code, _, err = call("build", tiny_checkpoint, "--labels", "names.txt", "--default-cfg", 1.5, "--threads", 1)
    assert code == 0, err
    return Path("bundles/tiny-fp16")


@pytest.mark.slow
def test_from_another_precision_the_base_is_built_once_and_found_again(call, fp16, tiny_checkpoint, tmp_path):
    """Of the same checkpoint, labels and settings; nothing but the FP16 bundle is named."""
    args = ("build", fp16, "--precision", "int8", "--samples", 4, "--threads", 1, *FAST)
    code, out, err = call(*args)
    assert code == 0, err
    assert out.startswith("bundles/tiny-int8 (")
    assert f"taking bundles/tiny-fp32, the FP32 bundle of the same model, built from {tiny_checkpoint}" in err
    assert "golden run: taken from the bundle bundles/tiny-fp16" in err
    assert names(tmp_path / "bundles") == ["tiny-fp16", "tiny-fp32", "tiny-int8", CALIBRATION]
    bundles = [Bundle.open(tmp_path / "bundles" / name) for name in ("tiny-fp16", "tiny-fp32", "tiny-int8")]
    assert {(bundle.labels, bundle.sampling.cfg, bundle.golden_key) for bundle in bundles} == {
        (tuple("abcde"), 1.5, bundles[0].golden_key)
    }
    for again in (fp16, fp16.with_name("tiny-int8")):
        code, out, err = call(*args[:1], again, *args[2:])
        assert code == 0, err
        assert out.startswith("up to date: bundles/tiny-int8")
        assert "taking bundles/tiny-fp32, the FP32 bundle of the same model\n" in err
        assert "loading PyTorch" not in err


def test_a_base_that_is_neither_found_nor_known_how_to_build(call, fp16, monkeypatch, tmp_path, no_drawing):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    answer = call("build", fp16, "--precision", "int8")
    one_line(answer, "fp32", "bundles hold no such bundle", "var-export build CHECKPOINT --precision int8")
    assert names(tmp_path / "bundles") == ["tiny-fp16"]


def test_a_checkpoint_that_has_changed_makes_no_base(call, fp16, tiny_checkpoint, monkeypatch, tmp_path):
    from var_export.checkpoint.load import load_checkpoint

    other = replace(load_checkpoint(tiny_checkpoint, name="tiny"), sha256="1" * 64)
    monkeypatch.setattr("var_export.checkpoint.load.load_checkpoint", lambda *args, **options: other)
    one_line(call("build", fp16, "--precision", "int8"), "has changed since tiny was built from it")
    assert names(tmp_path / "bundles") == ["tiny-fp16"]


def test_the_embedded_demo_knows_its_checkpoint():
    from var_export.cli.base import origin_of

    assert origin_of(Bundle.open(DEMO_BUNDLE)).checkpoint is None  # what a build without one takes


def test_help_and_page_name_one_place_for_the_calibration(call):
    page = (Path(__file__).parents[3] / "docs" / "int8.md").read_text(encoding="utf-8").replace("`", "")
    for command in ("build", "sensitivity"):
        assert "NAME.calibration.json beside the bundle" in " ".join(call(command, "--help")[1].split())
    assert "NAME.calibration.json beside the bundle" in page
