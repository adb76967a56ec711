"""What the folders of integrations say of themselves: links, lengths, and nothing of the machine they come from."""

from __future__ import annotations

import re

import pytest

from tests.kept import ROOT

FOLDERS = ROOT / "integrations"
PAGES = sorted(FOLDERS.glob("*/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_files_are_short_and_free_of_host_paths():
    files = [file for file in FOLDERS.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert len(files) > 10
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 350, file
        assert [line for line in lines if len(line) > 140] == [], file
        assert not re.search(r"/(work|home|root|tmp)/", "\n".join(lines)), file


def test_the_page_links_each_of_them():
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    assert [each.name for each in FOLDERS.iterdir() if f"](../integrations/{each.name}" not in page] == []
