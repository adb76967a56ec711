"""Jobs drawn by the workers of a real Ray cluster of several nodes, which come, go, fail and differ."""

import re

import numpy as np
import pytest
from driver_cost import measure
from fleet_jobs import add_node, job_of, rows
from fleet_sources import image_of, load_never, load_otherwise_once, load_together

from engines.errors import BackendError
from engines.files.jobs import JobInterruptedError, Made, run_drawing, run_job
from engines.fleet.cluster import Cluster
from engines.fleet.pool import AHEAD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def here(items):
    return Made(np.stack([image_of(item.class_id, item.seed) for item in items]))


def drawn_here(path, **job):
    job = job_of(**job)
    run_job(job, [rows(job, path)], here, batch=2)
    return path.read_bytes()


def test_the_file_of_two_workers_is_the_file_of_one_process(make_fleet, tmp_path):
    job, fleet, seen = job_of(), make_fleet(load_together, delay=0.3, marks=str(tmp_path), of=2), []
    sink = rows(job, tmp_path / "a.npz")
    assert run_drawing(job, [sink], fleet.drawn, batch=2, progress=seen.append) == 24
    assert (tmp_path / "a.npz").read_bytes() == drawn_here(tmp_path / "b.npz")
    assert seen == list(range(0, 25, 2))
    workers = fleet.record.describe()["workers"]
    assert [each["runtime"]["backend"] for each in workers] == ["fake", "fake"]
    assert len({each["node"] for each in workers}) == 2
    assert sorted(number for each in workers for number in numbers(each["drawn"])) == list(range(24))
    assert all(each["images"] for each in workers)


def numbers(drawn):
    runs = [[int(end) for end in run.split("-")] for run in drawn.split(",")]
    return [number for run in runs for number in range(run[0], run[-1] + 1)]


def test_a_job_begun_here_goes_on_there_and_the_other_way_round(make_fleet, tmp_path):
    job, path = job_of(), tmp_path / "a.npz"
    counts = iter(range(100))

    def stops(items):
        if next(counts) == 3:
            raise KeyboardInterrupt
        return here(items)

    with pytest.raises(JobInterruptedError):
        run_job(job, [rows(job, path)], stops, batch=2)
    fleet = make_fleet()

    def some(chunks):
        for done, each in enumerate(fleet.drawn(chunks)):
            if done == 4:
                raise KeyboardInterrupt
            yield each

    with pytest.raises(JobInterruptedError, match=r"14 of 24"):
        run_drawing(job, [rows(job, path)], some, batch=2)
    assert run_job(job, [rows(job, path)], here, batch=2) == 10
    assert path.read_bytes() == drawn_here(tmp_path / "b.npz")


def test_a_worker_that_dies_loses_nothing(make_fleet, tmp_path, lines):
    job, fleet = job_of(), make_fleet(delay=0.02, die_at=15, marks=str(tmp_path))
    run_drawing(job, [rows(job, tmp_path / "a.npz")], fleet.drawn, batch=2)
    assert (tmp_path / "a.npz").read_bytes() == drawn_here(tmp_path / "b.npz")
    record = fleet.record.describe()
    assert sum(each["lost"] is not None for each in record["workers"]) == 1
    assert record["chunks_retried"] >= 1
    assert "is gone" in lines[0]


def test_a_chunk_that_fails_three_times_is_named_and_the_rest_is_done(make_fleet, tmp_path):
    job, fleet, path = job_of(), make_fleet(fail_at=(14, 30), marks=str(tmp_path)), tmp_path / "a.npz"
    named = r"4 images failed 3 times.*images 4 to 5 \(seeds 14 to 15\): no luck with seed 14; images 20 to 21"
    with pytest.raises(BackendError, match=named):
        run_drawing(job, [rows(job, path)], fleet.drawn, batch=2)
    assert (tmp_path / "tries-14").read_text() == (tmp_path / "tries-30").read_text() == "xxx"
    missing = []
    assert run_job(job, [rows(job, path)], lambda items: missing.extend(items) or here(items), batch=2) == 4
    assert [item.seed for item in missing] == [14, 15, 30, 31]
    assert path.read_bytes() == drawn_here(tmp_path / "b.npz")


def test_a_chunk_that_kills_every_worker_is_named_too(make_fleet, tmp_path):
    job, fleet = job_of(12), make_fleet(die_at=12)
    with pytest.raises(BackendError, match=r"2 images failed 3 times.*images 2 to 3 .*its worker ended"):
        run_drawing(job, [rows(job, tmp_path / "a.npz")], fleet.drawn, batch=2)
    assert sum(each["images"] for each in fleet.record.describe()["workers"]) == 10


def test_where_everything_fails_the_job_ends_early(make_fleet, tmp_path):
    job, seeds = job_of(200), range(10, 210)
    fleet = make_fleet(fail_at=tuple(seeds), marks=str(tmp_path))
    with pytest.raises(BackendError, match="nothing could be drawn: no luck with seed"):
        run_drawing(job, [rows(job, tmp_path / "a.npz")], fleet.drawn, batch=2)
    assert len(list(tmp_path.glob("tries-*"))) < 40


def test_a_worker_that_computes_otherwise_is_refused_unless_allowed(make_fleet, tmp_path, lines):
    job = job_of(30)
    for mixed, workers in ((False, 1), (True, 2)):
        marks = tmp_path / str(mixed)
        marks.mkdir()
        fleet = make_fleet(load_otherwise_once, mixed=mixed, marks=str(marks), delay=0.3)  # until both have started
        run_drawing(job, [rows(job, marks / "a.npz")], fleet.drawn, batch=2)
        fleet.close()
        record = fleet.record.describe()
        assert len(record["workers"]) == workers
        assert len({each["runtime"]["provider"] for each in record["workers"]}) == workers
        assert len(record["refused"]) == 2 - workers
        assert (marks / "a.npz").read_bytes() == drawn_here(tmp_path / "b.npz", count=30)
    assert len(lines) == 1
    assert re.search(r"computes with provider (\w+), the others with provider (?!\1)\w+: --mixed allows it", lines[0])


def test_no_worker_can_draw(make_fleet, tmp_path):
    with pytest.raises(BackendError, match=r"no worker on .*: this machine has no arithmetic"):
        list(make_fleet(load_never).drawn([job_of().items[:2]]))


def test_nodes_go_and_come(make_fleet, nodes, tmp_path):
    job, fleet = job_of(120), make_fleet(delay=0.1)
    drawn, added, changed = [], None, None
    before = {worker["node"] for worker in fleet.record.describe()["workers"]}
    for chunk, made in fleet.drawn([job.items[start : start + 2] for start in range(0, 120, 2)]):
        drawn += [item.number for item in chunk]
        assert sum(len(hand.lots) for hand in fleet._hands) <= AHEAD * len(fleet._hands)
        assert np.array_equal(made.images, here(chunk).images)
        if len(drawn) == 10:
            before = {hand.node.name for hand in fleet._hands}
            nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)
            changed = len(drawn)
        if changed is not None and added is None and len(drawn) >= changed + 10:
            added = add_node(nodes)
    assert sorted(drawn) == list(range(120))
    workers = fleet.record.describe()["workers"]
    assert added.node_id in {each["node"] for each in workers if each["images"]} - before
    assert any(each["lost"] for each in workers)


def test_the_driver_costs_little_and_its_memory_stays_flat(nodes, tmp_path):
    """Two workers here; tests/engines/fleet/driver_cost.py takes as many as it is told, and has the same bounds."""
    figures = measure(Cluster(nodes.address), 2, 6000, tmp_path)
    assert figures["workers"] == 2
    assert figures["ms_an_image"] <= 0.5
    assert figures["memory"][-1] - figures["memory"][2] < 16 * 2**20
