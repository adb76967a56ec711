"""Which cells are redrawn and which tokens are kept, held against torch and against the official code's own mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import need_torch, tiny_config

from engines.editing.mask import boxes_to_grid, check_area, kept_tokens, pixels_to_grid, resize_bilinear
from engines.errors import UsageError

OF_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
OF_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@st.composite
def grids(draw, most=33):
    """Some grids of one size: boxes, their complements, noise."""
    side = draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    boxes = []
    for _ in range(8):
        (y0, y1), (x0, x1) = np.sort(random.integers(0, side + 1, (2, 2)))
        box = np.zeros((side, side), bool)
        box[y0:y1, x0:x1] = True
        boxes += [box, ~box]
    return np.stack([*boxes, *random.integers(0, 2, (4, side, side)).astype(bool)])


def torch_resized(grid, side):
    torch = need_torch()
    values = torch.from_numpy(grid).float()[:, None]
    return torch.nn.functional.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)[
        :, 0
    ].numpy()


@settings(deadline=None)
@given(grids(), st.data())
def test_resize_is_that_of_torch(grid, data):
    side = data.draw(st.integers(1, 33))
    wanted = torch_resized(grid, side)
    ours = resize_bilinear(grid, side)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, atol=2e-6)


@pytest.mark.parametrize("patch_nums", [OF_256, OF_512], ids=["256", "512"])
def test_every_box_keeps_what_torch_keeps(patch_nums):
    """Ties too: of 16 cells, the columns 3, 9 and others of 13 lie half inside of some boxes."""
    torch = need_torch()
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch computes without fused multiply-add here, and falls on the other side of ties")
    side = patch_nums[-1]
    step = side // 16
    edges = range(0, side + 1, step)
    boxes = [(x0, x1) for x0 in edges for x1 in edges if x0 < x1]
    grid = np.zeros((2 * len(boxes), side, side), bool)
    for i, (a, b) in enumerate(boxes):
        grid[2 * i, a:b, side // 4 : side - step] = True
        grid[2 * i + 1, side // 4 : side - step, a:b] = True
    for redrawn in (grid, ~grid):
        kept = kept_tokens(tiny_config(patch_nums=patch_nums), redrawn)
        wanted = [(torch_resized(~redrawn, p) > 0.5).reshape(len(redrawn), -1) for p in patch_nums]
        wanted[0][:] = True
        np.testing.assert_array_equal(kept, np.concatenate(wanted, axis=1))


@settings(deadline=None)
@given(grids())
def test_the_last_scale_is_the_mask_itself_and_the_first_is_kept(grid):
    side = grid.shape[-1]
    sides = tuple(p for p in OF_512 if p < side)
    if not sides:
        return
    config = tiny_config(patch_nums=(*sides, side))
    kept = kept_tokens(config, grid)
    assert kept[:, 0].all()
    np.testing.assert_array_equal(kept[:, config.scale_slice(len(sides))].reshape(grid.shape), ~grid)


def test_a_scale_of_four_tokens_is_not_kept_whole():
    config = tiny_config(patch_nums=(2, 4))
    assert not kept_tokens(config, np.ones((1, 4, 4), bool)).any()


@pytest.mark.parametrize("inpainting", [True, False])
def test_boxes_are_rounded_as_in_the_reference(inpainting):
    """`get_edit_mask` with y0=0.1, x0=0.3, y1=0.8, x1=0.9, and edges on .5, which Python rounds to even."""
    grid = boxes_to_grid([(0.3, 0.1, 0.9, 0.8)], 16)
    wanted = np.zeros((16, 16), bool)
    wanted[2:13, 5:14] = True
    np.testing.assert_array_equal(grid, wanted)
    half = boxes_to_grid([(0.5 / 8, 1.5 / 8, 2.5 / 8, 3.5 / 8)], 8)
    assert (half.any(axis=0).nonzero()[0].tolist(), half.any(axis=1).nonzero()[0].tolist()) == ([0, 1], [2, 3])


def test_boxes_add_up():
    one, two = (0.0, 0.0, 0.25, 0.25), (0.5, 0.5, 1.0, 1.0)
    np.testing.assert_array_equal(boxes_to_grid([one, two], 8), boxes_to_grid([one], 8) | boxes_to_grid([two], 8))
    assert not boxes_to_grid([], 8).any()


def test_a_cell_is_redrawn_where_half_its_pixels_are():
    pixels = np.zeros((8, 8), bool)
    pixels[:4, :2] = True  # half of the first cell
    pixels[4:, 4:5] = True  # a quarter of the last
    assert pixels_to_grid(pixels, 2).tolist() == [[True, False], [False, False]]
    np.testing.assert_array_equal(pixels_to_grid(pixels, 8), pixels)
    assert pixels_to_grid(np.stack([pixels, ~pixels]), 2).tolist()[1] == [[True, True], [True, True]]


def test_nothing_and_everything_are_no_edit():
    grid = np.zeros((2, 4, 4), bool)
    grid[:, 0, 0] = True
    check_area(grid)
    with pytest.raises(UsageError, match="the area is empty"):
        check_area(np.stack([grid[0], np.zeros((4, 4), bool)]))
    with pytest.raises(UsageError, match="the area is the whole"):
        check_area(np.stack([grid[0], np.ones((4, 4), bool)]))
