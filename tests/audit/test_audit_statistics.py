"""Information and accuracy against scikit-learn, and against labels that mean nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from manifpt.audit.statistics import (
    MOST_VALUES,
    codes,
    cross_counts,
    information,
    mutual_information,
    shuffled_information,
    tree_accuracy,
)

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), 100)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=200))
def test_information_is_that_of_scikit_learn(pairs):
    x, y = (np.array(column) for column in zip(*pairs, strict=True))
    expected = mutual_info_score(x, y) / np.log(2)
    assert mutual_information(x, y) == pytest.approx(expected, abs=1e-9)


def test_a_property_explains_all_half_or_nothing_of_the_label():
    assert information(LABELS, LABELS).share == pytest.approx(1)
    assert information(LABELS // 2, LABELS).share == pytest.approx(0.5, abs=0.01)
    assert information(np.zeros(400, int), LABELS).share == 0
    # Many values say much of any label by chance: the baseline takes that away.
    noise = information(RNG.permutation(np.repeat(np.arange(40), 10)), LABELS)
    assert noise.bits > 0.1
    assert noise.share < 0.02


def test_codes_are_few_and_null_is_a_value():
    assert len(set(codes(list(RNG.normal(size=1000))))) == 16
    assert len(set(codes([f"v{n}" for n in range(500)]))) == MOST_VALUES + 1
    assert codes([None, None]).tolist() == [0, 0]
    numbers = codes([None, *range(100)])
    assert numbers[0] not in numbers[1:]
    assert (np.diff(numbers[1:]) >= 0).all()


def test_accuracy_is_chance_where_nothing_differs_and_more_where_it_does():
    flat = tree_accuracy([np.zeros(400, int)], LABELS)
    assert (flat.accuracy, flat.share) == (0.25, 0)
    found = tree_accuracy([RNG.integers(0, 9, 400), LABELS // 2], LABELS)
    assert found.accuracy == pytest.approx(0.5, abs=0.06)
    assert found.accuracy > found.shuffled
    assert tree_accuracy([RNG.integers(0, 9, 400)], LABELS).share < 0.05
    assert tree_accuracy([np.arange(6)], np.array([0, 0, 0, 0, 0, 1])) is None


def test_a_classifier_of_noise_does_not_fail_an_audit():
    """With ten shuffles alone, every twentieth of such small sets failed."""
    labels = np.repeat([0, 1, 2], 10)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        columns = [rng.integers(0, 16, 30) for _ in range(4)]
        found = tree_accuracy(columns, labels, seed)
        assert found.share == 0


def test_shuffled_labels_are_tables_with_the_same_sums():
    x, labels = RNG.integers(0, 5, 60), np.repeat([0, 1], 30)
    drawn = shuffled_information(cross_counts(x, labels))
    shuffled = [mutual_information(x, RNG.permutation(labels)) for _ in range(2000)]
    assert drawn.mean() == pytest.approx(np.mean(shuffled), rel=0.1)
    assert np.quantile(drawn, 0.95) == pytest.approx(np.quantile(shuffled, 0.95), rel=0.15)


def test_few_images_tell_nothing_unless_chance_would_hardly_do_so():
    for each, share in ((3, 0.0), (12, 1.0)):
        labels = np.repeat([0, 1], each)
        assert information(labels, labels).share == pytest.approx(share)
        assert information(np.arange(2 * each), labels).share == 0
