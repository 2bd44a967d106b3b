import numpy as np
import pytest

from manifpt.evaluation.significance import holm, permutation_p


def test_holm_rejects_what_the_steps_reject():
    # Four tests at the level 0.05: 0.005 < 0.05 / 4, 0.01 < 0.05 / 3, 0.03 > 0.05 / 2, and stop.
    adjusted = holm({"a": 0.03, "b": 0.005, "c": 0.04, "d": 0.01})
    assert {name for name, p in adjusted.items() if p < 0.05} == {"b", "d"}
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.02, "c": 0.06, "d": 0.03})


def test_holm_of_one_and_of_large_p_values():
    assert holm({}) == {}
    assert holm({"a": 0.2}) == {"a": 0.2}
    assert holm({"a": 0.8, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_holm_holds_the_level_of_all_tests_together():
    drawn = np.random.default_rng(0).random((2000, 8))
    false = [min(holm(dict(enumerate(row))).values()) < 0.05 for row in drawn]
    assert np.mean(false) == pytest.approx(0.05, abs=0.015)


def test_a_permutation_that_rounding_tells_apart_counts():
    assert permutation_p(0.3, np.array([0.1 + 0.2, 0.3 - 1e-15])) == 1.0
    assert permutation_p(0.3, np.zeros(99)) == 0.01
