"""`Pipeline.edit` against edits recorded from the official notebook, and what holds for every edit.

`tests/data/official_edit.npz` holds numbers only, made once by running `autoregressive_infer_cfg_with_mask` of
`demo_zero_shot_edit.ipynb` on the official model code, greedily, with the demo checkpoint and with the weights of
`support.tiny_state`. No choice in it is closer than 4e-4 to the next best.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import DATA

from engines.draw.batch import Rows
from engines.draw.pipeline import Pipeline
from engines.editing.mask import boxes_to_grid, kept_tokens
from engines.errors import UsageError
from tests.bundles import shared_bundle

FOX, NONE = 48, 171


@pytest.fixture(scope="module")
def official():
    with np.load(DATA / "official_edit.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def pictures():
    with np.load(DATA / "official_demo.npz") as archive:
        return archive["cfg1/image"]


@pytest.fixture(scope="module")
def pipeline(demo_fp32_bundle):
    with Pipeline.load(demo_fp32_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def wide():
    """Random weights, the scales of 512 px models."""
    with Pipeline.load(shared_bundle("tiny-512"), threads=2) as loaded:
        yield loaded


def case(official, name):
    return {key.removeprefix(f"{name}/"): value for key, value in official.items() if key.startswith(f"{name}/")}


def grid_of(wanted, side):
    grid = boxes_to_grid([tuple(wanted["box"].tolist())], side)
    return grid if wanted["inpainting"] else ~grid


@pytest.mark.parametrize("kind", ["inpaint", "outpaint", "class"])
def test_the_demo_is_edited_as_officially(kind, official, pictures, pipeline):
    wanted = case(official, f"demo/{kind}")
    grid = grid_of(wanted, 8)
    T = pipeline.config.num_tokens
    np.testing.assert_array_equal(kept_tokens(pipeline.config, grid[None])[0], np.unpackbits(wanted["kept"])[:T])
    edited = pipeline.edit(pictures[:2], grid, wanted["classes"].tolist(), cfg=float(wanted["cfg"]), top_k=1)

    assert (pipeline.encode(pictures[:2]) == wanted["own"]).all()
    np.testing.assert_array_equal(edited.tokens, wanted["tokens"])
    assert (edited.tokens != wanted["own"]).mean() > 0.3  # it was an edit
    off_by = np.abs(edited.images.astype(int) - wanted["image"])
    assert off_by.max() <= 1
    assert (off_by > 0).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inpaint", "outpaint", "class"])
def test_a_model_of_512_px_is_edited_as_officially(kind, official, wide):
    wanted = case(official, f"512/{kind}")
    grid, config = grid_of(wanted, 32), wide.config
    kept = kept_tokens(config, grid[None])
    np.testing.assert_array_equal(kept[0], np.unpackbits(wanted["kept"])[: config.num_tokens])
    drawn = wide.generate(
        wanted["classes"].tolist(), cfg=float(wanted["cfg"]), top_k=1, forced=(wanted["own"].astype(np.int64), kept)
    )
    np.testing.assert_array_equal(drawn.tokens, wanted["tokens"])


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), cfg=st.sampled_from([0.0, 1.0, 4.0]), count=st.integers(1, 3))
def test_kept_tokens_are_the_pictures_own(seed, cfg, count, pictures, pipeline):
    random = np.random.default_rng(seed)
    masks = random.random((count, 8, 8)) < random.uniform(0.05, 0.95)
    masks[:, 0, 0], masks[:, 0, 1] = True, False
    images, classes = pictures[random.integers(0, 5, count)], random.integers(0, NONE + 1, count).tolist()
    edited = pipeline.edit(images, masks, classes, seeds=seed, cfg=cfg)
    own, kept = pipeline.encode(images), kept_tokens(pipeline.config, masks)
    np.testing.assert_array_equal(edited.tokens[kept], own[kept])
    np.testing.assert_array_equal(edited.tokens[~kept], edited.drawn[~kept])


@pytest.mark.slow
def test_the_fused_form_and_the_stream_edit_alike(pictures, demo_both_bundle):
    grid = boxes_to_grid([(0.0, 0.5, 1.0, 1.0)], 8)
    with Pipeline.load(demo_both_bundle, threads=2) as stepwise, Pipeline.load(demo_both_bundle, form="fused") as fused:
        wanted = stepwise.edit(pictures[0], grid, 48, seeds=3)
        np.testing.assert_array_equal(fused.edit(pictures[0], grid, 48, seeds=3).tokens, wanted.tokens)
        forced = stepwise.encode(pictures[:1]), kept_tokens(stepwise.config, grid[None])
        *_, last = stepwise.stream(48, seeds=3, forced=forced)
        np.testing.assert_array_equal(last.images, wanted.images)


# --- one of a kind stands for as many as there are of the others ------------------------------------------------------

GRID = boxes_to_grid([(0.25, 0.25, 0.75, 0.75)], 8)


def test_several_seeds_are_variants_and_no_class_is_the_unconditional_one(pictures, pipeline):
    edited = pipeline.edit(pictures[0], GRID, seeds=[5, 6, 7], top_k=50, top_p=0)
    assert edited.classes.tolist() == [NONE] * 3
    assert len(np.unique(edited.tokens, axis=0)) == 3
    alone = pipeline.edit(pictures[0], GRID, NONE, seeds=6, top_k=50, top_p=0)
    np.testing.assert_array_equal(alone.images[0], edited.images[1])


def test_no_class_runs_one_half_whatever_the_guidance(pictures, pipeline):
    weak, strong = (pipeline.edit(pictures[0], GRID, cfg=cfg) for cfg in (0.0, 4.0))
    np.testing.assert_array_equal(weak.tokens, strong.tokens)
    assert len(Rows.of(weak.classes, np.full(1, 4.0, np.float32), NONE).labels) == 1


@pytest.mark.slow
def test_pixels_and_cells_are_the_same_mask(pictures, pipeline):
    pixels = np.kron(GRID, np.ones((8, 8), bool))
    np.testing.assert_array_equal(
        pipeline.edit(pictures[:2], pixels, 5).images, pipeline.edit(pictures[:2], np.stack([GRID] * 2), [5, 5]).images
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": np.zeros((32, 32), np.uint8)}, "images must be uint8"),
        ({"fit": "sideways"}, "fit must be crop"),
        ({"mask": GRID.astype(int)}, "the mask must be bool"),
        ({"mask": GRID[:4]}, "the mask has 8 x 4 pixels and the picture 64 x 64"),
        ({"mask": np.zeros((0, 8, 8), bool)}, "the mask must be bool"),
        ({"mask": np.zeros((8, 8), bool)}, "the area is empty"),
        ({"mask": np.ones((64, 64), bool)}, "the area is the whole"),
        ({"mask": np.stack([GRID] * 3), "classes": [1, 2]}, "do not fit"),
        ({"seeds": [1, 2], "classes": [1, 2, 3]}, "do not fit"),
        ({"classes": "dragonfly"}, "no class is called"),
    ],
)
def test_a_mistake_is_one_line(change, says, pictures, pipeline):
    with pytest.raises(UsageError, match=says):
        pipeline.edit(**{"images": pictures[0], "mask": GRID, "classes": 5} | change)


@pytest.mark.slow
def test_pictures_of_any_size_are_edited_and_composited(pictures, pipeline, tmp_path):
    wide = np.pad(pictures[0], ((0, 0), (40, 40), (0, 0)), mode="edge")
    area = np.zeros((64, 144), bool)
    area[32:, 40:104] = True
    wanted = pipeline.edit(
        pictures[0], np.kron(GRID * 0 + (np.arange(8) >= 4)[:, None], np.ones((8, 8))) > 0, FOX, seeds=3
    )
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(area).save(tmp_path / "mask.png")
    for image, mask in (
        (wide, area),
        (Image.fromarray(wide), Image.fromarray(area)),
        (tmp_path / "wide.png", tmp_path / "mask.png"),
    ):
        square = pipeline.edit(image, mask, FOX, seeds=3)
        np.testing.assert_array_equal(square.images, wanted.images)
        laid = pipeline.edit(image, mask, FOX, seeds=3, composite=True)
        assert laid.images.shape == (1, 64, 144, 3)
        np.testing.assert_array_equal(laid.images[0, :, :40], wide[:, :40])
        np.testing.assert_array_equal(laid.images[0, 40:, 48:96], wanted.images[0, 40:, 8:56])
        np.testing.assert_array_equal(laid.tokens, wanted.tokens)
    variants = pipeline.edit(wide, area, [FOX, NONE], seeds=[3, 4], composite=True)
    np.testing.assert_array_equal(variants.images[0], laid.images[0])
    with pytest.raises(UsageError, match="pictures of several sizes"):
        pipeline.edit([wide, pictures[0]], GRID, FOX, composite=True)
    assert len(pipeline.edit([wide, pictures[0]], GRID, FOX).images) == 2
