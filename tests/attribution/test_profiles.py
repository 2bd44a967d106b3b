"""Groups against classes: all exchanges counted one by one, and classes of any distribution."""

from itertools import combinations

import numpy as np
import pytest

from manifpt.attribution import profiles
from manifpt.attribution.profiles import Profiles

CLASSES, WIDTH = 3, 4


def draw(of, count, rng):
    """Images of a class, far from Gaussian; those beyond CLASSES are unknown."""
    means = np.random.default_rng(77).normal(size=(CLASSES + 1, WIDTH))
    return means[of] + 0.7 * rng.exponential(size=(count, WIDTH)) ** 1.5


def known(rng, count=50):
    rows = np.concatenate([draw(c, count, rng) for c in range(CLASSES)])
    return Profiles(rows, np.repeat(np.arange(CLASSES), count))


def sure(of):
    return np.eye(CLASSES)[of]


def test_the_p_value_is_the_share_of_all_exchanges(monkeypatch):
    monkeypatch.setattr(profiles, "EXCHANGES", 20_000)
    rng = np.random.default_rng(1)
    given = known(rng)
    group, mine = draw(0, 3, rng) + 0.8, given.classes[0][:5]
    both = np.concatenate([group, mine])
    covariance = 0.7 * np.cov(both.T, bias=True) + 0.3 * given.covariance
    inverse = np.linalg.inv(covariance)

    def apart(chosen):
        left = [n for n in range(8) if n not in chosen]
        difference = both[list(chosen)].mean(0) - both[left].mean(0)
        return difference @ inverse @ difference

    each = [apart(chosen) for chosen in combinations(range(8), 3)]
    exact = np.mean([one >= each[0] - 1e-9 for one in each])
    found = given._p_value(group, mine, np.random.default_rng(2))
    assert found == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("count", [5, 30])
def test_of_groups_of_known_sources_no_more_are_rejected_than_asked_for(count):
    rng = np.random.default_rng(3)
    # Each time other validation images: of one set, the share may be larger.
    ps = np.array(
        [
            known(rng).p_value(draw(n % CLASSES, count, rng), sure(n % CLASSES), n)
            for n in range(300)
        ]
    )
    for asked in (0.05, 0.2):
        assert (ps <= asked).mean() < asked + 3 * np.sqrt(asked * (1 - asked) / 300)


def test_images_that_alone_say_little_are_unknown_together():
    rng = np.random.default_rng(4)
    given, other = known(rng), draw(CLASSES, 60, rng)
    ps = {n: given.p_value(other[:n], sure(0), 0) for n in (5, 60)}
    assert ps[60] == 1 / (profiles.EXCHANGES + 1)
    assert ps[60] < ps[5]


def test_a_group_of_a_known_class_that_is_taken_for_another_is_not_unknown():
    rng = np.random.default_rng(5)
    given = known(rng)
    group = draw(1, 40, rng)
    assert given._p_value(group, given.classes[2], rng) < 0.01
    assert given.p_value(group, sure(2), 0) > 0.05


def test_one_image_does_not_decide_however_strange_it_is():
    rng = np.random.default_rng(6)
    evidence = rng.normal(size=(60, CLASSES))
    scores = rng.normal(size=60)
    given = Profiles(profiles.vectors_of(evidence, scores), np.repeat(np.arange(CLASSES), 20))
    some = profiles.vectors_of(rng.normal(size=(30, CLASSES)), np.append(rng.normal(size=29), 1e9))
    assert given.p_value(some, sure(0), 0) > 0.05


def test_classes_of_one_image_and_columns_that_never_vary():
    vectors = np.array([[0.0, 1, 0], [1, 0, 0]])
    given = Profiles(vectors, np.arange(2))
    assert 0 < given.p_value(np.zeros((5, 3)), np.array([0.5, 0.5]), 0) <= 1
