"""A manifest is plain facts: it goes to JSON and back without any file of the bundle."""

import json

import numpy as np
import pytest

from engines.bundle.bundle import DEMO_BUNDLE
from engines.bundle.manifest import ALIGNMENT, BuildFigures, Manifest, sealed
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
    manifest = Manifest.from_dict(sealed(document | {"smooth": smooth, "max_top_k": 7}), "here")
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
        "smooth",
        "plans",
        "figures",
    ],
)
def test_what_is_missing_is_one_line_that_names_it_and_the_source(document, key):
    del document[key]
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(sealed(document), "some/manifest.json")
    message = str(caught.value)
    assert message.startswith("some/manifest.json is damaged (") and key in message
    assert message.endswith("build the bundle again")
    assert "\n" not in message


@pytest.mark.parametrize("change", [{"schema": 99}, {"contract": 0}])
def test_of_another_version(document, change):
    with pytest.raises(BundleError, match="this version reads"):
        Manifest.from_dict(document | change, "here")


@pytest.mark.parametrize("changed", [("sampling", "cfg", 3.0), ("constants", "up_6", {}), ("labels", 3, "dog")])
def test_a_change_that_no_rule_forbids_is_seen_by_the_digest(document, changed):
    table, key, value = changed
    moved = isinstance(value, dict)
    if moved:  # the case that was found: a constant read from another place draws another picture
        value = document[table][key] | {"offset": document[table][key]["offset"] + ALIGNMENT}
    document[table][key] = value
    with pytest.raises(BundleError) as caught:
        Manifest.from_dict(document, "here")
    assert str(caught.value) == "here is not as it was written (its digest differs); copy it again, or build again"
    if not moved:
        Manifest.from_dict(sealed(document), "here")


def test_each_bit_of_a_manifest_counts(document):
    """Whatever bit of the file flips, it is no JSON, or no manifest, or its digest differs."""
    text = bytearray(json.dumps(document).encode())
    random = np.random.default_rng(0)
    for place in random.integers(0, len(text), 400):
        bit = 1 << int(random.integers(0, 8))
        text[place] ^= bit
        try:
            changed = json.loads(bytes(text))
        except ValueError:
            changed = document
        if changed != document and isinstance(changed, dict):
            with pytest.raises(BundleError):
                Manifest.from_dict(changed, "here")
        text[place] ^= bit


@pytest.mark.parametrize("by", [1, 4, 2048, 4096])
def test_constants_lie_at_pages_and_apart(document, by):
    """Whoever reseals a manifest still cannot have a constant read over the edge of another."""
    constants = document["constants"]
    last = max(constants, key=lambda name: constants[name]["offset"])
    constants[last]["offset"] -= by
    with pytest.raises(BundleError, match=r"begins at no multiple of 4096 bytes|two constants overlap"):
        Manifest.from_dict(sealed(document), "here")


def test_figures_are_finite(document):
    BuildFigures({"kl": 0.1}, {"kl": [0.1, 0.2]})
    for value in (float("nan"), float("inf"), 1, "1"):
        with pytest.raises(ValueError, match="figures must be finite numbers"):
            BuildFigures({}, {"kl": [value]})
