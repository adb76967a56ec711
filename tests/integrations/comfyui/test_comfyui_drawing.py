"""The nodes draw what `Pipeline` draws, say what is wrong in a line, and obey ComfyUI's Cancel within a scale."""

from __future__ import annotations

import numpy as np
import pytest
from support import copy_bundle, need_torch, refused

from engines import BundleError, Pipeline, UsageError
from engines.bundle.bundle import DEMO_BUNDLE

torch = need_torch()

PARROT = {"class_name": "parrot", "seed": 7}


@pytest.fixture(scope="module")
def reference():
    with Pipeline.load(DEMO_BUNDLE, threads=1) as pipeline:
        yield pipeline


def pixels(image):
    """An IMAGE as the bytes that ComfyUI would save."""
    return (image * 255).round().to(torch.uint8).numpy()


def upper_half(*shape):
    mask = torch.zeros(*shape)
    mask[..., : shape[-2] // 2, :] = 1
    return mask


def test_draws_the_images_of_the_pipeline(node, demo, reference):
    (image,) = node("Draw", demo, **PARROT, count=3)
    assert image.dtype == torch.float32 and image.shape == (3, 64, 64, 3)
    np.testing.assert_array_equal(pixels(image), reference.generate("parrot", seeds=[7, 8, 9]).images)
    np.testing.assert_array_equal(image.numpy(), reference.generate(88, seeds=[7, 8, 9]).images / np.float32(255))


def test_sampling_is_as_the_widgets_say_and_else_as_the_bundle_recommends(node, demo, reference):
    options = {"cfg": 2.0, "temperature": 0.9, "top_k": 30, "top_p": 0.8, "cfg_scales": 4}
    (image,) = node("Draw", demo, **PARROT, count=1, smooth=False, **options)
    np.testing.assert_array_equal(pixels(image), reference.generate("parrot", seeds=7, **options).images)
    left_alone = dict.fromkeys(options, -1) | {"cfg": -1.0}
    (image,) = node("Draw", demo, **PARROT, count=1, **left_alone)
    np.testing.assert_array_equal(pixels(image), reference.generate("parrot", seeds=7).images)


def test_previews_are_one_for_each_scale(node, demo, reference):
    (scales,) = node("PreviewScales", demo, **PARROT, cfg=1.5)
    shown = [preview.images[0] for preview in reference.stream("parrot", seeds=7, cfg=1.5)]
    assert len(scales) == len(shown) == reference.config.num_scales
    np.testing.assert_array_equal(pixels(scales), np.stack(shown))
    (drawn,) = node("Draw", demo, **PARROT, count=1, cfg=1.5)
    assert torch.equal(scales[-1:], drawn)
    assert not torch.equal(scales[0], scales[-1])


def test_edits_what_the_mask_says_and_keeps_the_rest(node, demo, reference):
    (dog,) = node("Draw", demo, class_name="dog face", seed=0, count=1)
    (edited,) = node("Edit", demo, dog, upper_half(1, 64, 64), class_name="frog", seed=3, count=2)
    assert edited.shape == (2, 64, 64, 3)
    edge = 36  # below the mask, beyond the half cell in which both are blended
    assert torch.equal(edited[:, edge:], dog[:, edge:].expand(2, -1, -1, -1))
    assert (edited[:, :32] - dog[:, :32]).abs().mean() > 0.02
    area = np.zeros((64, 64), bool)
    area[:32] = True
    expected = reference.edit(pixels(dog), area, "frog", seeds=[3, 4], composite=True).images
    np.testing.assert_array_equal(pixels(edited), expected)


def test_edits_several_pictures_of_any_size(node, demo):
    pictures = torch.rand(2, 100, 150, 3)
    (laid,) = node("Edit", demo, pictures, upper_half(100, 150), class_name="none", seed=1, count=1, fit="pad")
    assert laid.shape == (2, 100, 150, 3)
    (squares,) = node(
        "Edit", demo, pictures, upper_half(2, 100, 150), class_name="none", seed=1, count=1, composite=False
    )
    assert squares.shape == (2, 64, 64, 3)


def test_encodes_and_decodes(node, demo, reference):
    (image,) = node("Draw", demo, **PARROT, count=2)
    (tokens,) = node("Encode", demo, image)
    assert tokens.dtype == torch.int64
    np.testing.assert_array_equal(tokens.numpy(), reference.encode(pixels(image)))
    (again,) = node("Decode", demo, tokens)
    np.testing.assert_array_equal(pixels(again), reference.reconstruct(pixels(image)))
    assert (again - image).abs().mean() < 0.05


def test_other_forms_of_tensors_are_taken(node, demo):
    """Grey, transparent and squeezed ones, other types, values beyond the range, masks with a channel."""
    (image,) = node("Draw", demo, **PARROT, count=1)
    (tokens,) = node("Encode", demo, image)
    opaque = torch.cat([image, torch.ones(1, 64, 64, 1)], dim=-1)
    for same in (image[0], opaque, image.double(), image.requires_grad_(), image.transpose(1, 2).transpose(1, 2)):
        assert torch.equal(node("Encode", demo, same)[0], tokens)
    grey = torch.full((1, 64, 64, 1), 1.7)
    clear = torch.cat([image, torch.zeros(1, 64, 64, 1)], dim=-1)
    white = node("Encode", demo, torch.ones(1, 64, 64, 3))[0]
    assert torch.equal(node("Encode", demo, grey)[0], white)
    assert torch.equal(node("Encode", demo, clear)[0], white)
    masks = (upper_half(64, 64), upper_half(1, 64, 64), upper_half(1, 1, 64, 64), upper_half(1, 64, 64) * 0.6)
    edits = [node("Edit", demo, image, mask, class_name="frog", seed=0, count=1)[0] for mask in masks]
    assert all(torch.equal(edit, edits[0]) for edit in edits)


IMAGE = torch.zeros(1, 64, 64, 3)
MASK = upper_half(1, 64, 64)
EDIT = {"image": IMAGE, "mask": MASK, "class_name": "frog", "seed": 0, "count": 1}
WRONG = [
    ("Draw", {"class_name": "parot", "seed": 0, "count": 1}, ["parot", "parrot"]),
    ("Draw", {"class_name": "", "seed": 0, "count": 1}, ["a class is empty"]),
    ("Draw", {"class_name": "0-9", "seed": 0, "count": 2}, ["10 classes where one is needed"]),
    ("Draw", {"class_name": "0", "seed": 2**64 - 1, "count": 2}, ["0 to 2^64 - 1"]),
    ("Draw", {"class_name": "0", "seed": 0, "count": 1, "cfg": -0.5}, ["cfg must lie in 0 to 1000"]),
    ("Draw", {"class_name": "0", "seed": 0, "count": 1, "temperature": 0.0}, ["temperature", "top_k 1"]),
    ("Draw", {"class_name": "0", "seed": 0, "count": 1, "smooth": True}, ["var-export build --smooth"]),
    ("Edit", EDIT | {"mask": torch.zeros(1, 64, 64)}, ["area is empty"]),
    ("Edit", EDIT | {"mask": torch.ones(1, 64, 64)}, ["the whole picture"]),
    ("Edit", EDIT | {"mask": upper_half(1, 64, 32)}, ["32 x 64", "of the picture's size"]),
    ("Edit", EDIT | {"mask": torch.zeros(1, 1, 2, 64, 64)}, ["a MASK must be (B, H, W)"]),
    ("Edit", EDIT | {"image": torch.zeros(3, 64, 64, 3), "count": 2}, ["3 images", "2 seeds"]),
    ("Edit", EDIT | {"image": torch.full((1, 64, 64, 3), torch.nan)}, ["not finite"]),
    ("Encode", {"image": torch.zeros(1, 3, 64, 64)}, ["an IMAGE must be (B, H, W, 3)"]),
    ("Encode", {"image": torch.zeros(0, 64, 64, 3)}, ["an IMAGE must be (B, H, W, 3)"]),
    ("Decode", {"tokens": torch.zeros(1, 3, dtype=torch.int64)}, ["tokens"]),
    ("Decode", {"tokens": torch.full((1, 155), -1)}, ["tokens"]),
    ("LoadBundle", {"bundle": "gone"}, ["no bundle called 'gone'", "embedded demo"]),
    ("LoadBundle", {"bundle": "embedded demo", "path": "nowhere/at/all"}, ["nowhere/at/all"]),
]


@pytest.mark.parametrize(("name", "inputs", "words"), WRONG, ids=[" ".join(words) for _, _, words in WRONG])
def test_what_is_wrong_is_one_line_that_says_what_to_do(node, demo, name, inputs, words):
    given = inputs if name == "LoadBundle" else {"pipeline": demo, **inputs}
    refused(lambda: node(name, **given), *words, kind=UsageError)


def test_a_fused_bundle_draws_and_says_why_it_has_no_previews(node, demo_both_bundle, comfy, monkeypatch):
    """A bundle of both forms stands in for one that has no other; by itself it has previews."""
    (both,) = node("LoadBundle", bundle="embedded demo", path=str(demo_both_bundle), threads=1)
    assert len(node("PreviewScales", both, **PARROT)[0]) == 7
    load = Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda path, **options: load(path, form="fused", **options))
    (fused,) = node("LoadBundle", bundle="embedded demo", path=str(demo_both_bundle), threads=1, max_batch=1)
    (at_once,), (by_scales,) = (node("Draw", each, **PARROT, count=2) for each in (fused, both))
    assert (at_once - by_scales).abs().max() < 1.5 / 255, "the forms round differently, by a level at most"
    assert comfy.bars[1].seen == [(0, 2), (1, 2), (2, 2)], "a step for each batch"
    refused(lambda: node("PreviewScales", fused, **PARROT), "--form both", kind=UsageError)


def test_the_bar_moves_with_the_scales(node, demo, comfy):
    node("Draw", demo, **PARROT, count=2)
    (bar,) = comfy.bars
    assert bar.seen == [(done, 7) for done in range(8)]
    node("PreviewScales", demo, **PARROT)
    assert comfy.bars[1].seen == bar.seen
    node("Edit", demo, **EDIT)
    assert comfy.bars[2].seen == bar.seen


def test_the_bar_is_as_long_as_the_batches_are_many(node, comfy):
    (small,) = node("LoadBundle", bundle="embedded demo", threads=1, max_batch=2)
    node("Draw", small, **PARROT, count=3)
    assert comfy.bars[-1].seen == [(done, 14) for done in range(15)]


@pytest.mark.parametrize("name", ["Draw", "PreviewScales", "Edit"])
def test_cancel_stops_within_a_scale_and_harms_nothing(node, demo, comfy, name):
    inputs = {"Draw": {**PARROT, "count": 2}, "PreviewScales": PARROT, "Edit": EDIT}[name]
    (whole,) = node(name, demo, **inputs)
    comfy.asked, comfy.cancel_at = 0, 4
    with pytest.raises(comfy.Interrupted):
        node(name, demo, **inputs)
    assert comfy.asked == 4, "nothing more was computed"
    assert comfy.bars[-1].seen == [(0, 7), (1, 7), (2, 7)]
    comfy.cancel_at = None
    assert torch.equal(node(name, demo, **inputs)[0], whole), "the pipeline is as good as before"


def test_cancel_is_seen_before_pictures_are_encoded(node, demo, comfy):
    (tokens,) = node("Encode", demo, IMAGE)
    comfy.asked, comfy.cancel_at = 0, 1
    with pytest.raises(comfy.Interrupted):
        node("Encode", demo, IMAGE)
    comfy.asked = 0
    with pytest.raises(comfy.Interrupted):
        node("Decode", demo, tokens)


def test_bundles_in_the_folder_of_models_are_offered(comfy_nodes, node, comfy, tmp_path):
    copy_bundle(DEMO_BUNDLE, comfy.models / "var_export" / "mine")
    copy_bundle(DEMO_BUNDLE, tmp_path / "more" / "theirs")
    (tmp_path / "more" / "no-bundle").mkdir()
    comfy.paths.folder_names_and_paths["var_export"] = ([str(tmp_path / "more")], set())
    load = comfy_nodes.NODE_CLASS_MAPPINGS["VarExportLoadBundle"]
    listed, options = load.INPUT_TYPES()["required"]["bundle"]
    assert set(listed) == {"mine", "theirs", "embedded demo"}
    assert listed[-1] == "embedded demo"
    assert options["default"] == listed[0]
    (mine,) = node("LoadBundle", bundle="mine", threads=1)
    assert mine.path == str(comfy.models / "var_export" / "mine")
    assert node("Draw", mine, **PARROT, count=1)[0].shape == (1, 64, 64, 3)


def test_validation_says_what_is_wrong_before_anything_runs(comfy_nodes, tmp_path):
    check = comfy_nodes.NODE_CLASS_MAPPINGS["VarExportLoadBundle"].VALIDATE_INPUTS
    damaged = copy_bundle(DEMO_BUNDLE, tmp_path / "damaged")
    (damaged / "manifest.json").write_text("{")
    assert check() is check(path="") is check(path=None) is check(path="hf://owner/repository/folder") is True
    assert check(path=f" {DEMO_BUNDLE} ") is True
    assert "is no bundle" in check(path=str(tmp_path))
    assert "manifest.json" in check(path=str(damaged))
    assert "hf://" in check(path="hf://x")


def test_a_bundle_is_opened_by_its_path_alone(node, tmp_path):
    refused(lambda: node("LoadBundle", bundle="embedded demo", path=str(tmp_path)), str(tmp_path), kind=BundleError)
    copy = copy_bundle(DEMO_BUNDLE, tmp_path / "copy")
    (opened,) = node("LoadBundle", bundle="no such name", path=str(copy), threads=1)
    assert node("Draw", opened, **PARROT, count=1)[0].shape == (1, 64, 64, 3)
