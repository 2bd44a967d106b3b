import numpy as np
import pytest

from manifpt.artifacts.artifact_stage import as_float16
from manifpt.errors import ManifptError
from manifpt.manifold.metric import Metric, Whitening
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


def inverse_root(whitening, d):
    """Return C^(-1/2) and C^-1, d x d float64, of an explicit covariance."""
    spread = whitening.variances - whitening.rest
    covariance = (whitening.directions.T * spread) @ whitening.directions
    values, vectors = np.linalg.eigh(covariance + whitening.rest * np.eye(d))
    return (vectors / np.sqrt(values)) @ vectors.T, (vectors / values) @ vectors.T


def test_a_whitened_artifact_is_w_of_the_difference_and_its_norm_the_mahalanobis_distance():
    rng = np.random.default_rng(3)
    scales = 10.0 ** np.linspace(1, -1.5, 40)
    sample = (rng.standard_normal((400, 40)) * scales + 3).astype(np.float32)
    queries, reals = sample[:6], sample[6:36].reshape(6, 5, 40)
    metric = Metric("whitened", Whitening.fit(sample))
    root, inverse = inverse_root(metric.whitening, 40)
    exact_queries, exact = queries.astype(np.float64), reals.astype(np.float64)
    close = {"rtol": 1e-4, "atol": 1e-4}  # directions are rounded to 2^-30
    nearest = Projection().by("whitened").artifacts(queries, reals, metric)
    difference = exact_queries - exact[:, 0]
    np.testing.assert_allclose(nearest, difference @ root, **close)
    distance = np.sqrt(np.einsum("ni,ij,nj->n", difference, inverse, difference))
    np.testing.assert_allclose(np.linalg.norm(nearest, axis=1), distance, rtol=1e-5)
    mean = Projection("mean", 5).by("whitened").artifacts(queries, reals, metric)
    np.testing.assert_allclose(mean, (exact_queries - exact.mean(1)) @ root, **close)
    tangent = Projection("tangent", 5, 1e-12).by("whitened").artifacts(queries, reals, metric)
    for x, some, found in zip(exact_queries, exact, tangent, strict=True):
        plane = (some[1:] - some[0]).T  # generalised least squares: the nearest by C^-1
        weights = np.linalg.solve(plane.T @ inverse @ plane, plane.T @ inverse @ (x - some[0]))
        np.testing.assert_allclose(found, root @ (x - some[0] - plane @ weights), atol=1e-4)


def test_only_the_metric_whitened_changes_artifacts_and_the_baseline_has_none():
    queries, reals = cloud()
    for metric in ("euclidean", "cosine"):
        assert Projection("mean", 5).by(metric) == Projection("mean", 5)
    none = Projection("none").by("whitened")
    assert np.array_equal(none.artifacts(queries, reals), queries)
    old = Projection().card()
    assert "whitened" not in old
    assert Projection(**old) == Projection()
    assert Projection().by("whitened").card() == {**old, "whitened": True}


def test_artifacts_beyond_float16_are_refused():
    assert as_float16(np.array([[-65504.0, 1]])).dtype == np.float16
    with pytest.raises(ManifptError, match="--float16"):
        as_float16(np.array([[-65600.0, 1]]))


def test_counts_of_neighbours():
    assert projection_of("tangent", None, 0.1).neighbours == 16
    assert projection_of("mean", 3, 0.1) == Projection("mean", 3, 0.0)
    assert Projection(**projection_of("tangent", 3, 0.1).card()).ridge == 0.1
    with pytest.raises(ManifptError, match="nearest takes 1"):
        projection_of("nearest", 2, 0.1)
