"""Last layers from features, against scikit-learn's."""

import numpy as np
import pytest

from manifpt.attribution.model.heads import PENALTY, SHRINKAGE, fit_lda, fit_linear


@pytest.fixture
def classes_of_unequal_size():
    rng = np.random.default_rng(0)
    sizes = (200, 60, 12)
    labels = np.repeat(np.arange(3), sizes)
    features = (
        rng.normal(0, (1, 5, 0.2, 3), (sum(sizes), 4)) + 1.5 * rng.normal(0, 1, (3, 4))[labels]
    )
    return (features + 7).astype(np.float32), labels


def standardised(features, labels):
    """Each class with the same weight."""
    weight = 1 / np.bincount(labels)[labels] / 3
    mean = weight @ features
    return (features - mean) / np.sqrt(weight @ (features - mean) ** 2)


def probabilities(layer, features):
    weight, bias = layer
    scores = features.astype(np.float64) @ weight.T + bias
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def test_linear_is_balanced_logistic_regression(classes_of_unequal_size):
    from sklearn.linear_model import LogisticRegression

    features, labels = classes_of_unequal_size
    x = standardised(features.astype(np.float64), labels)
    oracle = LogisticRegression(
        C=1 / (PENALTY * len(x)), class_weight="balanced", tol=1e-10, max_iter=5000
    ).fit(x, labels)
    found = probabilities(fit_linear(features, labels, 3), features)
    np.testing.assert_allclose(found, oracle.predict_proba(x), atol=1e-4)


def test_lda_is_that_of_equal_priors_with_shrinkage(classes_of_unequal_size):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, labels = classes_of_unequal_size
    x = standardised(features.astype(np.float64), labels)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=[1 / 3] * 3).fit(
        x, labels
    )
    found = probabilities(fit_lda(features, labels, 3), features)
    np.testing.assert_allclose(found, oracle.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("fit", [fit_linear, fit_lda])
def test_copies_of_a_class_change_nothing(classes_of_unequal_size, fit):
    features, labels = classes_of_unequal_size
    few = labels == 2
    more, theirs = (
        np.concatenate([features, *[features[few]] * 9]),
        np.r_[labels, [2] * few.sum() * 9],
    )
    once, often = fit(features, labels, 3), fit(more, theirs, 3)
    np.testing.assert_allclose(
        probabilities(once, features), probabilities(often, features), atol=1e-3
    )
