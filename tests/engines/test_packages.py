"""The command that adds extras works from wherever this was installed."""

import json
from importlib import metadata

import pytest

from engines import packages


class Distribution:
    def __init__(self, record):
        self.record = record

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.record


@pytest.fixture
def said(monkeypatch):
    def of(record):
        packages._origin.cache_clear()
        text = record if record is None or isinstance(record, str) else json.dumps(record)
        monkeypatch.setattr(metadata, "distributions", lambda **_: iter([Distribution(None), Distribution(text)]))
        return packages.install_command("cpu", "int8")

    yield of
    packages._origin.cache_clear()


def test_a_clone(said, tmp_path):
    folder = tmp_path / "my clone"
    folder.mkdir()
    assert said({"url": folder.as_uri(), "dir_info": {}}) == f'pip install "{folder}[cpu,int8]"'
    assert said({"url": folder.as_uri(), "dir_info": {"editable": True}}) == f'pip install -e "{folder}[cpu,int8]"'


def test_an_archive(said, tmp_path):
    wheel = tmp_path / "var_export-0.1.0-py3-none-any.whl"
    wheel.touch()
    local, remote = wheel.as_uri(), "https://example.org/var_export-0.1.0-py3-none-any.whl"
    for url in (local, remote):
        assert said({"url": url, "archive_info": {}}) == f'pip install "var-export[cpu,int8] @ {url}"'


@pytest.mark.parametrize(
    "record",
    [None, "", "{", "[]", {"url": "file:///no/where", "dir_info": {}}, {"url": "file:///no/where.whl"}],
)
def test_an_index_and_what_is_gone(said, record, monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    assert said(record) == 'pip install "var-export[cpu,int8]"'
    (tmp_path / "pyproject.toml").touch()
    assert said(record) == f'pip install "{tmp_path}[cpu,int8]"'  # a clone that no pip has seen


def test_no_metadata(monkeypatch, tmp_path):
    packages._origin.cache_clear()
    monkeypatch.setattr(metadata, "distributions", lambda **_: iter(()))
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    assert packages.install_command("cpu") == 'pip install "var-export[cpu]"'
    packages._origin.cache_clear()
