"""The table of generators whose artifacts grow, and correlations beside SciPy's."""

import numpy as np
import pytest
from scipy.stats import permutation_test, spearmanr

from manifpt.errors import ManifptError
from manifpt.evaluation.theory import MEASURES, rank_correlation, rank_table


def plane(count: int, lift: float, seed: int) -> np.ndarray:
    """Gaussians in the plane z = lift, of the reals' plane z = 0."""
    return np.c_[np.random.default_rng(seed).normal(size=(count, 2)), np.full(count, lift)]


def lifted(lifts):
    generated = {f"g{n}": plane(60 + n, lift, n) for n, lift in enumerate(lifts)}
    artifacts = {name: points * [0, 0, 1] for name, points in generated.items()}
    return plane(80, 0, 99), generated, artifacts


def test_generators_farther_off_are_farther_by_all_measures():
    table = rank_table(*lifted([0.0, 0.4, 0.8, 1.6, 3.2, 6.4]))
    assert table.samples == 60
    assert [row["artifact_length"] for row in table.rows.values()] == pytest.approx(
        [0, 0.4, 0.8, 1.6, 3.2, 6.4]
    )
    for measure in ("squared_mmd", "sliced_wasserstein"):
        assert table.correlations[measure].rho == pytest.approx(1)
        # Two of the 720 orders of 6 generators are as extreme.
        assert table.correlations[measure].p == pytest.approx(2 / 720, abs=0.002)
    for measure in ("precision", "density", "coverage"):
        assert table.correlations[measure].rho < -0.8
    assert set(table.correlations) == set(MEASURES)


def test_a_measure_that_is_constant_has_no_correlation():
    table = rank_table(*lifted([50.0, 60.0, 70.0]))
    assert np.isnan(table.correlations["precision"].rho)
    assert table.correlations["precision"].p == 1


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties):
    rng = np.random.default_rng(0)
    x = rng.normal(size=9)
    y = x + 2 * rng.normal(size=9)
    if ties:
        x, y = x.round(), y.round()
    found = rank_correlation(x, y)
    exact = permutation_test(
        (x,),
        lambda order: abs(spearmanr(order, y).statistic),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=2000,
        rng=0,
    )
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.p == pytest.approx(exact.pvalue, abs=0.04)


def test_artifacts_that_are_not_of_the_images_are_refused():
    real, generated, artifacts = lifted([0.0, 1.0])
    with pytest.raises(ManifptError, match="g1: give one artifact for each of its 61 images"):
        rank_table(real, generated, {**artifacts, "g1": artifacts["g1"][:5]})
    with pytest.raises(ManifptError, match="more than k = 5"):
        rank_table(real[:5], generated, artifacts)
