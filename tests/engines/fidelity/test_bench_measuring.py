"""Measuring is fair: new classes, warm-up outside of the figures, rivals in turns with the same work."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from engines.draw.results import Timings
from engines.fidelity import speed as bench
from engines.fidelity.speed import Bench, Comparison, Measured, Race, Spread
from engines.machine import machine


class FakePipeline:
    """Takes 0.1 s for each image on a clock of its own."""

    config = SimpleNamespace(transformer=SimpleNamespace(num_classes=100))

    def __init__(self, clock):
        self.clock, self.calls = clock, []

    def generate(self, classes, *, seeds, cfg, cfg_scales=0):
        self.calls.append((tuple(classes), tuple(seeds), cfg))
        self.clock.now += 0.1 * len(classes)
        timings = Timings(cond=0.01, scales=[0.02, 0.03], decode=0.02, total=0.1)
        return SimpleNamespace(timings=timings, tokens=np.full((len(classes), 3), classes[0]))


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0, slept=[])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(bench.time, "sleep", clock.slept.append)
    return clock


@pytest.fixture
def pipeline(clock):
    return FakePipeline(clock)


def test_each_case_is_batch_by_guidance(pipeline):
    cases = Bench(pipeline).measure(batches=(1, 4), cfgs=(1.5, 0.0), runs=3)
    assert [(c.batch, c.cfg, c.runs) for c in cases] == [(1, 1.5, 3), (1, 0.0, 3), (4, 1.5, 3), (4, 0.0, 3)]
    assert cases[0].total.p50 == pytest.approx(0.1)
    assert cases[0].outside.p50 == pytest.approx(0.02)
    assert [spread.p50 for spread in cases[0].scales] == pytest.approx([0.02, 0.03])
    assert cases[2].images_per_second == pytest.approx(10)


def test_no_class_comes_twice(pipeline):
    Bench(pipeline, warmup=2).measure(batches=(1, 2), cfgs=(1.0, 0.0), runs=5)
    classes = [label for call in pipeline.calls for label in call[0]]
    assert len(classes) == len(set(classes)) == 2 * 7 * (1 + 2)


def test_classes_start_again_where_there_are_no_others(pipeline):
    Bench(pipeline, warmup=0).measure(batches=(64,), cfgs=(1.0,), runs=3)
    assert {label for call in pipeline.calls for label in call[0]} == set(range(100))


@pytest.mark.parametrize("warmup", [0, 3])
def test_warm_up_is_not_counted(pipeline, warmup):
    (case,) = Bench(pipeline, warmup=warmup).measure(batches=(1,), cfgs=(1.0,), runs=4)
    assert case.runs == 4
    assert len(pipeline.calls) == 4 + warmup


def test_long_cases_of_further_batch_sizes_end_early(pipeline, monkeypatch):
    monkeypatch.setattr(bench, "CASE_SECONDS", 0.5)
    cases = Bench(pipeline, warmup=0).measure(batches=(1, 2, 8), cfgs=(1.0,), runs=9)
    assert [case.runs for case in cases] == [9, 3, bench.MIN_RUNS]


def test_rivals_take_turns_with_the_same_work(pipeline, clock):
    order = []

    def reference(classes, seeds):
        order.append(("reference", *classes, *seeds))
        clock.now += 0.4
        return np.full((1, 3), classes[0])

    timer = Bench(pipeline)
    timer.measure(batches=(2,), cfgs=(2.0,), runs=1)
    before = len(pipeline.calls)
    race = timer.race(reference, cfg=2.0, pairs=3)
    assert [call[1:] for call in order] == [(call[0][0], call[1][0]) for call in pipeline.calls[before:]]
    assert [call[2] for call in pipeline.calls[before:]] == [2.0] * 4
    assert {label for _, label, _ in order}.isdisjoint(pipeline.calls[0][0] + pipeline.calls[1][0])
    assert len(race.ratios) == 3
    assert race.ratio.p50 == pytest.approx(0.25)
    assert race.tokens_alike == 1
    assert clock.slept == [bench.REST] * 8


def test_other_tokens_show(pipeline, clock):
    def reference(classes, seeds):
        clock.now += 0.1
        return np.array([[classes[0], -1, -1]])

    assert Bench(pipeline).race(reference, cfg=1.0, pairs=1).tokens_alike == pytest.approx(1 / 3)


def test_percentiles():
    spread = Spread.of([3.0, 1.0, 2.0, 4.0, 5.0])
    assert (spread.min, spread.p50, spread.max) == (1.0, 3.0, 5.0)
    assert spread.p90 == pytest.approx(4.6)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, None, 7.0)


def test_a_99th_percentile_needs_a_hundred_runs():
    assert "p99" not in Spread.of([1.0] * 99).columns()
    assert Spread.of([float(k) for k in range(101)]).columns()["p99"] == 99.0


@pytest.mark.parametrize(
    ("load", "ratios", "doubts"),
    [
        (0.4, (0.5, 0.5, 0.52), []),
        (3.0, (0.5, 0.5, 0.52), ["the load was 3.0 on 2 cores before"]),
        (0.4, (0.4, 0.5, 0.6), ["pairs differ by 36%"]),
        (3.0, (0.4, 0.5, 0.6), ["the load was 3.0 on 2 cores before", "pairs differ by 36%"]),
    ],
)
def test_a_busy_machine_is_known_by_its_load_and_by_what_differs(load, ratios, doubts):
    one = Spread.of([1.0])
    measured = Measured(
        machine=replace(machine(), load=load, cores=2),
        threads=2,
        runtime={},
        load_seconds=0.0,
        cases=[],
        peak_memory=0,
        comparisons=(Comparison("PyTorch", "PyTorch 2.13", True, Race(one, one, ratios, 1.0)),),
    )
    assert measured.doubts() == doubts


def test_what_is_reported_is_plain(pipeline):
    (case,) = Bench(pipeline).measure(batches=(1,), cfgs=(1.0,), runs=2)
    assert json.loads(json.dumps(case.to_dict()))["batch"] == 1
