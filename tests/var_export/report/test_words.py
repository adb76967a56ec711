import math

import pytest

from var_export.report import words

GAP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00144, "0.00144"),
        (0.0009996, "0.00100"),
        (12.3456, "12.3"),
        (999.96, "1,000"),
        (108987.0, "109,000"),
        (3.56e-8, "3.56 × 10⁻⁸"),
        (-2.5e9, "-2.50 × 10⁹"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert words.number(value).replace(GAP, " ") == text


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100.00 %"), (0.999999, "99.99 %"), (0.9935, "99.35 %"), (math.nan, "–")]
)
def test_a_share_is_all_only_where_it_is(share, text):
    assert words.percent(share) == text.replace(" ", GAP)


def test_an_ssim_is_1_only_where_it_is():
    assert (words.similarity(1.0), words.similarity(0.99999), words.similarity(0.5)) == ("1.0000", "0.9999", "0.5000")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.08, "8.08 s"), (0.1312, "131 ms"), (0.0982, "98.2 ms"), (0.00519, "5.19 ms"), (0.000114, "0.11 ms")],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text.replace(" ", GAP)


@pytest.mark.parametrize(
    ("value", "text"), [(0.02, "0.02"), (1e-6, "10⁻⁶"), (5e-7, "5 × 10⁻⁷"), (8.0, "8"), (0.0, "0"), (5e-3, "0.005")]
)
def test_thresholds_are_as_they_were_chosen(value, text):
    assert words.rounded(value) == text.replace(" ", GAP)


def test_ticks_are_powers_of_ten():
    assert [words.scientific(value).replace(GAP, " ") for value in (0.01, 2e-3, 1.0)] == ["10⁻²", "2 × 10⁻³", "10⁰"]


def test_phrases():
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(["a"]) == "a"
    assert words.decibels(math.inf) == "identical pixels"
    sizes = [words.size(count).replace(GAP, " ") for count in (6023, 1 << 20, 5 << 30)]
    assert sizes == ["5.9 KiB", "1.0 MiB", "5.00 GiB"]
