import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engines.editing.canvas import Canvas, feathered
from engines.errors import UsageError
from engines.pictures.images import load_picture, load_square, save_picture
from engines.spec.choices import FITS

ROOT = Path(__file__).parents[3]
EDIT = """
import resource, sys
import numpy as np
from pathlib import Path
from engines.editing.canvas import Canvas
from engines.pictures.images import load_mask, load_picture

picture = load_picture(Path(sys.argv[1]))
canvas = Canvas(12000, 2500, 256, sys.argv[2])
square = canvas.to_square(picture)
redrawn = canvas.grid_of_mask(load_mask(Path(sys.argv[1])), 16)
redrawn[5:9] = True
canvas.lay_over(picture, square, redrawn)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def cells(*rows):
    return np.array([[letter == "x" for letter in row] for row in rows])


@pytest.mark.parametrize(
    ("fit", "window"), [("crop", (10, 0, 20, 20)), ("stretch", (0, 0, 41, 20)), ("pad", (0, -10, 41, 41))]
)
def test_what_the_square_shows(fit, window):
    assert Canvas(41, 20, 64, fit).window == window
    left, top, width, height = window
    assert Canvas(20, 41, 64, fit).window == (top, left, height, width)


def test_crop_is_what_reconstruct_encodes(tmp_path):
    save_picture(tmp_path / "a.png", noise(50, 31), {})
    picture = load_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(Canvas(50, 31, 16, "crop").to_square(picture), load_square(tmp_path / "a.png", 16))


def test_pad_repeats_the_edges():
    picture = noise(8, 4)
    square = Canvas(8, 4, 8, "pad").to_square(picture)
    np.testing.assert_array_equal(square[2:6], picture)
    assert (square[:2] == picture[0]).all()
    assert (square[6:] == picture[-1]).all()


@pytest.mark.slow
def test_padding_a_wide_photo_takes_little_more_memory_than_cropping_it(tmp_path):
    """A square of its longer side would have 4.8 times its pixels."""
    save_picture(tmp_path / "wide.jpg", np.tile(noise(120, 25), (100, 100, 1)), {})

    def peak(fit):
        command = [sys.executable, "-c", EDIT, tmp_path / "wide.jpg", fit]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert peak("pad") <= 1.2 * peak("crop")


def test_stretch_keeps_all_of_it():
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = 255
    square = Canvas(80, 40, 16, "stretch").to_square(picture)
    assert square.shape == (16, 16, 3)
    assert (square[:, :5] == 0).all()  # the seam rings a little
    assert (square[:, 11:] == 255).all()


@pytest.mark.parametrize(
    ("fit", "columns", "rows"),
    [("crop", range(2), range(2, 4)), ("stretch", range(1, 2), range(2, 4)), ("pad", [1], [2])],
)
def test_a_box_lands_where_its_pixels_do(fit, columns, rows):
    """The second fourth of a wide picture, lower half."""
    grid = Canvas(80, 40, 32, fit).grid_of_boxes([(20, 20, 40, 40)], 4)
    assert grid.any(axis=0).nonzero()[0].tolist() == list(columns)
    assert grid.any(axis=1).nonzero()[0].tolist() == list(rows)


@pytest.mark.slow
@settings(deadline=None)
@given(width=st.integers(16, 90), height=st.integers(16, 90), fit=st.sampled_from(FITS), seed=st.integers(0, 999))
def test_a_mask_of_a_box_is_that_box_but_for_its_edge(width, height, fit, seed):
    """A cell may have half its width and half its height in a box, and yet not half its area."""
    canvas = Canvas(width, height, 64, fit)
    random = np.random.default_rng(seed)
    x0, y0 = random.integers(0, width // 2), random.integers(0, height // 2)
    x1, y1 = random.integers(width // 2 + 4, width + 1), random.integers(height // 2 + 4, height + 1)
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    assume(min(x1 - x0, y1 - y0) >= max(canvas.window[2:]) / 8)  # a smaller box may fall between two edges of cells
    both = canvas.grid_of_mask(mask, 8), canvas.grid_of_boxes([(x0, y0, x1, y1)], 8)
    grown = np.pad(both[1], 1)
    near = sum(grown[i : i + 8, j : j + 8].astype(int) for i in range(3) for j in range(3))
    assert (both[0] == both[1])[(near == 0) | (near == 9)].all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(160, 80), (80, 160), (64, 64)])
def test_a_mask_of_whole_cells_is_those_cells(size, fit):
    width, height = size
    canvas = Canvas(width, height, 64, fit)
    x0, x1, y0, y1 = width // 4, width * 3 // 4, height // 2, height * 3 // 4
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    grid = canvas.grid_of_mask(mask, 8)
    np.testing.assert_array_equal(grid, canvas.grid_of_boxes([(x0, y0, x1, y1)], 8))
    assert 0 < grid.sum() < 64


def test_a_mask_of_half_the_size_is_the_same_and_of_other_proportions_refused():
    canvas = Canvas(80, 40, 64, "pad")
    mask = np.zeros((40, 80), bool)
    mask[20:, 20:60] = True
    np.testing.assert_array_equal(canvas.grid_of_mask(mask, 8), canvas.grid_of_mask(mask[::2, ::2], 8))
    with pytest.raises(UsageError, match="the mask has 40 x 40 pixels and the picture 80 x 40"):
        canvas.grid_of_mask(mask[:, :40], 8)


def test_a_box_that_the_square_does_not_show_is_refused():
    with pytest.raises(
        UsageError, match="the box 0,0,10,40 lies outside of the 40 x 40 pixels in the middle: --fit pad"
    ):
        Canvas(80, 40, 64, "crop").grid_of_boxes([(0, 0, 10, 40)], 8)


def test_the_feather_lies_outside_of_what_was_redrawn():
    redrawn = cells("....", ".xx.", "....", "...x")
    alpha = feathered(redrawn, 64)
    own = np.kron(redrawn, np.ones((16, 16), bool))
    assert (alpha[own] == 1).all()
    assert ((alpha > 0) & (alpha < 1)).any()
    assert (alpha[:, :8] == 0).all()  # half a cell away
    row = alpha[24, 8:17]
    assert (np.diff(row) >= 0).all()
    assert 0 < row[0] < 0.2


@pytest.mark.slow
@settings(deadline=None)
@given(
    width=st.integers(5, 150),
    height=st.integers(5, 150),
    fit=st.sampled_from(FITS),
    seed=st.integers(0, 999),
)
def test_laid_over_the_original_only_what_was_redrawn_changes(width, height, fit, seed):
    canvas = Canvas(width, height, 64, fit)
    picture = noise(width, height, seed)
    square = 255 - canvas.to_square(picture)
    redrawn = np.zeros((8, 8), bool)
    redrawn[2:5, 3:6] = True
    result = canvas.lay_over(picture, square, redrawn)
    assert result.shape == picture.shape
    assert result.dtype == np.uint8
    left, top, w, h = canvas.window
    # In cells, of each pixel's nearer and farther edge; a pixel of the picture may cover several of the square.
    spread = max(8 / w, 8 / h)
    x, y = (np.arange(width) + 0.5 - left) * 8 / w, (np.arange(height) + 0.5 - top) * 8 / h
    far = (np.abs(x - 4.5) > 2 + 2 * spread)[None] | (np.abs(y - 3.5) > 2 + 2 * spread)[:, None]
    np.testing.assert_array_equal(result[far], picture[far])


def test_at_the_models_size_redrawn_cells_are_the_models_pixels():
    picture, square = noise(64, 64), noise(64, 64, 1)
    redrawn = cells("x...", "....", "..xx", "..xx")
    result = Canvas(64, 64, 64, "crop").lay_over(picture, square, redrawn)
    own = np.kron(redrawn, np.ones((16, 16), bool))
    np.testing.assert_array_equal(result[own], square[own])
    kept = np.kron(cells("..xx", "..xx", "xx..", "xx.."), np.ones((16, 16), bool))
    kept[:, 24:40] = kept[24:40] = False  # within half a cell
    np.testing.assert_array_equal(result[kept], picture[kept])


@pytest.mark.parametrize("tall", [False, True])
def test_where_the_picture_goes_on_the_edge_is_blended(tall):
    size = (64, 128) if tall else (128, 64)
    picture, square = np.zeros((size[1], size[0], 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    redrawn = cells("xx", "..")
    result = Canvas(*size, 64, "crop").lay_over(picture, square, redrawn.T if tall else redrawn)[..., 0].astype(int)
    result = result.T if tall else result
    assert (result[:, :32] == 0).all()
    assert (result[:, 96:] == 0).all()
    assert np.abs(np.diff(result[10])).max() < 20
    assert (result[:32, 48:80] == 255).all()  # the top is an edge of the picture too: nothing to blend with


@pytest.mark.parametrize(
    ("canvas", "says"),
    [
        (Canvas(64, 64, 64, "pad"), "a has 64 x 64 pixels: edited at 64 x 64"),
        (Canvas(80, 60, 64, "crop"), "the square of 60 x 60 in its middle is edited"),
        (Canvas(80, 60, 64, "stretch"), "squeezed to a square"),
        (Canvas(80, 60, 64, "pad"), "its edges repeated to a square"),
    ],
)
def test_what_is_done_is_said(canvas, says):
    assert says in canvas.describe("a")
