"""A distance beside its noise: nothing between sets of one kind, more where they differ, whatever is counted."""

import numpy as np
import pytest

from engines.errors import UsageError
from engines.evaluation.halves import LEAST, Apart, hold_apart


def mean_of(values):
    return lambda rows: values[rows].mean(0)


def squared(one, other):
    return np.array([((one - other) ** 2).sum(), np.abs(one - other).sum()])


def held(one, other, **options):
    counts = len(one), len(other)
    return hold_apart(mean_of(one), mean_of(other), counts, squared, **{"replicates": 60, **options})


def normal(seed, count=80, shift=0.0):
    return np.random.default_rng(seed).normal(shift, size=(count, 4))


def test_a_set_beside_itself_has_no_excess_at_all():
    for each in held(normal(0), normal(0)):
        assert (each.excess, each.low, each.high) == (0, 0, 0)
        assert each.distance == each.noise > 0
        assert not each.beyond_noise


def test_rounding_is_no_difference():
    assert not Apart(distance=1.0, noise=1.0, low=1e-8, high=1e-7).beyond_noise
    assert Apart(distance=1.1, noise=1.0, low=0.01, high=0.2).beyond_noise


def test_sets_of_one_kind_are_within_noise():
    """Of 95 % intervals, 1 in 40 may lie above 0."""
    found = [each.beyond_noise for seed in range(40) for each in held(normal(seed), normal(1000 + seed), splits=5)]
    assert sum(found) <= 4


@pytest.mark.parametrize("counts", [(80, 80), (80, 50), (81, 81)])
def test_sets_that_differ_are_apart(counts):
    found = held(normal(0, counts[0]), normal(1, counts[1], shift=1.0))
    assert all(each.beyond_noise for each in found)
    assert all(each.low < each.excess < each.high for each in found)
    assert found[0].excess == pytest.approx(4, abs=1.2)  # 4 features, each 1 apart


def test_a_larger_difference_has_a_larger_excess():
    excesses = [held(normal(0), normal(1, shift=shift))[0].excess for shift in (0.5, 1, 2)]
    assert excesses == sorted(excesses)


def test_noise_is_smaller_with_more_images_and_the_excess_stays():
    few, many = (held(normal(0, count), normal(1, count, shift=1.0))[0] for count in (40, 4000))
    assert few.noise > 20 * many.noise
    assert many.excess == pytest.approx(4, abs=0.2)
    assert many.high - many.low < few.high - few.low


def test_classes_that_are_equal_in_both_sets_make_no_difference():
    """Halves of a balanced set have unequal classes; the halves that are held against each other have no other ones."""
    classes = 30 * np.repeat(np.eye(4), 20, axis=0)
    found = held(classes + normal(0), classes + normal(1))
    assert all(abs(each.excess) < 0.05 * each.noise for each in found)


def test_the_seed_decides():
    first, again, other = (held(normal(0), normal(1), seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_too_few_images_are_refused():
    with pytest.raises(UsageError, match="draw more"):
        held(normal(0, LEAST), normal(1, LEAST - 1))
    held(normal(0, LEAST), normal(1, LEAST))
