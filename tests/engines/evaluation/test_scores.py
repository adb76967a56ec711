"""FID and its like on features: against ADM's definitions written out with scipy, and against torch-fidelity."""

import importlib
import importlib.util
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
from support import refused

from engines.errors import UsageError
from engines.evaluation.distances import Gaussian
from engines.evaluation.reference import POOL, SPATIAL, ReferenceSet
from engines.evaluation.scores import Activations, inception_score, kid, precision_recall, scores


def rows(seed, count=60, features=8, shift=0.0):
    return np.random.default_rng(seed).normal(shift, size=(count, features)).astype(np.float32)


def adm_inception_score(logits, split_size):
    """As `Evaluator.compute_inception_score` has it, with scipy's softmax."""
    special = pytest.importorskip("scipy.special", reason="scipy is not installed: pip install scipy")
    preds, found = special.softmax(logits.astype(np.float64), axis=1), []
    for i in range(0, len(preds), split_size):
        part = preds[i : i + split_size]
        kl = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        found.append(np.exp(np.mean(np.sum(kl, 1))))
    return np.mean(found), np.std(found)


@pytest.mark.parametrize("count", [10_000, 7_000, 40])  # of splits: two whole ones, one and a part, a part
def test_inception_score_is_adms(count):
    logits = rows(0, count, 12) * 3
    mean, deviation, splits = inception_score(logits)
    assert (mean, deviation) == pytest.approx(adm_inception_score(logits, 5000))
    assert splits == -(-count // 5000)


def test_inception_score_at_its_ends():
    sure = np.where(np.eye(5, dtype=bool), 1000.0, 0.0)
    assert inception_score(np.tile(sure, (4, 1)))[0] == pytest.approx(5), "as many as there are classes"
    assert inception_score(np.zeros((9, 5)))[0] == pytest.approx(1), "no image is of a class"
    assert inception_score(sure[[0, 0, 0]])[0] == pytest.approx(1), "all are of one, the others have none"


def brute_force(images, reference, k=3):
    """As Kynkaanniemi et al. define precision and recall, with distances by scipy."""
    distance = pytest.importorskip("scipy.spatial.distance", reason="scipy is not installed: pip install scipy")
    cdist = distance.cdist

    def inside(points, centres):
        radii = np.sort(cdist(centres, centres), axis=1)[:, k]  # 0 is the point itself
        return float(
            np.mean([any(d <= r for d, r in zip(line, radii, strict=True)) for line in cdist(points, centres)])
        )

    return inside(images, reference), inside(reference, images)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_precision_and_recall_are_those_of_their_definition(shift):
    images, reference = rows(0, 50), rows(1, 70, shift=shift)
    assert precision_recall(images, reference) == brute_force(images, reference)


def test_precision_and_recall_in_blocks(monkeypatch):
    images, reference = rows(0, 50), rows(1, 70, shift=0.4)
    whole = precision_recall(images, reference)
    monkeypatch.setattr("engines.evaluation.scores._BLOCK", 7)
    assert precision_recall(images, reference) == whole


def test_precision_without_recall():
    """Many copies of one image of the reference: all are real, and most of the reference is missing."""
    reference = rows(0, 60)
    precision, recall = precision_recall(reference[:1] + 1e-3 * rows(1, 30), reference)
    assert precision == 1
    assert recall < 0.1


def test_kid_is_the_unbiased_estimate_of_its_authors():
    one, other = rows(0, 30), rows(1, 30, shift=0.3)

    def kernel(x, y):
        return (x.astype(np.float64) @ y.T.astype(np.float64) / 8 + 1) ** 3

    different = ~np.eye(30, dtype=bool)
    wanted = kernel(one, one)[different].mean() + kernel(other, other)[different].mean() - 2 * kernel(one, other).mean()
    assert kid(one, other, subsets=3, size=30) == pytest.approx((wanted, 0))
    near = [kid(rows(seed, 200), rows(seed + 50, 200), subsets=20, size=100)[0] for seed in range(20)]
    assert abs(np.mean(near)) < 3 * np.std(near) / 20**0.5, "of one distribution it is 0 but for chance"


@pytest.fixture
def library(monkeypatch):
    """The formulas of torch-fidelity by name, but for the torchvision that it imports, which need not load here."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed: it comes with the extra evaluate")
    for name in ("", ".datasets", ".transforms", ".transforms.functional", ".models"):
        monkeypatch.setitem(sys.modules, f"torchvision{name}", MagicMock())
    before = set(sys.modules)
    yield lambda name: importlib.import_module(f"torch_fidelity.metric_{name}")
    for name in set(sys.modules) - before:
        if name.startswith("torch_fidelity"):
            del sys.modules[name]


def test_against_torch_fidelity(library):
    """The same features through the library's own formulas; its subsets of KID are drawn otherwise: all images."""
    torch = pytest.importorskip("torch", reason="torch-fidelity computes with PyTorch")
    one, other = rows(0, 80), rows(1, 80, shift=0.3)
    tensors = torch.from_numpy(one), torch.from_numpy(other)
    found = scores(Activations(one, one, one * 3), reference=Activations(other, other, other))
    fid = library("fid")
    statistics = [fid.fid_features_to_statistics(each.double()) for each in tensors]
    assert found.fid == pytest.approx(fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])
    own = library("isc").isc_features_to_metric(tensors[0] * 3, splits=1, shuffle=False)
    assert found.inception_score == pytest.approx(own["inception_score_mean"])
    options = {"verbose": False, "rng_seed": 0, "kid_subsets": 1, "kid_subset_size": 80}
    theirs = library("kid").kid_features_to_metric(*tensors, **options)
    assert found.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    if importlib.util.find_spec("torch_fidelity.metric_prc") is not None:  # from 0.4 on
        options = {"verbose": False, "prc_neighborhood": 3, "prc_batch_size": 100, "save_cpu_ram": True}
        theirs = library("prc").prc_features_to_metric(*tensors, **options)
        assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]))


def test_statistics_alone_give_fid_and_sfid():
    own, other = rows(0), rows(1, shift=0.5)
    found = scores(Activations(own, own[:, :3], own), pool=Gaussian.of(other), spatial=Gaussian.of(other[:, :3]))
    whole = scores(Activations(own, own[:, :3], own), reference=Activations(other, other[:, :3], other))
    assert (found.fid, found.sfid) == (whole.fid, whole.sfid)
    assert found.fid > found.sfid > 0
    assert (found.kid, found.precision, found.recall) == (None, None, None)
    alone = scores(Activations(own, own[:, :3], own))
    assert (alone.fid, alone.sfid, alone.inception_score) == (None, None, found.inception_score)


def test_references_in_adms_format(tmp_path):
    file = tmp_path / "reference.npz"
    pool, spatial = np.eye(POOL), np.eye(SPATIAL)
    statistics = {"mu": np.zeros(POOL), "sigma": pool, "mu_s": np.ones(SPATIAL), "sigma_s": spatial}
    np.savez(file, **statistics, arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    found = ReferenceSet.find(file)
    assert (found.pool.mean.sum(), found.spatial.mean.sum(), found.samples.count) == (0, SPATIAL, 3)
    np.savez(file, mu=statistics["mu"], sigma=pool)
    found = ReferenceSet.find(file)
    assert (found.spatial, found.samples) == (None, None)
    np.testing.assert_array_equal(found.pool.covariance, pool)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, "Inception's is (2048,)"),
        ({"mu": np.full(POOL, np.nan), "sigma": np.eye(POOL)}, "not finite"),
        ({"mu": np.zeros(POOL)}, "neither mu and sigma nor arr_0"),
        ({"arr_0": np.zeros((3, 8, 8), np.uint8)}, "must be uint8"),
    ],
)
def test_what_is_no_reference_is_one_line(tmp_path, arrays, word):
    np.savez(tmp_path / "r.npz", **arrays)
    refused(lambda: ReferenceSet.find(tmp_path / "r.npz"), word, kind=UsageError)
