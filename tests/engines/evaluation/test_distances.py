"""Distances of two sets: against scipy, against closed forms, and at their ends."""

import numpy as np
import pytest

from engines.evaluation.distances import Gaussian, frechet, scale_histograms, total_variation


def gaussian(seed, dimensions=6, images=40):
    rng = np.random.default_rng(seed)
    return Gaussian.of(rng.normal(size=(images, dimensions)) @ rng.normal(size=(dimensions, dimensions)) + seed)


def test_statistics_are_those_of_numpy():
    rows = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    found = Gaussian.of(rows)
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(np.float64), rowvar=False))


@pytest.mark.parametrize("images", [40, 4])  # of 4 images, covariances of 6 features have no inverse
def test_frechet_is_what_adm_computes_with_scipy(images):
    """`guided-diffusion/evaluations/evaluator.py`: the root of the product by scipy, its real part."""
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed: pip install scipy holds the formula")
    one, other = gaussian(1, images=images), gaussian(2, images=images)
    root = linalg.sqrtm(one.covariance @ other.covariance)
    apart = one.mean - other.mean
    wanted = apart @ apart + np.trace(one.covariance + other.covariance) - 2 * np.trace(np.real(root))
    assert frechet(one, other) == pytest.approx(wanted, rel=1e-5)


def test_frechet_of_independent_features_has_a_closed_form():
    means, deviations = np.array([[0.0, 1, 2], [3, 1, 0]]), np.array([[1.0, 2, 3], [3, 1, 0.5]])
    one, other = (Gaussian(mean, np.diag(each**2)) for mean, each in zip(means, deviations, strict=True))
    wanted = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet(one, other) == pytest.approx(wanted)


def test_frechet_is_symmetric_and_zero_of_the_same():
    one, other = gaussian(1), gaussian(2)
    assert frechet(one, other) == pytest.approx(frechet(other, one))
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_histograms_of_each_scale():
    tokens = np.array([[3, 0, 0, 1, 1], [3, 1, 1, 1, 0]])
    first, second = scale_histograms(tokens, (1, 4), 4)
    np.testing.assert_array_equal(first, [0, 0, 0, 1])
    np.testing.assert_array_equal(second, [3 / 8, 5 / 8, 0, 0])


def test_total_variation_is_a_share():
    assert total_variation(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert total_variation(np.array([0.5, 0.5]), np.array([0.75, 0.25])) == 0.25
    assert total_variation(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
