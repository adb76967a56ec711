"""Boxes as typed."""

import pytest

from engines.editing.boxes import parse_box
from engines.errors import UsageError


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("10,20,50,60", (10, 20, 50, 60)),
        (" 10, 20,50 ,60.5", (10, 20, 50, 60.5)),
        ("0,0.25,0.5,1", (0, 20, 50, 80)),
        ("0,0,1,1", (0, 0, 100, 80)),
        ("-10,-10,5,200", (0, 0, 5, 80)),
    ],
)
def test_a_box_in_pixels_or_fractions(text, box):
    assert parse_box(text, 100, 80) == box


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2,3", "not four numbers"),
        ("a,b,c,d", "not four numbers"),
        ("", "not four numbers"),
        ("nan,0,1,1", "has no area"),
        ("0,0,inf,1", "has no area"),
        ("50,20,10,60", "x0 must be below x1"),
        ("10,60,50,60", "y0 below y1"),
        ("100,0,200,80", "outside of the picture, which has 100 x 80"),
        ("-5,-5,0,0", "outside"),
    ],
)
def test_a_box_that_is_none(text, says):
    with pytest.raises(UsageError, match=says):
        parse_box(text, 100, 80)
