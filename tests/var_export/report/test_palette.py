"""WCAG 2.2: text 4.5:1 (1.4.3), marks of charts 3:1 (1.4.11), on both backgrounds of both schemes."""

import pytest

from var_export.report.palette import DARK, LIGHT, SERIES

TEXT = ("text", "muted", "good", "bad", "link")


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_measure():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(scheme):
    for back in ("page", "surface"):
        for name in TEXT:
            assert contrast(scheme[name], scheme[back]) >= 4.5, (name, back)
        for number in range(len(SERIES)):
            assert contrast(scheme[f"s{number + 1}"], scheme[back]) >= 3, (number, back)


def test_colours_of_charts_tell_which_variable_they_are():
    assert len(set(LIGHT.values())) == len(LIGHT)
    assert LIGHT.keys() == DARK.keys()
