"""Calibration against scikit-learn, a loop, and probabilities whose error is known."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from manifpt.evaluation.calibration import (
    brier_score,
    calibration_metrics,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)


def drawn(rows: int, sharpened: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities, which are then made sharper than they should be."""
    rng = np.random.default_rng(rows)
    probabilities = rng.dirichlet([0.7] * 4, rows)
    truth = (rng.uniform(size=(rows, 1)) < probabilities.cumsum(1)).argmax(1)
    sharp = probabilities**sharpened
    return sharp / sharp.sum(1, keepdims=True), truth


def test_brier_and_likelihood_are_scikit_learns():
    probabilities, truth = drawn(500)
    expected = brier_score_loss(truth, probabilities, scale_by_half=False, labels=range(4))
    assert brier_score(probabilities, truth) == pytest.approx(expected)
    expected = log_loss(truth, probabilities, labels=range(4))
    assert negative_log_likelihood(probabilities, truth) == pytest.approx(expected)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_calibration_error_is_that_of_a_loop(adaptive):
    probabilities, truth = drawn(503, 2.0)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    confidence[:2] = 1.0, 0.2  # the ends of bins
    order = np.argsort(confidence, kind="stable")
    edges = np.linspace(0, 1, 11)
    groups = (
        [order[[i * 10 // 503 == k for i in range(503)]] for k in range(10)]
        if adaptive
        else [np.flatnonzero((confidence > a) & (confidence <= b + 1e-15))
              for a, b in pairwise(edges)]
    )  # fmt: skip
    expected = sum(
        len(g) / 503 * abs(confidence[g].mean() - right[g].mean()) for g in groups if len(g)
    )
    found = reliability(confidence, right, 10, adaptive=adaptive)
    assert sum(found["images"]) == 503
    assert expected_calibration_error(found) == pytest.approx(expected)


def test_calibrated_probabilities_have_little_error_and_sharpened_ones_much():
    good = calibration_metrics(*drawn(20_000))
    bad = calibration_metrics(*drawn(20_000, 4.0))
    assert good["expected_calibration_error"] < 0.015
    assert bad["expected_calibration_error"] > 0.1
    for name in ("adaptive_calibration_error", "brier_score", "negative_log_likelihood"):
        assert good[name] < bad[name]
    assert good["accuracy"] == bad["accuracy"]
