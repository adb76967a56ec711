"""Bundles of the Hugging Face Hub, against a stand-in of it on this machine."""

import numpy as np
import pytest
from support import copy_bundle, refused

pytest.importorskip("huggingface_hub")

from engines.bundle.bundle import DEMO_BUNDLE, Bundle, is_hub_bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BundleError, UsageError
from engines.hub import HubFile, parse_hub_folder
from tests.hub_server import COMMIT


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("hf://owner/repo", HubFile("owner/repo", "")),
        ("hf://owner/repo/", HubFile("owner/repo", "")),
        ("hf://owner/repo@v1/a/b/", HubFile("owner/repo", "a/b", "v1")),
    ],
)
def test_names_of_folders(name, folder):
    assert parse_hub_folder(name) == folder


def test_a_name_without_a_repository():
    refused(lambda: Bundle.open("hf://owner"), "write hf://owner/repo", kind=UsageError)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", "/bundles/demo", "@v1/bundles/demo"])
def test_a_bundle_of_the_hub_draws(hub, place):
    copy_bundle(DEMO_BUNDLE, hub.root / "owner/repo" / place.partition("/")[2])
    with Pipeline.from_pretrained(f"hf://owner/repo{place}") as pipeline:
        drawn = pipeline.generate(88)
    with Pipeline.load(DEMO_BUNDLE) as pipeline:
        np.testing.assert_array_equal(drawn.images, pipeline.generate(88).images)
    asked = [line.split("/resolve/")[1] for line in hub.requests if line.startswith("GET")]
    assert asked[0].endswith("manifest.json")
    assert all(line.startswith(COMMIT) for line in asked[1:])
    before = len([line for line in hub.requests if line.startswith("GET")])
    Bundle.open(f"hf://owner/repo{place}")
    assert len([line for line in hub.requests if line.startswith("GET")]) == before  # the cache has all of it


def test_a_bundle_of_the_hub_is_known_by_its_manifest(hub):
    copy_bundle(DEMO_BUNDLE, hub.root / "owner/repo/demo")
    (hub.root / "owner/repo/var_d16.pth").write_bytes(b"a")
    assert is_hub_bundle("hf://owner/repo/demo")
    assert not is_hub_bundle("hf://owner/repo")
    asked = len(hub.requests)
    assert not is_hub_bundle("hf://owner/repo/var_d16.pth")
    assert not is_hub_bundle("hf://owner")
    assert len(hub.requests) == asked


def test_what_is_no_bundle_on_the_hub_is_one_line(hub):
    (hub.root / "owner/repo").mkdir(parents=True)
    refused(lambda: Bundle.open("hf://owner/repo"), "has no file manifest.json", kind=BundleError)
    copy_bundle(DEMO_BUNDLE, hub.root / "owner/half")
    (hub.root / "owner/half/weights.bin").unlink()
    refused(lambda: Bundle.open("hf://owner/half"), "has no file weights.bin", kind=BundleError)
