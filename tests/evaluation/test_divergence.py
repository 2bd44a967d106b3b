"""Distances of distributions, and their theory on distributions in the line and the plane.

A manifold is a set of points here, and an artifact the way from its nearest one.
"""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from manifpt.evaluation.divergence import (
    mean_artifact_length,
    median_distance,
    sliced_wasserstein,
    squared_mmd,
)
from manifpt.evaluation.support import support_overlap


def artifacts_of(points: np.ndarray, manifold: np.ndarray) -> np.ndarray:
    return points - manifold[cKDTree(manifold).query(points)[1]]


def circle(count: int, seed: int = 0) -> np.ndarray:
    angles = 2 * np.pi * np.random.default_rng(seed).random(count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_mmd_is_the_mean_over_pairs_of_different_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 2)), 1 + rng.normal(size=(5, 2))

    def kernel(x, y):
        return np.exp(-((x - y) ** 2).sum() / 2 / 1.5**2)

    own = [[kernel(x, y) for i, x in enumerate(s) for y in s[:i]] for s in (a, b)]
    between = [kernel(x, y) for x in a for y in b]
    expected = np.mean(own[0]) + np.mean(own[1]) - 2 * np.mean(between)
    assert squared_mmd(a, b, bandwidth=1.5) == pytest.approx(expected)


def test_mmd_of_gaussians_is_that_of_their_densities():
    """For N(0, 1) and N(s, 1) it is 2 h / sqrt(h^2 + 2) (1 - exp(-s^2 / (2 (h^2 + 2))))."""
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(100, 1)), 1 + rng.normal(size=(100, 1))) for _ in range(200)]
    found = [squared_mmd(a, b, bandwidth=1.0) for a, b in pairs]
    expected = 2 / np.sqrt(3) * (1 - np.exp(-1 / 6))
    assert np.mean(found) == pytest.approx(expected, abs=3 * np.std(found) / np.sqrt(200))


def test_mmd_is_unbiased_where_distributions_are_equal():
    rng = np.random.default_rng(0)
    found = [squared_mmd(rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for _ in range(200)]
    assert min(found) < 0
    assert np.mean(found) == pytest.approx(0, abs=3 * np.std(found) / np.sqrt(200))


def test_mmd_tells_equal_means_and_variances_apart():
    rng = np.random.default_rng(0)
    normal, coin = rng.normal(size=(500, 1)), rng.choice([-1.0, 1.0], size=(500, 1))
    assert squared_mmd(normal, coin) > 0.03
    assert squared_mmd(normal, rng.normal(size=(500, 1))) < 0.003


def test_what_has_no_mmd_is_refused():
    with pytest.raises(ValueError, match="2 or more"):
        squared_mmd(np.zeros((1, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="give one above 0"):
        squared_mmd(np.zeros((3, 1)), np.zeros((3, 1)))


def test_the_median_of_many_rows_is_near_that_of_all():
    points = np.random.default_rng(0).normal(size=(2000, 3))
    everything = np.median(cdist(points, points)[np.triu_indices(2000, 1)])
    assert median_distance(points) == pytest.approx(everything, rel=0.03)
    assert median_distance(points) == median_distance(points)


@pytest.mark.parametrize("rows", [(40, 40), (40, 25), (3, 50), (1, 7)])
def test_on_a_line_the_sliced_distance_is_the_exact_one(rows):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows[0], 1)), 1 + 2 * rng.normal(size=(rows[1], 1))
    assert sliced_wasserstein(a, b, directions=3) == pytest.approx(
        wasserstein_distance(a[:, 0], b[:, 0])
    )


def test_a_shift_in_the_plane_is_seen_with_the_mean_cosine():
    points = np.random.default_rng(0).normal(size=(50, 2))
    found = sliced_wasserstein(points, points + np.array([3.0, 4.0]), directions=4000)
    assert found == pytest.approx(5 * 2 / np.pi, rel=0.03)
    assert sliced_wasserstein(points, points) == 0


def test_the_directions_are_of_the_seed():
    a, b = circle(30), 2 * circle(30, 1)
    assert sliced_wasserstein(a, b, seed=1) == sliced_wasserstein(a, b, seed=1)
    assert sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b, seed=2)


def test_artifacts_of_any_shape_have_the_length_of_all_their_numbers():
    maps = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
    expected = np.mean([np.sqrt((one.astype(float) ** 2).sum()) for one in maps])
    assert mean_artifact_length(maps) == pytest.approx(expected)


def test_artifacts_are_zero_where_and_only_where_the_support_is_inside():
    manifold = circle(300)
    rng = np.random.default_rng(1)
    inside = manifold[rng.integers(300, size=200)]
    assert mean_artifact_length(artifacts_of(inside, manifold)) == 0
    assert support_overlap(manifold, inside)["precision"] == 1
    outside = inside.copy()
    outside[0] *= 1.5
    length = mean_artifact_length(artifacts_of(outside, manifold))
    assert length == pytest.approx(0.5 / 200, rel=0.1)


@pytest.mark.parametrize(("part", "low", "high"), [(1.0, 1.0, 1.0), (0.25, 0.2, 0.3)])
def test_recall_is_free_where_artifacts_are_zero(part, low, high):
    """Samples that cover a part of the circle have zero artifacts, and recall that part."""
    manifold = circle(400)
    manifold = manifold[np.argsort(np.arctan2(manifold[:, 1], manifold[:, 0]))]
    generated = manifold[: int(400 * part)]
    assert mean_artifact_length(artifacts_of(generated, manifold)) == 0
    found = support_overlap(manifold, generated)
    assert found["precision"] == 1
    assert low <= found["recall"] <= high


@pytest.mark.parametrize("seed", range(5))
def test_on_a_line_artifacts_are_at_most_the_wasserstein_distance(seed):
    rng = np.random.default_rng(seed)
    data = rng.random((80, 1))
    manifold = np.concatenate([data, rng.random((40, 1))])
    generated = rng.normal(rng.random(), rng.random(), size=(60, 1))
    length = mean_artifact_length(artifacts_of(generated, manifold))
    assert 0 < length <= wasserstein_distance(generated[:, 0], data[:, 0])


@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_in_the_plane_artifacts_are_at_most_the_wasserstein_distance(spread):
    data = circle(150)
    manifold = np.concatenate([data, circle(100, 1)])
    rng = np.random.default_rng(2)
    generated = circle(150, 3) + spread * rng.normal(size=(150, 2))
    costs = cdist(generated, data)
    exact = costs[linear_sum_assignment(costs)].mean()
    assert mean_artifact_length(artifacts_of(generated, manifold)) <= exact
    assert sliced_wasserstein(generated, data) <= exact


def test_the_bound_is_reached_where_all_points_move_off_by_as_much():
    data = circle(150)
    assert mean_artifact_length(artifacts_of(1.2 * data, data)) == pytest.approx(0.2)
    costs = cdist(1.2 * data, data)
    assert costs[linear_sum_assignment(costs)].mean() == pytest.approx(0.2)


def test_collapse_inside_the_manifold_has_no_artifacts_and_is_seen_by_mmd():
    manifold = circle(300)
    collapsed = np.repeat(manifold[:1], 300, axis=0)
    assert mean_artifact_length(artifacts_of(collapsed, manifold)) == 0
    others = circle(300, 1)
    assert squared_mmd(collapsed, manifold) > 0.5
    assert abs(squared_mmd(others, manifold)) < 0.01
    assert sliced_wasserstein(collapsed, manifold) > 10 * sliced_wasserstein(others, manifold)
