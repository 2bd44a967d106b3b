"""The oracle: float64 Mahalanobis distances by the inverse of an explicit covariance."""

import shutil
import warnings
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import draw, folder_of

from manifpt import storage
from manifpt.artifacts.projection import Target
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.engine import pools
from manifpt.errors import DamageError
from manifpt.jobs import append, build_manifold
from manifpt.manifold import Metric, Shard, StoredManifold, metric, nearest
from manifpt.manifold.basis import Basis
from manifpt.manifold.build import content_sha256
from manifpt.manifold.growth import compact_manifold
from manifpt.manifold.metric import Whitening
from manifpt.manifold.placement import place
from manifpt.manifold.prepare import write_whitening
from manifpt.manifold.projector import NEAREST
from manifpt.manifold.search import SearchPlan

PLANS = {
    "product": SearchPlan(),
    "bounds": SearchPlan("bounds", directions=3),
    "flat": SearchPlan("index"),
}


def mahalanobis(queries, reals, inverse):
    difference = queries[:, None].astype(np.float64) - reals[None]
    return np.sqrt(np.einsum("qni,ij,qnj->qn", difference, inverse, difference))


def correlated(count, dimension, rng):
    """Reals whose nearest by Mahalanobis distance are others than by Euclidean."""
    turn = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    scales = 10.0 ** np.linspace(1, -1.5, dimension)
    return (rng.standard_normal((count, dimension)) * scales @ turn + 3).astype(np.float32)


@cache
def cloud():
    """Reals, their ids, queries, and the distances of all pairs."""
    rng = np.random.default_rng(0)
    reals = correlated(300, 12, rng)
    queries = np.concatenate([reals[:30], correlated(226, 12, rng)])
    ids = np.array([f"r{n:03d}" for n in rng.permutation(300)], dtype=object)
    inverse = np.linalg.inv(np.cov(reals.astype(np.float64).T))
    return reals, ids, queries, mahalanobis(queries, reals, inverse)


def shards_of(reals, ids, whitened, count):
    basis = Basis.fit(whitened.points(reals), 6)
    place = np.random.default_rng(count).integers(0, count, len(ids))
    return [
        Shard(reals[p], ids[p], ids[p], whitened, basis, basis.keys(whitened.points(reals[p])))
        for p in (np.flatnonzero(place == n) for n in range(count))
    ]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("batch", [1, 17, 256])
def test_neighbours_are_those_of_the_inverse_covariance(plan, shards, batch):
    reals, ids, queries, distances = cloud()
    parts = shards_of(reals, ids, Metric("whitened", Whitening.fit(reals)), shards)
    excluded = np.array([*ids[:30], *[""] * 226], dtype=object)
    distances = np.where(excluded[:, None] == ids, np.inf, distances)
    order = np.argsort(distances, axis=1)[:, :3]
    euclidean = ((queries[:, None] - reals) ** 2).sum(2).argmin(1)
    assert (euclidean[30:] != order[30:, 0]).mean() > 0.5  # whitening matters
    for start in range(0, min(256, 20 * batch), batch):
        part = slice(start, start + batch)
        found = nearest(parts, queries[part], 3, excluded[part], plan)
        assert found.id.tolist() == ids[order[part]].tolist()
        expected = np.take_along_axis(distances[part], order[part], 1)
        np.testing.assert_allclose(found.distance, expected, rtol=1e-5)


def test_distances_do_not_change_with_the_units_or_the_mixture_of_the_numbers():
    rng = np.random.default_rng(3)
    reals = rng.standard_normal((400, 9))
    mixed = reals @ rng.standard_normal((9, 9)) + 5
    points = [Whitening.fit(x).points(x) for x in (reals.astype("f4"), mixed.astype("f4"))]
    one, other = (np.linalg.norm(p[:50, None] - p[None], axis=2) for p in points)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_with_more_numbers_than_reals_it_is_the_covariance_of_probabilistic_pca():
    rng = np.random.default_rng(4)
    scales = np.where(np.arange(200) < 20, 1 / np.arange(1, 201), 0.01)
    reals = (rng.standard_normal((160, 200)) * scales).astype(np.float32)
    found = Whitening.fit(reals)
    assert found.directions.shape == (20, 200)
    values, vectors = np.linalg.eigh(np.cov(reals.astype(np.float64).T))
    values, vectors = values[::-1], vectors[:, ::-1]
    np.testing.assert_allclose(found.variances, values[:20], rtol=1e-3)
    np.testing.assert_allclose(found.rest, values[20:].mean(), rtol=1e-3)
    covariance = (vectors[:, :20] * values[:20]) @ vectors[:, :20].T
    covariance += values[20:].mean() * vectors[:, 20:] @ vectors[:, 20:].T
    expected = mahalanobis(reals[:20], reals, np.linalg.inv(covariance))
    points = found.points(reals)
    distances = np.linalg.norm(points[:20, None] - points[None], axis=2)
    np.testing.assert_allclose(distances, expected, rtol=0.02)
    stored = found.directions.T * (found.variances - found.rest) @ found.directions
    inverse = np.linalg.inv(stored + found.rest * np.eye(200))
    np.testing.assert_allclose(distances, mahalanobis(reals[:20], reals, inverse), atol=1e-4)


@pytest.mark.parametrize("dimension", [12, 700])
def test_the_batch_and_the_threads_change_no_bit_of_a_point(dimension, monkeypatch):
    rng = np.random.default_rng(5)
    reals = rng.standard_normal((300, dimension)).astype(np.float32)
    whitening = Whitening.fit(reals)
    whole = whitening.points(reals)
    threads = torch.get_num_threads()
    for batch, count in ((1, 1), (17, 1), (256, 2)):
        torch.set_num_threads(count)
        parts = [whitening.points(reals[n : n + batch]) for n in range(0, 300, batch)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
    torch.set_num_threads(threads)
    monkeypatch.setattr(metric, "BLOCK_BYTES", 8 * dimension * 3)
    assert whitening.points(reals).tobytes() == whole.tobytes()


def test_the_order_of_sums_changes_no_bit_of_a_product():
    rng = np.random.default_rng(6)
    directions = np.linalg.qr(rng.standard_normal((2000, 30)))[0].T
    directions = np.rint(directions / metric.GRID) * metric.GRID
    vectors = rng.standard_normal((40, 2000)) * 10.0 ** rng.integers(-6, 6, (40, 1))
    found = metric.product(vectors, directions)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(2000)
        other = metric.product(vectors[:, order], np.ascontiguousarray(directions[:, order]))
        assert other.tobytes() == found.tobytes()
    plain = vectors @ directions.T
    bound = 2.0**-44 * 2000 * np.abs(vectors).max(1, keepdims=True) * np.sqrt(2000)
    assert (np.abs(found - plain) <= bound).all()


@pytest.mark.parametrize(
    "reals",
    [
        np.zeros((20, 5)),
        np.full((20, 5), 0.3),
        np.array([[1.0, 2, 3]]),
        np.arange(21.0).reshape(7, 3),
        np.array([[0.0, 1], [0, 1]] * 10),
        np.arange(40.0)[:, None],
        np.outer(np.arange(40.0), [1, 0, 0, 0]),
        np.random.default_rng(0).random((9, 300)),
    ],
    ids=["zero", "constant", "one", "seven", "two", "d=1", "a line", "few"],
)
def test_degenerate_reals_have_finite_points(reals):
    reals = reals.astype(np.float32)
    queries = np.concatenate([reals, reals[:1] + 1, -reals[:1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whitening = Whitening.fit(reals)
        points = whitening.points(queries)
    assert whitening.rest > 0
    assert (whitening.variances > 0).all()
    assert np.isfinite(points).all()
    assert np.isfinite(np.square(points).sum(1)).all()  # in float32, as products take them
    assert (points[len(reals)] != points[0]).any()
    if not reals.any():
        np.testing.assert_array_equal(points, queries)  # the Euclidean metric
    again = Whitening.of_lines(whitening.lines())
    assert again.points(queries).tobytes() == points.tobytes()


def test_a_line_is_measured_in_its_standard_deviations():
    values = np.random.default_rng(1).standard_normal((80, 1)) * 7 + 2
    reals = (values @ np.array([[0.6, 0.8, 0]])).astype(np.float32)
    points = Whitening.fit(reals).points(reals)
    expected = np.abs(values - values.T) / values.std(ddof=1)
    np.testing.assert_allclose(
        np.linalg.norm(points[:, None] - points[None], axis=2), expected, atol=1e-4
    )


def test_a_metric_is_a_known_one_and_whitened_has_its_covariance():
    for name in ("manhattan", "whitened"):
        with pytest.raises(ValueError, match=name):
            Metric(name)


def built(path, inputs, shards):
    flags = ["--input", *inputs, "--output", path, "--shards", f"{shards}", "--image-size", "8"]
    flags += ["--tiles", "0"]
    assert build_manifold.main([*flags, "--metric", "whitened"]) == 0
    return StoredManifold.open(path)


@pytest.fixture(scope="module")
def manifold(ray_session, tmp_path_factory):
    out = tmp_path_factory.mktemp("whitened")
    return built(f"{out}/m", [folder_of(out / "reals", range(200))], 3)


def test_every_placement_and_plan_of_a_built_manifold_finds_the_same(whole_cluster, manifold):
    whole = manifold.read(SearchPlan())
    images = np.stack([draw("blocks", n, 8) for n in range(30)])
    x = manifold.space.embed(images).reshape(30, -1)
    assert whole.metric.whitening.directions.shape == (25, 192)
    stored = whole.metric.whitening
    covariance = stored.directions.T * (stored.variances - stored.rest) @ stored.directions
    inverse = np.linalg.inv(covariance + stored.rest * np.eye(192))
    distances = mahalanobis(x, whole.vectors, inverse)
    order = np.argsort(distances, axis=1)[:, :2]
    nobody = np.full(30, "", dtype=object)
    pool = pools.pool(pools.ANY, uses_gpu=False)
    bits = set()
    for search in manifold.manifest["search"]["plans"]:
        for kind in ("replicated", "sharded", "scan"):
            placement, _ = place(manifold, pools.SearchDemand(search, kind, 2**18), pool)
            found = placement.searcher().nearest(x, 2, nobody)
            assert found.id.tolist() == whole.ids[order].tolist()
            expected = np.take_along_axis(distances, order, 1)
            np.testing.assert_allclose(found.distance, expected, rtol=1e-5)
            bits.add(found.distance.tobytes())
    assert len(bits) == 1
    assert manifold.size == 2 * 200 * 192 * 4  # vectors and points


def test_artifacts_have_the_distance_as_norm_and_an_old_attributor_its_own(manifold):
    trained = NEAREST.on(manifold.manifest)
    branch = Target(manifold.space, manifold.rule, manifold, trained).facts() | {"name": "rgb"}
    before = branch | {"projection": NEAREST.card()}  # as written before there was ``whitened``
    images = np.stack([draw("blocks", n, 8) for n in range(30)])
    table = pa.table({"pixel_sha256": [""] * 30})
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    table = table.append_column("image", tensor)
    made = []
    for one in (branch, before):
        target = trained_targets(TrainedAttributor("", {"branches": [one]}), [])["rgb"]
        assert target.facts()["projection"] == one["projection"]
        made.append(target.projector_alone()(table))
    (new, beside), (old, beside_old) = made
    assert beside == beside_old
    assert np.linalg.norm(new.reshape(30, -1), axis=1) == pytest.approx(beside["distance"])
    whole = manifold.read(SearchPlan())
    row = {name: n for n, name in enumerate(whole.ids)}
    reals = whole.vectors[[row[name] for name in beside["neighbor_id"]]]
    queries = manifold.space.embed(images).reshape(30, -1)
    assert np.array_equal(old.reshape(30, -1), queries - reals)


def test_threads_that_a_task_before_had_change_no_covariance(manifold, tmp_path):
    vectors = StoredManifold(manifold.uri, {**manifold.manifest, "metric": "euclidean"})
    threads, hashes = torch.get_num_threads(), set()
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        hashes.add(write_whitening(vectors, f"{tmp_path}")["sha256"])
        assert torch.get_num_threads() == count  # nor does this task change the next
    torch.set_num_threads(threads)
    assert hashes == {manifold.manifest["whitening"]["sha256"]}


@pytest.mark.slow
def test_appending_keeps_the_covariance_which_is_part_of_the_hash(manifold, tmp_path):
    reals = storage.join(manifold.uri, "../reals")
    again = built(f"{tmp_path}/again", [f"real={reals}"], 2)
    assert again.sha256 == manifold.sha256  # not a matter of the shards
    shutil.copytree(manifold.uri, tmp_path / "grown")
    more = folder_of(tmp_path / "more", range(190, 230))
    grow = [f"{tmp_path}/grown", "--input", more]
    assert append.main(grow) == 0
    grown = StoredManifold.open(f"{tmp_path}/grown")
    assert grown.manifest["whitening"] == manifold.manifest["whitening"]
    other = {**grown.manifest, "whitening": {"sha256": "0"}}
    assert content_sha256(other) != content_sha256(grown.manifest) == grown.sha256
    assert compact_manifold(f"{tmp_path}/grown", 1)["content_sha256"] == grown.sha256
    small = StoredManifold.open(f"{tmp_path}/grown").read(SearchPlan())
    assert len(small.ids) == 230
    lines = [m.whitening.lines().tobytes() for m in (small.metric, manifold.metric)]
    assert lines[0] == lines[1]


def test_a_damaged_covariance_is_refused(manifold, tmp_path):
    shutil.copytree(manifold.uri, tmp_path / "m")
    path = storage.join(f"{tmp_path}/m", manifold.manifest["whitening"]["path"])
    data = bytearray(storage.read_bytes(path))
    data[-5] ^= 1
    storage.write_bytes(path, bytes(data))
    with pytest.raises(DamageError, match="differs"):
        StoredManifold.open(f"{tmp_path}/m").read(SearchPlan())
