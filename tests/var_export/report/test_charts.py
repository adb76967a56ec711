"""Charts as parts of a page: matplotlib's SVG, in the page's colours and with ids of its own."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from engines.errors import UsageError
from var_export.report.charts import bars, curves, drawn, near_the_top
from var_export.report.layers import plot_layers

SCALES = ("1", "2", "3")


def chart(name, **options):
    lines = {"one": (1e-3, 2e-3, 4e-3), "two": (1e-4, 2e-2, 4e-1)}
    return drawn(name, f"what {name} shows", curves(SCALES, lines, x="side", y="KL <in> nats", **options))


def test_is_one_image_with_words():
    root = ElementTree.fromstring(chart("kl", log=True, limit=("the limit", 0.02)))
    assert (root.tag, root.get("role"), root.get("aria-label")) == ("svg", "img", "what kl shows")
    texts = {element.text for element in root.iter("text")}
    assert {"1", "2", "3", "side", "KL <in> nats", "one", "two", "the limit", "10⁻²"} <= texts
    assert {"width", "height", "id"}.isdisjoint(root.keys())


@pytest.mark.slow
def test_colours_follow_the_page():
    svg = chart("kl", limit=("the limit", 0.02)) + drawn("b", "b", bars(("a",), (1.0,), ("one",), x="ms"))
    for variable in ("--s1", "--s2", "--bad", "--text", "--muted", "--grid", "--line"):
        assert f"var({variable})" in svg
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


@pytest.mark.slow
def test_ids_are_used_and_of_one_chart_alone():
    both = [str(chart(name)) for name in ("kl", "top")]
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in both]
    assert all(ids)
    assert set(ids[0]).isdisjoint(ids[1])
    for svg, known in zip(both, ids, strict=True):
        assert set(known) == set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg) and known)
        for target in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
            assert target in known


def test_nothing_of_it_holds_for_the_page():
    svg = chart("kl")
    for word in ("<style", "<metadata", "xmlns:", "http://purl", "<?xml", "<!DOCTYPE"):
        assert word not in svg


def test_is_drawn_alike_every_time():
    assert chart("kl", log=True) == chart("kl", log=True)


def test_values_that_a_scale_cannot_show_are_left_out():
    lines = {"one": (math.nan, 1e-3, math.inf)}
    assert "<path" in drawn("kl", "x", curves(SCALES, lines, x="x", y="y", log=True))
    lines = {"one": (math.nan,) * 3}
    assert "<svg" in drawn("kl", "x", curves(SCALES, lines, x="x", y="y", log=True, limit=("limit", 0.1)))


@pytest.mark.parametrize(("lowest", "ticks"), [(100.0, {"100 %", "99 %"}), (0.0, {"100 %", "0 %"})])
def test_shares_reach_from_the_lowest_to_all(lowest, ticks):
    def plot(figure, axes):
        curves(SCALES, {"one": (100, 100, lowest)}, x="x", y="y")(figure, axes)
        near_the_top(axes, lowest)

    assert ticks <= set(re.findall(r">([^<]+ %)<", drawn("n", "n", plot)))


def test_bars_have_their_labels_and_whiskers():
    plain = drawn("b", "b", bars(("cond", "1×1"), (1.0, 0.0), ("1.00", "0.00"), x="ms"))
    whiskers = drawn("b", "b", bars(("cond", "1×1"), (1.0, 0.0), ("1.00", "0.00"), x="ms", ends=([0, 0], [1, 2])))
    for word in (">cond<", ">1×1<", ">1.00<", ">0.00<", ">ms<"):
        assert word in plain
    assert len(re.findall("<path", whiskers)) > len(re.findall("<path", plain))


@pytest.mark.slow
def test_a_chart_is_written_whole_or_not_at_all(table, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    file = tmp_path / "deep" / "chart.svg"
    plot_layers(table, file, "$ not a formula")
    assert "$ not a formula" in file.read_text()
    before = file.read_bytes()

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(UsageError, match="No space left"):
        plot_layers(table, file, "again")
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["chart.svg"]
