import numpy as np
import pytest

from manifpt.errors import ManifptError
from manifpt.manifold.projector import Projection, projection_of


def cloud(seed=0, n=6, k=5, d=40):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((n, d)).astype(np.float32),
        rng.standard_normal((n, k, d)).astype(np.float32),
    )


def test_nearest_and_mean():
    queries, reals = cloud()
    assert np.array_equal(Projection().project(queries, reals), reals[:, 0])
    mean = Projection("mean", 5).project(queries, reals)
    np.testing.assert_allclose(mean, reals.mean(1), atol=1e-6)


def test_tangent_is_the_orthogonal_projection_as_the_ridge_vanishes():
    queries, reals = cloud()
    star = Projection("tangent", 5, 1e-9).project(queries, reals)
    for x, some, found in zip(queries, reals.astype(np.float64), star, strict=True):
        plane = (some[1:] - some[0]).T
        weights = np.linalg.lstsq(plane, x - some[0], rcond=None)[0]
        np.testing.assert_allclose(found, some[0] + plane @ weights, atol=1e-4)
        np.testing.assert_allclose(plane.T @ (x - found), 0, atol=1e-3)  # orthogonal


def test_tangent_with_a_large_ridge_is_the_mean_and_lies_between():
    queries, reals = cloud(1)
    far = Projection("tangent", 5, 1e9).project(queries, reals)
    np.testing.assert_allclose(far, reals.mean(1), atol=1e-5)
    distance = [
        np.linalg.norm(queries - Projection("tangent", 5, r).project(queries, reals), axis=1)
        for r in (1e-9, 0.1, 1e9)
    ]
    assert (distance[0] <= distance[1]).all()
    assert (distance[1] <= distance[2]).all()


def test_identical_neighbours_are_themselves_and_each_image_stands_alone():
    queries, reals = cloud(2)
    reals[0] = reals[0, :1]
    projection = Projection("tangent", 5, 0.1)
    whole = projection.project(queries, reals)
    np.testing.assert_allclose(whole[0], reals[0, 0], atol=1e-6)
    alone = np.concatenate(
        [projection.project(queries[i : i + 1], reals[i : i + 1]) for i in range(6)]
    )
    assert np.array_equal(whole, alone)


def test_none_leaves_the_embedding_as_it_is():
    queries, reals = cloud()
    assert not Projection("none").project(queries, reals).any()


def test_counts_of_neighbours():
    assert projection_of("tangent", None, 0.1).neighbours == 16
    assert projection_of("mean", 3, 0.1) == Projection("mean", 3, 0.0)
    assert Projection(**projection_of("tangent", 3, 0.1).card()).ridge == 0.1
    with pytest.raises(ManifptError, match="nearest takes 1"):
        projection_of("nearest", 2, 0.1)
