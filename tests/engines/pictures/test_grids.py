import numpy as np
import pytest

from engines.errors import UsageError
from engines.pictures.grids import PADDING, Layout, grid, strip

RED, GREEN, BLUE, WHITE = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


def plain(colour, size=4):
    return np.full((size, size, 3), colour, np.uint8)


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (5, (2, 3)), (9, (3, 3)), (10, (3, 4))]
)
def test_grids_are_near_square(count, shape):
    assert Layout().shape(count) == shape


def test_a_grid_has_the_columns_that_it_was_told():
    assert Layout(5).shape(12) == (3, 5)
    assert grid([plain(RED)] * 6, 6, Layout(2)).shape == (3 * 6 + 2, 2 * 6 + 2, 3)


def test_grid_pixels():
    picture = grid(iter([plain(RED), plain(GREEN), plain(BLUE)]), 3)
    assert picture.shape == (2 * (4 + PADDING) + PADDING, 2 * (4 + PADDING) + PADDING, 3)
    assert picture.dtype == np.uint8
    for (top, left), colour in {(2, 2): RED, (2, 8): GREEN, (8, 2): BLUE, (8, 8): WHITE}.items():
        assert (picture[top : top + 4, left : left + 4] == colour).all()
    for line in (0, 1, 6, 7, 12, 13):
        assert (picture[line] == 255).all()
        assert (picture[:, line] == 255).all()


def test_labels_lie_around_the_images_and_cover_none():
    images = [plain(colour, 40) for colour in (RED, GREEN, BLUE, RED)]
    bare = grid(images, 4, Layout(2))
    picture = grid(images, 4, Layout(2, ("cfg 1", "a long label that breaks"), ("parrot, seed 0", "parrot, seed 1")))
    top, left = (picture.shape[axis] - bare.shape[axis] for axis in (0, 1))
    assert top > 20
    assert left > 40
    np.testing.assert_array_equal(picture[top:, left:], bare)
    above, beside = picture[:top, left:], picture[top:, :left]
    for half in (above[:, :42], above[:, 42:], beside[:42], beside[42:]):
        assert (half < 128).any()
    assert (picture[:top, :left] == 255).all()
    lone = grid(images, 4, Layout(2, ("1", "2")))
    assert lone.shape[1] == bare.shape[1]


def test_a_strip_is_one_row():
    picture = strip([plain(RED), plain(GREEN), plain(BLUE)], 3)
    assert picture.shape == (8, 20, 3)
    assert [tuple(picture[4, x]) for x in (3, 9, 15)] == [RED, GREEN, BLUE]


def test_a_grid_that_no_program_opens_is_refused():
    Layout().check(1000, 256)
    with pytest.raises(UsageError, match=r"a grid of 50000 images.*up to"):
        Layout().check(50_000, 256)
