"""A bundle that is replaced while it is open: what was opened stays what it was, and what opens next is the new one."""

import threading
import time

import numpy as np
import onnxruntime
import pytest
from support import as_links, copy_bundle, refused, reseal

from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle, default_bundle
from engines.bundle.manifest import Manifest
from engines.bundle.writer import BundleWriter
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError, BundleError
from tests.bundles import shared_bundle

IN_MEMORY = hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory")
"""Whether this ONNX Runtime (from 1.24 on) can read what a name does not lead to any more."""
OPEN_AGAIN = "was replaced since it was opened, and ONNX Runtime"


@pytest.fixture(scope="module")
def first():
    return shared_bundle("tiny-fp32")


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    """The same model with other weights, in the same places and sizes: only what it computes tells it apart."""
    folder = copy_bundle(first, tmp_path_factory.mktemp("second") / "bundle")
    weights = np.fromfile(folder / "weights.bin", np.float32)
    (0.5 * weights).tofile(folder / "weights.bin")
    reseal(folder)
    return folder


def publish(source, target):
    """Put a copy of a bundle in the place of another, as a build does."""
    manifest = Manifest.read(source)
    with BundleWriter(target) as writer:
        for name in manifest.files:
            (writer.folder / name).write_bytes((source / name).read_bytes())
        writer.seal(manifest)
        writer.publish()


def drawn(pipeline):
    """Everything that a pipeline gives, each by another graph."""
    image = pipeline.generate([1], seeds=3)
    return np.concatenate(
        [
            image.tokens.ravel(),
            image.images.ravel(),
            pipeline.encode(image.images).ravel(),
            pipeline.decode(image.tokens).ravel(),
        ]
    )


def of(path, **options):
    with Pipeline(Bundle.open(path), OnnxRuntimeBackend(threads=1), **options) as pipeline:
        return drawn(pipeline)


@pytest.fixture(scope="module")
def wanted(first, second):
    found = {"first": of(first), "second": of(second)}
    assert not np.array_equal(*found.values())
    return found


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_opened_late_is_of_the_bundle_that_was_opened(first, second, wanted, tmp_path, verify):
    place = copy_bundle(first, tmp_path / "bundle")
    bundle = Bundle.open(place, verify=verify)
    if not IN_MEMORY:
        publish(second, place)
        refused(lambda: Pipeline(bundle, OnnxRuntimeBackend(threads=1)), OPEN_AGAIN, "1.24", kind=BackendError)
        return
    with Pipeline(bundle, OnnxRuntimeBackend(threads=1)) as pipeline:  # constants, encode and accumulate come later
        publish(second, place)
        assert np.array_equal(drawn(pipeline), wanted["first"])
        golden, constants = bundle.golden, {name: bundle.constant(name) for name in bundle.constants}
    with Pipeline(bundle, OnnxRuntimeBackend(threads=1)) as pipeline:  # all graphs come later
        assert np.array_equal(drawn(pipeline), wanted["first"])
    assert np.array_equal(of(place), wanted["second"])
    same = Bundle.open(first)
    assert all(np.array_equal(golden[name], same.golden[name]) for name in golden)
    assert all(np.array_equal(constants[name], same.constant(name)) for name in constants)
    refused(lambda: bundle.graph_path("step"), "was replaced since it was opened", kind=BundleError)


@pytest.mark.slow
def test_drawing_while_bundles_are_published(first, second, wanted, tmp_path):
    """Eight threads load and draw while two bundles take each other's place: each picture is of one of them, whole."""
    place = copy_bundle(first, tmp_path / "bundle")
    seen, problems, done = [], [], threading.Event()

    def draw():
        while not (done.is_set() or problems):
            try:
                found = of(place)
                seen.append(next(name for name, values in wanted.items() if np.array_equal(found, values)))
            except Exception as error:
                if IN_MEMORY or OPEN_AGAIN not in str(error):
                    problems.append(error)

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    end, publications = time.monotonic() + 60, 0
    while time.monotonic() < end and not problems and not (publications >= 16 and set(seen) == set(wanted)):
        for source in (second, first):
            publish(source, place)
        publications += 2
    done.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert set(seen) == set(wanted)


def test_a_build_that_died_between_its_two_renames_leaves_a_bundle_that_is_found(first, tmp_path, monkeypatch):
    place = copy_bundle(first, tmp_path / "bundles" / "mine")
    place.rename(place.parent / ".mine.previous")
    copy_bundle(first, place.parent / ".mine.partial")
    assert Bundle.open(place).files == Bundle.open(first).files
    monkeypatch.chdir(tmp_path)
    assert Bundle.open(default_bundle()[0]).files == Bundle.open(first).files
    publish(first, place)
    assert sorted(path.name for path in place.parent.iterdir()) == ["mine"]


def test_a_bundle_of_links_draws(first, wanted, tmp_path):
    """As model hubs keep their caches: each file a link to one that is named by its content."""
    assert np.array_equal(of(as_links(first, tmp_path)), wanted["first"])
