"""Open-set metrics against scikit-learn and a sweep of all thresholds."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from manifpt.evaluation.open_set_metrics import fpr_at_tpr, open_set_metrics, oscr


def drawn(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    known, unknown = rng.normal(size=120), rng.normal(size=80) + 1
    if ties:
        known, unknown = known.round(), unknown.round()
    return known, rng.uniform(size=120) < 0.7, unknown


@pytest.mark.parametrize("ties", [False, True])
def test_fpr_is_read_off_scikit_learns_curve(ties):
    for seed in range(5):
        known, _, unknown = drawn(seed, ties)
        truth = np.repeat([1, 0], [120, 80])  # the known are the positive
        fpr, tpr, _ = roc_curve(truth, -np.concatenate([known, unknown]), drop_intermediate=False)
        for level in (0.95, 0.5):
            expected = fpr[np.argmax(tpr >= level - 1e-9)]
            assert fpr_at_tpr(known, unknown, level) == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
def test_oscr_is_the_area_of_a_sweep_of_thresholds(ties):
    for seed in range(5):
        known, right, unknown = drawn(seed, ties)
        thresholds = [-np.inf, *np.unique(np.concatenate([known, unknown]))]
        accepted = [(unknown <= t).mean() for t in thresholds]
        rate = [((known <= t) & right).mean() for t in thresholds]
        area = np.trapezoid(rate, accepted)
        assert oscr(known, right, unknown) == pytest.approx(area)
    assert oscr(np.zeros(4), np.zeros(4, bool), np.ones(3)) == 0
    assert oscr(np.zeros(4), np.array([1, 1, 1, 0], bool), np.ones(3)) == 0.75


def test_metrics_have_intervals_that_hold_for_other_draws():
    rng = np.random.default_rng(0)

    def found(seed: int, rows: int) -> dict[str, float]:
        known, unknown = rng.normal(size=rows), rng.normal(size=rows) + 1
        rejected = (known > 1.6, unknown > 1.6)
        return open_set_metrics(known, known < 2, unknown, rejected, seed)

    truth, inside = 0.7602, 0  # Phi(1 / sqrt 2)
    for n in range(12):
        one = found(n, 150)
        inside += one["auroc_low"] <= truth <= one["auroc_high"]
    assert inside >= 9
    assert one["known_images"] == one["unknown_images"] == 150
    assert one["false_rejection_low"] <= one["false_rejection"] <= one["false_rejection_high"]
