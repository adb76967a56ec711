"""A manifest is plain facts: it goes to JSON and back without any file of the bundle."""

import json

import pytest

from engines.bundle.bundle import DEMO_BUNDLE
from engines.bundle.manifest import Manifest
from engines.errors import BundleError


def plain(manifest):
    """The document of a manifest, as a JSON file would give it back."""
    return json.loads(json.dumps(manifest.to_dict()))


@pytest.fixture
def document():
    return plain(Manifest.read(DEMO_BUNDLE))


def test_there_and_back(document):
    manifest = Manifest.from_dict(document, "here")
    assert manifest == Manifest.read(DEMO_BUNDLE)
    assert plain(manifest) == document


@pytest.mark.parametrize("smooth", [False, True])
def test_a_change_survives(document, smooth):
    manifest = Manifest.from_dict(document | {"smooth": smooth, "max_top_k": 7}, "here")
    assert (manifest.smooth, manifest.max_top_k) == (smooth, 7)
    assert Manifest.from_dict(plain(manifest), "there") == manifest


@pytest.mark.parametrize(
    "key",
    [
        "name",
        "model",
        "precision",
        "form",
        "target",
        "max_top_k",
        "sampling",
        "labels",
        "build_key",
        "files",
        "constants",
    ],
)
def test_what_is_missing_is_one_line_that_names_it_and_the_source(document, key):
    del document[key]
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(document, "some/manifest.json")
    message = str(caught.value)
    assert message.startswith("some/manifest.json is damaged (") and key in message
    assert message.endswith("build the bundle again")
    assert "\n" not in message


@pytest.mark.parametrize("change", [{"schema": 99}, {"contract": 0}])
def test_of_another_version(document, change):
    with pytest.raises(BundleError, match="this version reads"):
        Manifest.from_dict(document | change, "here")
