import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.choose.ranges import choose_range, scale_and_zero_point
from calib.statistics import BINS, MIN_EXPONENT, Statistics
from engines.spec.choices import RANGES

LARGEST = float(np.finfo(np.float32).max)
DENORMAL = float(np.finfo(np.float32).smallest_subnormal)
VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
# Near 1, so that one batch does not decide the grid alone.
NEAR_VALUES = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=60)


def counted(values, **options):
    statistics = Statistics()
    statistics.add(np.asarray(values, np.float32), **({"channel_axis": None} | options))
    return statistics


def exact(statistics):
    """Everything that must not depend on batches and their order."""
    scales = {scale: (one.count, one.minimum, one.maximum) for scale, one in statistics.scales.items()}
    abs_max = statistics.channel_abs_max
    return statistics.exponent, statistics.counts.tolist(), scales, None if abs_max is None else abs_max.tolist()


def assert_same(a, b):
    assert exact(a) == exact(b)
    assert a.mean_square == pytest.approx(b.mean_square, rel=1e-12)
    if a.channel_mean_square is not None:
        np.testing.assert_allclose(a.channel_mean_square, b.channel_mean_square, rtol=1e-12)


def quantised(values, scale, zero_point, symmetric):
    lowest, highest = (-127, 127) if symmetric else (0, 255)
    levels = np.clip(np.rint(values / np.float64(scale)) + zero_point, lowest, highest)
    return (levels - zero_point) * np.float64(scale)


def squared_error(values, low, high, symmetric):
    values = np.asarray(values, np.float64)
    restored = quantised(values, *scale_and_zero_point(low, high, symmetric=symmetric), symmetric)
    return float(np.mean((restored - values) ** 2))


def gelu(x):
    return x * (0.5 + 0.5 * np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sample(kind, size=50_000):
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(size)
    return {
        "normal": lambda: 3e-3 * normal,
        "shifted": lambda: normal + 2,
        "uniform": lambda: rng.uniform(-1.3, 1.3, size),
        "heavy": lambda: rng.standard_t(3, size),
        "skewed": lambda: np.exp(normal) - 0.2,
        "gelu": lambda: gelu(normal),
        "relu": lambda: np.maximum(normal, 0),
        "negative": lambda: -np.abs(normal),
        "outliers": lambda: np.concatenate([normal, [60, 61, -45]]),
        "softmax": lambda: rng.dirichlet(np.full(64, 0.1), size // 64).ravel(),
    }[kind]().astype(np.float32)


KINDS = ("normal", "shifted", "uniform", "heavy", "skewed", "gelu", "relu", "negative", "outliers", "softmax")


# What is counted


@pytest.mark.slow
@given(VALUES)
def test_histogram_is_the_one_of_the_definition(values):
    statistics = counted(values)
    largest = max(abs(value) for value in values)
    width = 2.0**statistics.exponent
    assert largest < BINS / 2 * width
    assert statistics.exponent == MIN_EXPONENT or largest >= BINS / 4 * width
    wanted = np.zeros(BINS, int)
    for value in values:
        wanted[math.floor(value / width) + BINS // 2] += 1
    assert statistics.counts.tolist() == wanted.tolist()
    assert (statistics.count, statistics.minimum, statistics.maximum) == (len(values), min(values), max(values))
    assert statistics.mean_square == pytest.approx(np.mean(np.float64(values) ** 2), rel=1e-12)


@pytest.mark.slow
@given(st.one_of(VALUES, NEAR_VALUES), st.data())
def test_neither_batches_nor_their_order_matter(values, data):
    shuffled = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=6)))
    added = Statistics()
    for first, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        part = np.array(shuffled[first:end], np.float32)
        added.add(part, channel_axis=None)
    assert_same(added, counted(values))


@pytest.mark.slow
@given(NEAR_VALUES, st.integers(1, 4), st.data())
def test_channels_and_scales_are_kept_apart(values, channels, data):
    table = np.resize(np.float32(values), (len(values), channels))  # np.float64(table) may be a scalar in numpy 2.2
    scales = data.draw(st.lists(st.integers(0, 3), min_size=len(table), max_size=len(table)))
    added, by_column = Statistics(), Statistics()
    for row, scale in zip(table, scales, strict=True):
        added.add(row, scale)
        by_column.add(row[:, None], scale, channel_axis=0)
    assert_same(added, by_column)
    np.testing.assert_array_equal(added.channel_abs_max, np.abs(table).max(axis=0))
    np.testing.assert_allclose(added.channel_mean_square, np.mean(table.astype(np.float64) ** 2, axis=0), rtol=1e-12)
    for scale in set(scales):
        here = table[np.array(scales) == scale]
        found = added.scales[scale]
        assert (found.count, found.minimum, found.maximum) == (here.size, here.min(), here.max())
        assert found.mean_square == pytest.approx(np.mean(here.astype(np.float64) ** 2), rel=1e-12)
    assert added.scales.keys() == set(scales)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_any_axis_and_any_strides(axis, order):
    """More values than a block, seen through transposition, gaps and a negative stride."""
    values = np.random.default_rng(0).standard_normal((70, 90, 80), dtype=np.float32)
    view = values.transpose(order)[::-1, ::2]
    others = tuple(i for i in range(3) if i != axis % 3)
    statistics = counted(view, channel_axis=axis)
    np.testing.assert_array_equal(statistics.channel_abs_max, np.abs(view).max(axis=others))
    np.testing.assert_allclose(statistics.channel_mean_square, np.square(view, dtype=np.float64).mean(axis=others))
    np.testing.assert_array_equal(statistics.counts, counted(view.copy().ravel()).counts)
    assert statistics.counts.sum() == statistics.count == view.size


@pytest.mark.slow
def test_a_large_tensor_needs_little_memory_beside_it():
    values = np.random.default_rng(0).standard_normal((4, 2500, 1000), dtype=np.float32)
    for view, axis in ((values, -1), (values, 1), (values, None), (values.transpose(2, 0, 1), -1)):
        tracemalloc.start()
        counted(view, channel_axis=axis)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8e6  # of 40 MB


def test_a_scalar_and_no_values():
    statistics = counted(2.5)
    statistics.add(np.zeros((0, 4), np.float32), scale=3)
    assert statistics.count == 1
    assert statistics.maximum == 2.5
    assert list(statistics.scales) == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(value):
    statistics = counted([[1, 2], [3, 4]], channel_axis=-1)
    before = exact(statistics)
    values = np.full((300, 2), 9, np.float32)
    values[[5, 77], 1] = value
    with pytest.raises(ValueError, match="2 of 600 values are NaN or infinite"):
        statistics.add(values, scale=1)
    assert exact(statistics) == before


def test_other_channels_and_dtypes_are_refused():
    statistics = counted(np.ones((2, 3)), channel_axis=-1)
    with pytest.raises(ValueError, match="4 channels after 3"):
        statistics.add(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="no channels after 3"):
        statistics.add(np.ones(3, np.float32), channel_axis=None)
    with pytest.raises(ValueError, match="not float64"):
        statistics.add(np.ones((2, 3)))


# The record


@pytest.mark.slow
@given(st.one_of(VALUES, NEAR_VALUES), st.booleans())
def test_a_record_survives_json(values, channels):
    statistics = counted(values, channel_axis=0 if channels else None)
    statistics.add(np.float32(values) / 2, 5, 0 if channels else None)
    record = statistics.to_dict()
    read = Statistics.from_dict(json.loads(json.dumps(record)))
    assert exact(read)[:3] == exact(statistics)[:3]
    assert read.mean_square == pytest.approx(statistics.mean_square, rel=1e-8)
    assert read.to_dict() == record
    if channels:
        np.testing.assert_allclose(read.channel_abs_max, statistics.channel_abs_max, rtol=1e-5, atol=DENORMAL)
        np.testing.assert_allclose(read.channel_mean_square, statistics.channel_mean_square, rtol=1e-5)


def test_a_record_is_compact_and_goes_on():
    statistics = counted(np.random.default_rng(0).standard_normal((1000, 100)), channel_axis=-1)
    assert len(json.dumps(statistics.to_dict())) < 10_000
    read = Statistics.from_dict(statistics.to_dict())
    for one in (statistics, read):
        one.add(np.full((1, 100), 50, np.float32), scale=1)
    assert exact(read)[:3] == exact(statistics)[:3]


def test_nothing_survives_too():
    assert Statistics.from_dict(Statistics().to_dict()).scales == {}


def test_a_damaged_record_is_refused():
    good = counted([[1, 2], [3, -4]], channel_axis=-1).to_dict()
    Statistics.from_dict(good)
    exponent, first, *counts = good["histogram"]
    for change in (
        {"histogram": [exponent + 1, first, *counts]},
        {"histogram": [exponent, first, *counts, 1]},
        {"histogram": [exponent, 2000, *counts]},
        {"histogram": []},
        {"scales": {"0": [4, math.nan, 3, 1]}},
        {"scales": {"0": [4, -4, 3]}},
        {"scales": {"x": good["scales"]["0"]}},
        {"scales": {}},
        {"channels": [[1, 2], [3]]},
        {"channels": [[1, 2], [3, -1]]},
        {"channels": [[], []]},
    ):
        with pytest.raises(ValueError, match="no record of statistics"):
            Statistics.from_dict(good | change)
    for other in ({}, [], None):
        with pytest.raises(ValueError, match="no record of statistics"):
            Statistics.from_dict(other)


# The ranges


@pytest.mark.slow
@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("symmetric", [True, False])
@given(values=st.one_of(VALUES, NEAR_VALUES), percentile=st.floats(1, 100))
@settings(max_examples=50, deadline=None)
def test_every_range_holds_zero_and_no_more_than_the_values(method, symmetric, values, percentile):
    low, high = choose_range(counted(values), method, symmetric=symmetric, percentile=percentile)
    least, most = min(*values, 0.0), max(*values, 0.0)
    if symmetric:
        most = max(-least, most)
        least = -most
        assert low == -high
    assert least <= low <= 0 <= high <= most
    assert math.isfinite(scale_and_zero_point(low, high, symmetric=symmetric)[0])
    if method == "minmax":
        assert (low, high) == (least, most)


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("factor", [2.0**-110, 2.0**110])
def test_ranges_grow_with_the_values(method, symmetric, factor):
    values = sample("heavy", 5000)
    near = choose_range(counted(values), method, symmetric=symmetric)
    far = choose_range(counted(values * np.float32(factor)), method, symmetric=symmetric)
    assert far == pytest.approx([end * factor for end in near], rel=1e-9)


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_extremes_of_float32(method, symmetric):
    for value in (LARGEST, DENORMAL):
        low, high = choose_range(counted([-value, 0, value]), method, symmetric=symmetric)
        scale, zero_point = scale_and_zero_point(low, high, symmetric=symmetric)
        assert 0 < scale < math.inf
        assert zero_point in ((0,) if symmetric else range(256))
        if value == LARGEST:
            assert high > 0.9 * LARGEST


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_constants_and_nothing(method, symmetric):
    assert choose_range(counted(np.zeros(100)), method, symmetric=symmetric) == (0, 0)
    low, high = choose_range(counted(np.full(100, 3)), method, symmetric=symmetric)
    assert high == pytest.approx(3, rel=0.01)
    assert low == (-high if symmetric else 0)
    low, high = choose_range(counted(np.full(100, -3)), method, symmetric=symmetric)
    assert low == pytest.approx(-3, rel=0.01)
    assert high == (-low if symmetric else 0)
    with pytest.raises(ValueError, match="never reached"):
        choose_range(Statistics(), method, symmetric=symmetric)


def test_a_wrong_wish_is_refused():
    with pytest.raises(ValueError, match="minmax, percentile, entropy, mse, not kl"):
        choose_range(counted([1]), "kl", symmetric=True)
    for percentile in (0, 101, math.nan):
        with pytest.raises(ValueError, match="up to 100"):
            choose_range(counted([1]), "percentile", symmetric=True, percentile=percentile)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [90, 99, 99.9])
def test_percentile_is_that_of_the_values_within_a_bin(kind, percentile):
    """Between two values that are further apart, any place will do."""
    values = sample(kind)
    statistics = counted(values)
    width = 2.0**statistics.exponent

    def holds(found, of, percent):  # in float32, numpy 2.2 would round the percentage too
        lower, higher = (np.percentile(of.astype(float), percent, method=method) for method in ("lower", "higher"))
        return lower - width <= found <= higher + width

    low, high = choose_range(statistics, "percentile", symmetric=True, percentile=percentile)
    assert holds(high, np.abs(values), percentile)
    low, high = choose_range(statistics, "percentile", symmetric=False, percentile=percentile)
    tail = (100 - percentile) / 2
    assert holds(low, np.minimum(values, 0), tail)
    assert holds(high, np.maximum(values, 0), 100 - tail)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_a_search_on_the_values_symmetric(kind):
    values = sample(kind)
    found = choose_range(counted(values), "mse", symmetric=True)
    largest = float(np.abs(values).max())
    best = min(squared_error(values, -end, end, True) for end in np.linspace(0.01, 1, 200) * largest)
    assert squared_error(values, *found, True) <= 1.02 * best


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_a_search_on_the_values_asymmetric(kind):
    values = sample(kind, 20_000)
    found = choose_range(counted(values), "mse", symmetric=False)
    shares = np.linspace(0.02, 1, 40)
    lows = shares * values.min() if values.min() < 0 else [0.0]
    highs = shares * values.max() if values.max() > 0 else [0.0]
    best = min(squared_error(values, low, high, False) for low in lows for high in highs)
    assert squared_error(values, *found, False) <= 1.02 * best


def divergence(counts, end, levels=128):
    """Migacz's pseudo-code, loop by loop; infinite where values are clipped to an empty bin."""
    reference = list(counts[:end])
    reference[-1] += sum(counts[end:])
    shown = [0.0] * end
    for level in range(levels):
        bins = [place for place in range(end) if place * levels // end == level]
        held = [place for place in bins if counts[place]]
        for place in held:
            shown[place] = sum(counts[i] for i in bins) / len(held)
    if any(p and not q for p, q in zip(reference, shown, strict=True)):
        return math.inf
    p_sum, q_sum = sum(reference), sum(shown)
    return sum(p / p_sum * math.log(p / p_sum * q_sum / q) for p, q in zip(reference, shown, strict=True) if p)


@pytest.mark.slow
def test_entropy_is_that_of_the_paper():
    """On a histogram without gaps, where the paper's divergence is finite throughout."""
    rng = np.random.default_rng(3)
    statistics = Statistics()
    statistics.add((rng.laplace(size=400_000).clip(-4, 4) * rng.uniform(0.9, 1, 400_000)).astype(np.float32))
    _, high = choose_range(statistics, "entropy", symmetric=True)
    magnitudes = (statistics.counts[BINS // 2 :] + statistics.counts[BINS // 2 - 1 :: -1]).tolist()
    ends = range(128, max(place for place, count in enumerate(magnitudes) if count) + 2, 8)
    found = divergence(magnitudes, round(high / 2.0**statistics.exponent))
    assert found <= min(divergence(magnitudes, end) for end in ends)


@pytest.mark.parametrize("symmetric", [True, False])
def test_entropy_clips_a_heavy_tail_and_no_even_spread(symmetric):
    even, heavy, outliers = (sample(kind, 200_000) for kind in ("uniform", "heavy", "outliers"))
    assert choose_range(counted(even), "entropy", symmetric=symmetric)[1] > 0.99 * even.max()
    assert choose_range(counted(heavy), "entropy", symmetric=symmetric)[1] < 0.5 * np.abs(heavy).max()
    assert choose_range(counted(outliers), "entropy", symmetric=symmetric)[1] < 0.5 * outliers.max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_method_has_a_smaller_error_than_mse(kind, symmetric):
    values = sample(kind)
    statistics = counted(values)
    errors = {
        method: squared_error(values, *choose_range(statistics, method, symmetric=symmetric), symmetric)
        for method in RANGES
    }
    assert errors["mse"] <= 1.005 * min(errors.values())


@pytest.mark.slow
def test_zeros_do_not_vote_in_entropy():
    """Whatever share of the values a mask or a ReLU sets to 0."""
    values = sample("relu", 100_000)
    more = np.concatenate([values, np.zeros(1_000_000, np.float32)])
    for symmetric in (True, False):
        wanted = choose_range(counted(values), "entropy", symmetric=symmetric)
        assert choose_range(counted(more), "entropy", symmetric=symmetric) == wanted


def test_one_sided_values_get_all_levels():
    """The output of a GELU: a short end below 0 and a long one above."""
    statistics = counted(sample("gelu"))
    for method in RANGES:
        low, high = choose_range(statistics, method, symmetric=False)
        assert -0.18 < low <= 0
        assert high > 2.5
        assert squared_error(sample("gelu"), low, high, False) < squared_error(sample("gelu"), -high, high, True) / 2


# Scale and zero point


@given(st.floats(-LARGEST, 0), st.floats(0, LARGEST), st.booleans())
def test_zero_is_a_level_and_the_ends_are_held(low, high, symmetric):
    scale, zero_point = scale_and_zero_point(low, high, symmetric=symmetric)
    assert scale.dtype == np.float32
    assert 0 < scale < math.inf
    assert isinstance(zero_point, int)
    assert zero_point == 0 if symmetric else 0 <= zero_point <= 255
    assert quantised(0.0, scale, zero_point, symmetric) == 0
    for end in (low, high):
        assert abs(quantised(end, scale, zero_point, symmetric) - end) <= 0.501 * scale + abs(end) * 1e-6


@pytest.mark.parametrize(
    ("low", "high", "symmetric", "scale", "zero_point"),
    [
        (-127.0, 127.0, True, 1.0, 0),
        (-1.0, 254.0, True, 2.0, 0),
        (0.0, 255.0, False, 1.0, 0),
        (-255.0, 0.0, False, 1.0, 255),
        (-0.4, 254.6, False, 1.0, 0),
        (-128.0, 127.0, False, 1.0, 128),
        (0.0, 0.0, True, 1.0, 0),
        (0.0, 0.0, False, 1.0, 0),
    ],
)
def test_known_parameters(low, high, symmetric, scale, zero_point):
    assert scale_and_zero_point(low, high, symmetric=symmetric) == (np.float32(scale), zero_point)


@pytest.mark.parametrize(("low", "high"), [(1, 2), (-2, -1), (math.nan, 1), (-1, math.inf)])
def test_a_range_without_zero_is_refused(low, high):
    with pytest.raises(ValueError, match="holds 0"):
        scale_and_zero_point(low, high, symmetric=False)
