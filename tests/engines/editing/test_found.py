"""What boxes, found objects and masks cover together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.editing.canvas import Canvas
from engines.editing.found import Found, NothingFoundError, cells_of, chosen, grown, painter
from engines.errors import UsageError

CANVAS = Canvas(160, 80, 64, "stretch")
ALL_LEFT = np.array([[0, 0], [80, 0], [80, 80], [0, 80]], float)


def rows(grid):
    return ["".join("x" if cell else "." for cell in row) for row in grid]


def found(box, *outlines, **more):
    return Found(box, "dog", "16", paint=painter(outlines) if outlines else None, **more)


def test_boxes_objects_and_masks_add_up():
    mask = np.zeros((80, 160), bool)
    mask[60:, 120:] = True
    before = mask.copy()
    triangle = np.array([[0, 0], [160, 0], [0, 80]], float)
    grid = cells_of(CANVAS, 4, boxes=[(0, 60, 40, 80)], found=[found((120, 0, 160, 20))], mask=mask)
    assert rows(grid) == ["...x", "....", "....", "x..x"]
    assert rows(cells_of(CANVAS, 4, found=[found((0, 0, 160, 80), triangle)], mask=mask)) == [
        "xxxx",
        "xxx.",
        "xx..",
        "x..x",
    ]
    np.testing.assert_array_equal(mask, before)
    assert rows(cells_of(CANVAS, 2, mask=mask[::2, ::2])) == ["..", ".."]
    assert rows(cells_of(CANVAS, 4, mask=mask[::2, ::2], found=[found((0, 0, 80, 80), ALL_LEFT)])) == ["xx.."] * 3 + [
        "xx.x"
    ]


def test_an_outline_counts_and_its_box_does_not():
    thin = np.array([[0, 0], [160, 72], [160, 80], [0, 8]], float)
    assert cells_of(CANVAS, 4, found=[found((0, 0, 160, 80))]).all()
    assert not cells_of(CANVAS, 4, found=[found((0, 0, 160, 80), thin)]).all()


@pytest.mark.parametrize("grow", [40, 0.5])
def test_all_of_it_grows(grow):
    """By 40 pixels, which are half of the shorter side: a cell across, two down."""
    mask = np.zeros((80, 160), bool)
    mask[:20, :40] = True
    wanted = ["xx..", "xx..", "xx..", "...."]
    assert rows(cells_of(CANVAS, 4, mask=mask, grow=grow)) == wanted
    assert rows(cells_of(CANVAS, 4, boxes=[(0, 0, 40, 20)], grow=grow)) == wanted
    corner = np.array([[0, 0], [40, 0], [40, 20], [0, 20]], float)
    assert rows(cells_of(CANVAS, 4, found=[found((0, 0, 40, 20), corner)], grow=grow)) == wanted
    assert (
        rows(cells_of(CANVAS, 4, mask=mask))
        == rows(cells_of(CANVAS, 4, mask=mask, grow=1))
        == ["x...", "....", "....", "...."]
    )


@given(
    st.integers(0, 12).flatmap(lambda height: st.integers(0, 12).map(lambda width: (height, width))),
    st.integers(0, 30),
    st.integers(0, 99),
)
def test_grown_is_every_pixel_near_the_mask(shape, reach, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.1
    wanted = np.zeros(shape, bool)
    for y, x in np.argwhere(mask):
        wanted[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True
    before = mask.copy()
    np.testing.assert_array_equal(grown(mask, reach), wanted)
    np.testing.assert_array_equal(mask, before)


def test_objects_outside_of_the_square_are_left_out_unless_all_are():
    canvas = Canvas(160, 80, 64, "crop")
    outside, inside = found((0, 0, 30, 80)), found((40, 0, 80, 80))
    assert rows(cells_of(canvas, 2, found=[outside, inside])) == ["x.", "x."]
    for item in (outside, found((0, 0, 30, 80), ALL_LEFT)):
        with pytest.raises(UsageError, match="--fit pad"):
            cells_of(canvas, 2, found=[item])
    with pytest.raises(UsageError, match="--fit pad"):
        cells_of(canvas, 2, boxes=[outside.box], found=[inside])


def test_what_is_wanted_of_what_was_found():
    items = [Found((0, 0, 1, 1), "Dog", "16", 0.9), Found((0, 0, 1, 1), "cat", "15", 0.4)]
    assert chosen(items, "f", "a.jpg") == items
    assert chosen(items, "f", "a.jpg", objects=[" dog", "x"]) == chosen(items, "f", "a.jpg", score=0.5) == items[:1]
    assert chosen(items, "f", "a.jpg", objects=["15"], score=0.4) == items[1:]
    with pytest.raises(NothingFoundError, match=r"left of f: it has 2 of a\.jpg \(Dog, cat; scores up to 0\.9\)$"):
        chosen(items, "f", "a.jpg", objects=["bird"])
    with pytest.raises(NothingFoundError, match=r"it has 0 of a\.jpg$"):
        chosen([], "f", "a.jpg")
