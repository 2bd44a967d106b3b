"""Frechet distances in closed form, and the ratio on distributions whose answer is known."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from manifpt.errors import ManifptError
from manifpt.evaluation.separability import frechet_distance, frechet_ratio


def rotation(d: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(d, d)))[0]


def test_covariances_that_commute_have_a_closed_form():
    turn, a, b = rotation(4), np.array([1.0, 4, 9, 0]), np.array([4.0, 4, 1, 0])
    mean = np.array([1.0, 0, 0, 2])
    found = frechet_distance(
        np.zeros(4), turn @ np.diag(a) @ turn.T, mean, turn @ np.diag(b) @ turn.T
    )
    assert found == pytest.approx(5 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_covariances_that_do_not_commute_are_those_of_the_root_of_the_product():
    rng = np.random.default_rng(0)
    a, b = (np.cov(rng.normal(size=(20, 5)) * rng.random(5), rowvar=False) for _ in range(2))
    expected = np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(np.zeros(5), a, np.zeros(5), b) == pytest.approx(expected)


def test_singular_covariances_give_no_negative_distance():
    rows = np.random.default_rng(0).normal(size=(6, 50)) * 1e3
    mean, cov = rows.mean(0), np.cov(rows, rowvar=False)
    found = frechet_distance(mean, cov, mean, cov)
    assert 0 <= found < 1e-6 * np.trace(cov)
    nowhere = np.zeros((50, 50))
    assert frechet_distance(mean, cov, mean, nowhere) == pytest.approx(np.trace(cov))


def classes(count: int, rows: int, d: int, shift: float = 0.0, seed: int = 0):
    """Gaussian classes of which each has its mean along an axis of its own."""
    labels = np.repeat([f"g{number}" for number in range(count)], rows)
    noise = np.random.default_rng(seed).normal(size=(count * rows, d))
    return noise + shift * np.repeat(np.eye(count, d), rows, axis=0), labels


def test_the_ratio_of_equal_classes_is_one_with_few_rows_and_with_many():
    for rows in (20, 200):
        found = frechet_ratio(*classes(8, rows, 30), most=16)
        assert found.ratio == pytest.approx(1, abs=0.1)
        assert found.low <= 1.02
        assert found.high >= 0.98
        assert (found.rows, found.components) == (rows // 2, 16)


def test_the_bias_falls_with_the_rows_above_and_below_the_line():
    few, many = (frechet_ratio(*classes(6, rows, 10)) for rows in (40, 400))
    assert few.within > 5 * many.within
    assert few.between > 5 * many.between


def test_the_ratio_grows_with_the_separation():
    found = [frechet_ratio(*classes(5, 100, 8, shift)) for shift in (0, 0.5, 1, 2, 4)]
    ratios = [one.ratio for one in found]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 10
    # Means that are 4 sqrt(2) apart, and the bias that the halves of one class have, too.
    assert found[-1].between == pytest.approx(32 + found[-1].within, rel=0.1)


def test_classes_of_one_mean_are_told_by_their_covariance():
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(size=(200, 4)), 3 * rng.normal(size=(200, 4))
    found = frechet_ratio(np.concatenate([narrow, wide]), np.repeat(["a", "b"], 200))
    assert found.between == pytest.approx(4 * (3 - 1) ** 2, rel=0.15)
    assert np.isnan(found.low)
    assert np.isnan(found.high)


@pytest.mark.parametrize("most", [64, 4])
def test_rotation_and_shift_change_nothing(most):
    features, labels = classes(4, 60, 12, shift=3)
    turned = features @ rotation(12) + 7
    expected = frechet_ratio(features, labels, most=most)
    assert frechet_ratio(turned, labels, most=most) == pytest.approx(expected, rel=1e-6)


def test_the_smallest_class_decides_the_sample_of_all():
    features, labels = classes(3, 100, 5)
    rows = np.r_[0:100, 100:200, 200:231]
    assert frechet_ratio(features[rows], labels[rows]).rows == 15


def test_one_seed_gives_one_result():
    given = classes(3, 40, 5, shift=1)
    assert frechet_ratio(*given, seed=3) == frechet_ratio(*given, seed=3)
    assert frechet_ratio(*given, seed=3).ratio != frechet_ratio(*given, seed=4).ratio


def test_what_has_no_ratio_is_refused():
    features, labels = classes(2, 10, 3)
    with pytest.raises(ManifptError, match="1 classes"):
        frechet_ratio(features[:10], labels[:10])
    with pytest.raises(ManifptError, match="smallest with 3 rows"):
        frechet_ratio(features[:13], labels[:13])
    with pytest.raises(ManifptError, match="features that vary"):
        frechet_ratio(np.ones((20, 3)), labels)
