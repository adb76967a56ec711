"""A page is one file that needs nothing else, says what it is told, and is written whole or not at all."""

import dataclasses
import os
import re
from pathlib import Path

import pytest

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from tests.var_export.report.reading import NASTY, Reader
from var_export.report import page
from var_export.report.verify import write_verify


def all_of(pages):
    return [getattr(pages, name) for name in pages.__dataclass_fields__]


@pytest.mark.slow
def test_nothing_points_outside(pages):
    for file in all_of(pages):
        read = Reader(file)
        assert read.open == []
        assert [link for link in read.links if not link.startswith(("data:", "#"))] == []
        assert {"script", "iframe", "object", "embed", "base", "form"}.isdisjoint(read.tags)
        assert not re.search(r"@import|url\((?!#)", read.source)
        assert "default-src 'none'" in read.source
        assert len(read.ids) == len(set(read.ids))
        assert file.stat().st_size < page.MAX_BYTES


@pytest.mark.slow
def test_pictures_have_words(pages):
    images = Reader(pages.verify).images
    assert len(images) == 16
    alternatives = [image["alt"] for image in images]
    assert all(alternatives)
    assert len(set(alternatives)) == 16


@pytest.mark.slow
def test_text_is_escaped(pages, stepwise):
    read = Reader(pages.verify)
    assert any(name in read.words for name in NASTY)
    assert "<script>alert" not in read.source


def test_bytes_that_are_no_text(tmp_path, stepwise):
    odd = os.fsdecode(b"bundles/\xff<i>&'\"")
    bundle = Bundle(Path(odd), stepwise.bundle.manifest, stepwise.bundle.held)
    command = ["var-export", "verify", odd]
    write_verify(tmp_path / "p.html", dataclasses.replace(stepwise, bundle=bundle, command=command))
    read = Reader(tmp_path / "p.html")
    assert "bundles/\N{REPLACEMENT CHARACTER}<i>&'\"" in read.words
    assert "i" not in read.tags


def test_a_page_that_would_be_too_large_is_not_written(tmp_path, stepwise, monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 20_000)
    with pytest.raises(UsageError, match=r"p\.html would have [\d,]+ bytes, more than 20,000"):
        write_verify(tmp_path / "p.html", stepwise)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_page_leaves_the_old_one(tmp_path, stepwise, monkeypatch):
    file = tmp_path / "deep" / "p.html"
    write_verify(file, stepwise)
    before = file.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)  # when all is written, and nothing has its name yet
    with pytest.raises(KeyboardInterrupt):
        write_verify(file, stepwise)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["p.html"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, stepwise):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_verify(tmp_path / "file" / "p.html", stepwise)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("pair by pair 0.46 to 0.67", "pair by pair 0.46 to 0.67"),
        ("onnxruntime 1.31.1, torch 2.13.0+cpu", "onnxruntime 1.31.1, torch 2.13.0+cpu"),
        ("decode/up.0.block.2.conv2", "decode/|up.|0.|block.|2.|conv2"),
        ("bundles/var_d16.pth", "bundles/|var_|d16.|pth"),
        ("a & b/<c>", "a &amp; b/&lt;c&gt;"),
        ("0123456789abcdef" * 2, "0123456789abcdef|0123456789abcdef"),
    ],
)
def test_lines_may_break_in_names_but_not_in_numbers(text, broken):
    assert str(page._breakable(text)) == broken.replace("|", "<wbr>")
