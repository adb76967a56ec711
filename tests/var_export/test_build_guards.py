"""`build` loses nothing that it did not make, and makes nothing twice."""

import hashlib
import json

import pytest
from support import architectures, copy_bundle, one_block, tiny_checkpoint, tiny_config

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from tests.bundles import shared_bundle
from var_export import build as build_module
from var_export.build import FloatOptions, build

OPTIONS = FloatOptions(precision="fp32", form="both")


class ReachedGraphsError(Exception):
    """The build went as far as writing graphs."""


@pytest.fixture
def checkpoint():
    return tiny_checkpoint(tiny_config(patch_nums=(1, 2, 3, 4)))


@pytest.fixture
def bundle(tmp_path):
    return copy_bundle(shared_bundle("tiny-fp32", current=True), tmp_path / "model")


@pytest.fixture
def no_graphs(monkeypatch):
    """Stop where the long part begins."""

    def stop(*arguments, **keywords):
        raise ReachedGraphsError

    monkeypatch.setattr(build_module, "write_graphs", stop)


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_inputs_find_the_bundle_there(checkpoint, bundle, no_graphs):
    before = snapshot(bundle)
    built = build(checkpoint, bundle, OPTIONS)
    assert built.reused
    assert built.bundle.path == bundle
    assert build(checkpoint, bundle, OPTIONS, force=True).reused
    assert snapshot(bundle) == before


@pytest.mark.parametrize(
    "change",
    [
        {"options": FloatOptions(precision="fp16", form="both")},
        {"options": FloatOptions(precision="fp32", form="stepwise")},
        {"options": FloatOptions(precision="fp32", form="both", max_top_k=8)},
        {"options": FloatOptions(precision="fp32", form="both", smooth=True)},
        {"sha256": "another"},
        {"labels": tuple("abcde")},
    ],
    ids=str,
)
def test_other_inputs_do_not_replace_it_unasked(change, bundle, no_graphs):
    options = change.get("options", OPTIONS)
    fields = {key: value for key, value in change.items() if key != "options"}
    checkpoint = tiny_checkpoint(tiny_config(patch_nums=(1, 2, 3, 4)), **fields)
    before = snapshot(bundle)
    with pytest.raises(UsageError, match="--force"):
        build(checkpoint, bundle, options)
    with pytest.raises(ReachedGraphsError):
        build(checkpoint, bundle, options, force=True)
    assert snapshot(bundle) == before, "it stays until the new one is whole"
    assert [path.name for path in bundle.parent.iterdir()] == ["model"]


def test_a_list_as_long_as_the_vocabulary_is_no_other_option(checkpoint, bundle, no_graphs):
    assert build(checkpoint, bundle, FloatOptions(precision="fp32", form="both", max_top_k=64)).reused


def test_a_damaged_bundle_is_built_again_only_when_asked(checkpoint, bundle, no_graphs):
    (bundle / "weights.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"weights\.bin"):
        build(checkpoint, bundle, OPTIONS)
    with pytest.raises(ReachedGraphsError):
        build(checkpoint, bundle, OPTIONS, force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        {},
        {"thesis.txt": "mine"},
        {"manifest.json": json.dumps({"name": "My Web App", "icons": [], "manifest_version": 3}), "index.html": "<p>"},
        {"manifest.json": "not even JSON", "thesis.txt": "mine"},
    ],
    ids=["empty folder", "folder", "web app", "other manifest"],
)
def test_a_foreign_folder_is_never_touched(files, force, checkpoint, tmp_path, no_graphs):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in files.items():
        (out / name).write_text(text)
    with pytest.raises(UsageError, match="choose another --out"):
        build(checkpoint, out, OPTIONS, force=force)
    assert {path.name: path.read_text() for path in out.iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_or_a_dead_link_is_never_touched(force, checkpoint, tmp_path, no_graphs):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="choose another --out"):
            build(checkpoint, tmp_path / name, OPTIONS, force=force)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()


def test_files_that_a_user_put_into_a_bundle_are_not_lost(bundle, no_graphs):
    (bundle / "images").mkdir()
    (bundle / "images" / "cat.png").write_bytes(b"mine")
    other = tiny_checkpoint(tiny_config(patch_nums=(1, 2, 3, 4)), sha256="another")
    with pytest.raises(UsageError, match="images"):
        build(other, bundle, OPTIONS, force=True)


def test_the_golden_run_is_taken_from_a_bundle_of_the_same_model(checkpoint, bundle, monkeypatch, no_graphs):
    """The reference takes minutes for a large model; another precision needs no second run."""
    monkeypatch.setattr(build_module, "run_reference", lambda *a, **k: pytest.fail("the reference ran again"))
    lines = []
    with pytest.raises(ReachedGraphsError):
        build(
            checkpoint,
            bundle,
            FloatOptions(precision="fp16", form="both"),
            force=True,
            progress=lambda line, done=None: lines.append(line),
        )
    assert any("taken from the bundle" in line for line in lines)


@pytest.fixture
def smooth():
    return Bundle.open(shared_bundle("tiny-smooth"))


def test_smoothing_wants_more_of_the_golden_run_and_is_the_same_model(smooth, checkpoint, bundle, no_graphs):
    """So a calibration serves bundles with and without it."""
    lines = []
    with pytest.raises(ReachedGraphsError):
        build(
            checkpoint,
            bundle,
            FloatOptions(precision="fp32", smooth=True),
            force=True,
            progress=lambda line, done=None: lines.append(line),
        )
    assert not any("taken from the bundle" in line for line in lines)
    plain = Bundle.open(bundle)
    assert (smooth.golden_key, smooth.smooth) == (plain.golden_key, True)
    assert smooth.build_key != plain.build_key
    assert {"mixed", "heaviest", "smooth_image"} == set(smooth.golden) - set(plain.golden)


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp8"}, {"form": "sideways"}, {"max_top_k": 0}],
    ids=str,
)
def test_unknown_options_are_refused_before_any_work(options):
    (value,) = options.values()
    with pytest.raises(UsageError, match=str(value)):
        FloatOptions(**options)


def test_a_bundle_says_what_it_was_made_from(bundle):
    opened = Bundle.open(bundle)
    assert opened.provenance["checkpoint"]["files"] == ["tiny"]
    assert set(opened.provenance["versions"]) >= {"torch", "onnx", "var-export", "opset"}
    assert opened.max_top_k == 64, "900, cut to the vocabulary"


@pytest.mark.slow
def test_a_model_without_phi_builds_in_both_forms(tmp_path):
    """`step` then lacks one input; the fused graph is stitched from it by the names of its dimensions."""
    config = one_block(architectures()["no-phi"])
    built = build(tiny_checkpoint(config), tmp_path / "b", FloatOptions(precision="fp32", form="both", max_top_k=16))
    assert {form: report.failures for form, report in built.reports.items()} == {"stepwise": [], "fused": []}
