"""Groups against classes: formulas, calibration on classes of any distribution, foreign images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifpt.attribution.unknown import profiles
from manifpt.attribution.unknown.profiles import Profiles, foreign_of, trimmed_distance

CLASSES, WIDTH = 4, 4


def draw(of, count, rng):
    """Images of a class, far from Gaussian; those beyond CLASSES are unknown."""
    means = 1.5 * np.random.default_rng(77).normal(size=(CLASSES + 1, WIDTH))
    return means[of] + 0.7 * rng.exponential(size=(count, WIDTH)) ** 1.5


def known(rng, count=50):
    rows = np.concatenate([draw(c, count, rng) for c in range(CLASSES)])
    return Profiles(rows, np.repeat(np.arange(CLASSES), count))


def test_the_covariance_within_classes_is_the_identity():
    profiles_of = known(np.random.default_rng(0), 2000)
    within = np.concatenate([rows - rows.mean(0) for rows in profiles_of.classes])
    np.testing.assert_allclose(np.cov(within.T), np.eye(WIDTH), atol=0.02)


def test_the_distance_is_that_of_the_mean_of_the_nearest():
    rows = np.array([[1.0, 0], [3, 0], [2, 2], [90, 0]])
    assert trimmed_distance(rows, np.zeros(2), 0) == pytest.approx(24**2 + 0.5**2)
    assert trimmed_distance(rows, np.zeros(2), 1) == pytest.approx(4 + 4 / 9)
    assert trimmed_distance(rows, np.zeros(2), 2) == pytest.approx(1.5**2 + 1)


@pytest.mark.parametrize(
    ("size", "share", "expected"), [(20, 0.1, 2), (5, 0.1, 1), (4, 0.1, 0), (7, 0, 0), (3, 0.9, 2)]
)
def test_a_share_of_foreign_images_is_rounded_and_never_all(size, share, expected):
    assert foreign_of(size, share) == expected


def test_the_p_value_is_the_share_of_drawn_groups_as_far():
    rng = np.random.default_rng(1)
    given_ = known(rng)
    for size in (6, 40):
        group = draw(0, size, rng)
        usual = given_.usual_distances(0, size, 0)
        assert usual.shape == (profiles.DRAWN,)
        white = group @ given_.scale
        apart = np.square(white.mean(0) - given_.means).sum(1)
        ps = [
            ((given_.usual_distances(c, size, 0) >= apart[c]).sum() + 1) / (profiles.DRAWN + 1)
            for c in range(CLASSES)
        ]
        assert given_.p_value(group) == max(ps)
    # A group of 6 of 50, and the 44 others: their means differ by the variances of both.
    expected = WIDTH * (1 / 6 + 1 / 44)
    assert given_.usual_distances(0, 6, 0).mean() == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize("count", [5, 60])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_of_groups_of_known_sources_no_more_are_rejected_than_asked_for(count, share):
    rng = np.random.default_rng(3)
    ps = []
    for n in range(60):
        # Each time other validation images: of one set, the share may be larger.
        one, of = known(rng), n % CLASSES
        foreign = foreign_of(count, share)
        others = [draw((of + 1 + k) % CLASSES, 1, rng) for k in range(foreign)]
        group = np.concatenate([draw(of, count - foreign, rng), *others])
        ps.append(one.p_value(group, share))
    for asked in (0.05, 0.2):
        assert np.mean(np.array(ps) <= asked) < asked + 3 * np.sqrt(asked * (1 - asked) / 60)


def test_images_that_alone_say_little_are_unknown_together():
    rng = np.random.default_rng(4)
    profiles_of = known(rng, 200)
    # One deviation from a class: of single images, many are as strange.
    other = draw(0, 60, rng) + np.linalg.inv(profiles_of.scale).sum(0) / np.sqrt(WIDTH)
    ps = {n: profiles_of.p_value(other[:n]) for n in (5, 60)}
    assert ps[60] == 1 / (profiles.DRAWN + 1)
    assert ps[60] < ps[5]


def test_foreign_images_beyond_the_share_make_a_group_unknown_and_within_it_do_not():
    rng = np.random.default_rng(5)
    profiles_of = known(rng)
    group = np.concatenate([draw(1, 36, rng), draw(CLASSES, 4, rng) + 9])
    assert profiles_of.p_value(group, 0.1) > 0.05
    assert profiles_of.p_value(group, 0.0) <= 0.01


def test_one_image_does_not_decide_however_strange_it_is():
    rng = np.random.default_rng(6)
    group = draw(2, 30, rng)
    group[-1] = 1e9
    assert known(rng).p_value(group, 0.1) > 0.05


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 3))
def test_neither_the_order_nor_what_was_asked_before_matters(order, before):
    rng = np.random.default_rng(7)
    profiles_of, group = known(rng), draw(3, 12, rng) + 0.4
    expected = known(np.random.default_rng(7)).p_value(group, 0.1)
    for n in range(before):
        profiles_of.p_value(draw(n, 5 + n, rng))
    assert profiles_of.p_value(group[list(order)], 0.1) == expected


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(profiles, "REMEMBERED", 2)
    rng = np.random.default_rng(8)
    profiles_of, groups = known(rng), [draw(0, n, rng) for n in range(5, 12)]
    expected = [Profiles(profiles_of.coordinates, profiles_of.labels).p_value(g) for g in groups]
    assert [profiles_of.p_value(group) for group in groups] == expected
    assert len(profiles_of._distances) <= 2


def test_classes_of_two_images_and_columns_that_never_vary():
    coordinates = np.array([[0.0, 1, 0], [1, 0, 0], [2, 1, 0], [0, 3, 0]])
    assert 0 < Profiles(coordinates, np.array([0, 0, 1, 1])).p_value(np.zeros((5, 3)), 0.1) <= 1
