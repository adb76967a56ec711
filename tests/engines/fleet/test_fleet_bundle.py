"""A bundle on its way to a node, and the real model drawn there, on Ray."""

import pytest
from fleet_jobs import SETTINGS
from support import copy_bundle

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BundleError, CheckFailedError
from engines.files.drawing import draw_items
from engines.files.jobs import make_job
from engines.fleet import bundles
from engines.fleet.bundles import BundlePieces, files_of, received, seen_at
from engines.fleet.hands import Staffing
from engines.fleet.pool import Fleet
from engines.fleet.worker import FleetWorker, WorkOrder
from engines.storage import cache_folder


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/var-export/bundles"


@pytest.fixture
def digest():
    return Bundle.open(DEMO_BUNDLE).digest


def pieces():
    """As the object store has them, where bytes are references of themselves."""
    return BundlePieces(DEMO_BUNDLE, bytes).references


def test_a_bundle_arrives_whole_in_pieces_and_only_once(cache, digest, monkeypatch):
    monkeypatch.setattr(bundles, "PIECE", 1 << 20)
    sent, got = pieces(), []
    assert sum(map(len, sent.values())) > len(sent)
    folder = received(sent, digest, lambda piece: got.append(1) or piece)
    assert folder == cache / digest
    manifest = Bundle.open(folder).manifest
    assert all((folder / name).read_bytes() == (DEMO_BUNDLE / name).read_bytes() for name in files_of(manifest))
    before = len(got)
    assert received(sent, digest, lambda piece: got.append(1) or piece) == folder
    assert len(got) == before
    assert [path.name for path in cache.iterdir()] == [digest]


def test_a_damaged_copy_in_the_cache_is_fetched_again(cache, digest):
    folder = received(pieces(), digest, bytes)
    with (folder / "weights.bin").open("r+b") as file:
        file.seek(5000)
        file.write(b"damaged")
    assert seen_at("nowhere", digest) is None
    assert received(pieces(), digest, bytes) == folder
    assert seen_at("nowhere", digest) == folder


def test_what_arrives_damaged_never_counts(cache, digest):
    with pytest.raises(BundleError, match="SHA-256"):
        received(pieces(), digest, lambda piece: bytes(len(piece)) if len(piece) > 10**6 else piece)
    assert seen_at("nowhere", digest) is None
    assert received(pieces(), digest, bytes) == cache / digest  # what was left does not stand in the way


def test_another_bundle_at_the_same_path_is_not_taken(cache, digest):
    assert seen_at(str(DEMO_BUNDLE), digest[::-1]) is None
    assert seen_at(str(DEMO_BUNDLE), digest) == DEMO_BUNDLE


def test_a_worker_judges_itself_before_it_draws(monkeypatch, tmp_path, digest):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def judge(self, engines, what):
        raise CheckFailedError("this machine does not compute what it is to give")

    monkeypatch.setattr("engines.draw.device_check.DeviceCheck._judge", judge)
    worker = FleetWorker(WorkOrder(str(DEMO_BUNDLE), digest, SETTINGS, {"max_batch": 2}), 1)
    assert worker.missing() is False
    failed = worker.start(None)
    assert isinstance(failed.error(failed.reason), CheckFailedError)
    assert failed.reason == "this machine does not compute what it is to give"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_nodes_that_do_not_see_the_bundle_draw_the_same_images(connection, digest, tmp_path):
    """The object store brings it into the nodes' cache, which here is that of all tests."""
    gone = copy_bundle(DEMO_BUNDLE, tmp_path / "gone")
    order = WorkOrder(str(tmp_path / "elsewhere"), digest, SETTINGS, {"max_batch": 2})
    job = make_job((3, 5), seed=10, count=2, settings=SETTINGS)
    chunks = [job.items[:2], job.items[2:]]
    with Fleet(connection, order, BundlePieces(gone, connection.ray.put), Staffing(threads=1), tell=print) as fleet:
        drawn = {chunk[0].index: made for chunk, made in fleet.drawn(chunks)}
    assert Bundle.open(cache_folder() / "bundles" / digest).digest == digest
    with Pipeline.load(DEMO_BUNDLE, threads=1) as pipeline:
        for chunk in chunks:
            here = draw_items(pipeline, chunk, SETTINGS, preview=False)
            assert (drawn[chunk[0].index].images == here.images).all()
            assert (drawn[chunk[0].index].tokens == here.tokens).all()
