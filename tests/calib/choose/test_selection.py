import itertools
import random

import pytest

from calib.choose.selection import Bounds, Option, after, most, order
from engines.errors import UsageError


def test_bounds_are_read():
    assert Bounds.parse(["0.002"]) == Bounds(kl=0.002)
    assert Bounds.parse(["kl=2e-3", "top1=1%", " psnr = 36"]) == Bounds(kl=0.002, top1=0.01, psnr=36)
    assert not Bounds.parse([])
    assert Bounds(psnr=30)


@pytest.mark.parametrize("text", ["kl", "kl=", "kl=-1", "ssim=0.9", "psnr=high", "top1=nan", "kl=inf", ""])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(UsageError, match="bound"):
        Bounds.parse([text])


def test_two_bounds_for_one_figure_are_refused():
    with pytest.raises(UsageError, match="two bounds for kl"):
        Bounds.parse(["kl=1", "2"])


def test_bounds_hold():
    bounds = Bounds(kl=0.1, top1=0.02, psnr=30)
    assert bounds.holds(kl=0.1, top1=0.98, psnr=30)
    assert not bounds.holds(kl=0.11, top1=1)
    assert not bounds.holds(kl=0, top1=0.97)
    assert not bounds.holds(psnr=29.9)
    assert bounds.holds()
    assert not bounds.holds(kl=float("nan"))


def test_most_saved_per_loss_comes_first():
    options = [Option("slow", "static", 1, 4), Option("fast", "static", 2, 2), Option("free", "static", 0.1, 0)]
    assert order(options) == [("free", "static"), ("fast", "static"), ("slow", "static")]


def test_what_saves_nothing_never_comes():
    assert order([Option("a", "per-token", -0.1, 0), Option("b", "static", 0, 0)]) == []


def test_a_layer_comes_in_its_milder_way_first():
    options = [Option("a", "per-token", 1, 1), Option("a", "static", 2, 10), Option("b", "static", 1, 5)]
    assert order(options) == [("a", "per-token"), ("b", "static"), ("a", "static")]
    assert after(order(options), {"a": "float", "b": "float", "c": "float"}) == {
        "a": "static",
        "b": "static",
        "c": "float",
    }


def test_ways_inside_the_hull_are_left_out():
    """per-token saves less and costs more than half of static."""
    options = [Option("a", "per-token", 1, 8), Option("a", "static", 2, 10)]
    assert order(options) == [("a", "static")]


@pytest.mark.parametrize("seed", range(30))
def test_order_is_one_of_rising_rates(seed):
    draw = random.Random(seed)
    options = [
        Option(f"layer{n}", way, draw.uniform(-1, 4), draw.choice([-0.1, 0, draw.random()]))
        for n in range(6)
        for way in ("per-token", "static")
    ]
    steps = order(options)
    known = {(option.layer, option.way): option for option in options}
    rates, state = [], {}
    for layer, way in steps:
        saved, loss = state.get(layer, (0, 0))
        option = known[layer, way]
        assert option.saved > saved
        rates.append(max(option.loss - loss, 1e-12) / (option.saved - saved))
        state[layer] = option.saved, max(option.loss, loss)
    assert rates == sorted(rates)
    for layer, best in itertools.groupby(sorted(options, key=lambda o: o.layer), key=lambda o: o.layer):
        most_saved = max(best, key=lambda option: option.saved)
        assert (layer in state) == (most_saved.saved > 0)
        if layer in state:
            assert state[layer][0] == most_saved.saved


def additive(losses, bound):
    """Whether the losses of some steps keep a bound; counts how often it is asked."""
    asked = []

    def keeps(steps):
        asked.append(len(steps))
        return sum(losses[layer] for layer, _ in steps) <= bound

    return keeps, asked


def steps_of(losses):
    return [(layer, "static") for layer in losses]


def test_everything_where_the_bound_keeps():
    losses = {"a": 1, "b": 2, "c": 3}
    keeps, asked = additive(losses, 6)
    assert most(steps_of(losses), keeps) == steps_of(losses)
    assert asked == [3]


def test_nothing_where_nothing_keeps():
    losses = {"a": 1, "b": 2}
    assert most(steps_of(losses), additive(losses, 0)[0]) == []
    assert most([], additive({}, 0)[0]) == []


def test_the_step_that_breaks_is_skipped():
    losses = {f"l{n}": 1 for n in range(20)} | {"bad": 100} | {f"m{n}": 1 for n in range(20)}
    keeps, asked = additive(losses, 40)
    taken = most(steps_of(losses), keeps)
    assert {layer for layer, _ in taken} == set(losses) - {"bad"}
    assert len(asked) < 10


def test_a_layer_that_breaks_stays_in_its_milder_way():
    steps = [("a", "per-token"), ("b", "static"), ("a", "static"), ("c", "static")]

    def keeps(some):
        return ("a", "static") not in some

    assert most(steps, keeps) == [("a", "per-token"), ("b", "static"), ("c", "static")]


@pytest.mark.parametrize("seed", range(30))
def test_what_is_taken_keeps_the_bound(seed):
    draw = random.Random(seed)
    losses = {f"l{n}": draw.random() ** 4 for n in range(25)}
    keeps, _ = additive(losses, draw.uniform(0, sum(losses.values())))
    taken = most(steps_of(losses), keeps)
    assert keeps(taken)
