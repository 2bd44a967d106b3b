"""The oracle: float64 brute force, ordered by (distance, id)."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifpt.errors import ManifptError
from manifpt.manifold import Shard, nearest, product
from manifpt.manifold.basis import Basis, truncated_keys
from manifpt.manifold.metric import EUCLIDEAN, METRICS, Metric, Whitening
from manifpt.manifold.search import SearchPlan

PLANS = {
    "numpy": SearchPlan(multiply="numpy"),
    "torch": SearchPlan(multiply="torch"),
    "bounds": SearchPlan("bounds", directions=3),
    "flat": SearchPlan("index"),
}


def compared(x, metric):
    """Whitened distances are those of float32 points; test_metric.py has what these must be."""
    x = (metric.points(x) if metric.name == "whitened" else x).astype(np.float64)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1) if metric.name == "cosine" else x


def oracle(reals, ids, queries, k, hashes=None, excluded=None, metric=EUCLIDEAN):
    x, y = compared(queries, metric), compared(reals, metric)
    out = []
    for n, query in enumerate(x):
        distance = np.sqrt(((query - y) ** 2).sum(1))
        if excluded is not None:
            distance[hashes == excluded[n]] = np.inf
        order = sorted(range(len(ids)), key=lambda i: (distance[i], ids[i]))[:k]
        out.append([(distance[i], ids[i]) for i in order])
    return out


def shard(reals, ids, hashes, basis, metric=EUCLIDEAN):
    one = Shard(reals, ids, hashes, metric, basis)
    return Shard(reals, ids, hashes, metric, basis, basis.keys(one.points))


def cut(reals, ids, hashes, shards, rng, metric=EUCLIDEAN):
    basis = Basis.fit(Shard(reals, ids, metric=metric).points, 8)
    place = rng.integers(0, shards, len(ids))
    pieces = [np.flatnonzero(place == s) for s in range(shards)]
    return [shard(reals[p], ids[p], hashes[p], basis, metric) for p in pieces if len(p)]


def names(count, rng):
    return (
        np.array([f"r{n:03d}" for n in rng.permutation(count)], dtype=object),
        np.array([f"h{n}" for n in range(count)], dtype=object),
    )


@cache
def tied(k):
    """Reals of few values, so that many tie, queries, and their neighbours by the oracle."""
    rng = np.random.default_rng(0)
    reals = rng.integers(0, 4, (300, 12)).astype(np.float32)
    reals[50:80] = reals[0]
    ids, hashes = names(300, rng)
    queries = np.concatenate([reals[:60], rng.random((196, 12), dtype=np.float32) * 4])
    excluded = np.array([f"h{n}" for n in range(len(queries))], dtype=object)
    return reals, ids, hashes, queries, excluded, oracle(reals, ids, queries, k, hashes, excluded)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("batch", [1, 17, 256])
@pytest.mark.parametrize("k", [1, 5])
def test_equals_the_oracle(plan, shards, batch, k):
    reals, ids, hashes, queries, excluded, expected = tied(k)
    parts = cut(reals, ids, hashes, shards, np.random.default_rng(shards))
    for start in range(0, min(len(queries), 20 * batch), batch):
        part = slice(start, start + batch)
        found = nearest(parts, queries[part], k, excluded[part], plan)
        assert found.seen.all()
        for n, line in enumerate(expected[part]):
            assert list(found.id[n]) == [i for _, i in line]
            np.testing.assert_allclose(found.distance[n], [d for d, _ in line], rtol=1e-12)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("k", [1, 5, 80])
def test_equals_the_oracle_over_many_small_blocks(plan, k, monkeypatch):
    for name, value in {"BLOCK": 64, "LONG": 1, "PAIRS": 500, "SPREAD": 1}.items():
        monkeypatch.setattr(product, name, value)
    reals, ids, hashes, queries, excluded, expected = tied(k)
    parts = cut(reals, ids, hashes, 1, np.random.default_rng(0))
    found = nearest(parts, queries, k, excluded, plan)
    assert found.id.tolist() == [[i for _, i in line] for line in expected]


def test_more_directions_than_there_are_is_all_of_them():
    keys = np.random.default_rng(0).random((20, 9), dtype=np.float32)
    np.testing.assert_array_equal(truncated_keys(keys, 50), keys)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 60),
    dimension=st.integers(1, 40),
    shards=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    spread=st.sampled_from([0.0, 1e-3, 1.0]),
    far=st.sampled_from([1.0, 50.0]),
    name=st.sampled_from(METRICS),
    plan=st.sampled_from(list(PLANS.values())),
)
def test_equals_the_oracle_where_float32_cancels(
    seed, count, dimension, shards, offset, spread, far, name, plan
):
    rng = np.random.default_rng(seed)
    reals = (offset + spread * rng.standard_normal((count, dimension))).astype(np.float32)
    queries = (offset + far * spread * rng.standard_normal((9, dimension))).astype(np.float32)
    queries[0], queries[1], queries[2] = -queries[0], reals[0], 0
    metric = Metric(name, Whitening.fit(reals) if name == "whitened" else None)
    ids, _ = names(count, rng)
    hashes = np.full(count, "", dtype=object)
    found = nearest(cut(reals, ids, hashes, shards, rng, metric), queries, 2, None, plan)
    expected = oracle(reals, ids, queries, 2, metric=metric)
    close = np.array([[d for d, _ in line] for line in expected])
    np.testing.assert_allclose(found.distance, close, rtol=1e-9, atol=1e-12)
    for line, right, place in zip(found.id.tolist(), expected, close, strict=True):
        # float64 itself cannot order directions that it finds closer than its rounding.
        if name != "cosine" or abs(place[0] - place[1]) > 1e-12:
            assert line[0] == right[0][1]
        if name != "cosine":
            assert line == [i for _, i in right]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_batch_and_the_shards_change_no_bit(plan):
    rng = np.random.default_rng(1)
    reals = rng.standard_normal((500, 300)).astype(np.float32)
    ids, hashes = names(500, rng)
    queries = rng.standard_normal((40, 300)).astype(np.float32)
    whole = nearest(cut(reals, ids, hashes, 1, rng), queries, 3)
    order = rng.permutation(500)
    parts = cut(reals[order], ids[order], hashes[order], 4, rng)
    for start in range(0, 40, 7):
        found = nearest(parts, queries[start : start + 7], 3, None, plan)
        assert found.distance.tobytes() == whole.distance[start : start + 7].tobytes()
        assert found.id.tolist() == whole.id[start : start + 7].tolist()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_bounds_never_exceed_distances(seed, size, scale):
    rng = np.random.default_rng(seed)
    x = (scale * (rng.standard_normal((30, 20)) + rng.integers(0, 9))).astype(np.float32)
    basis = Basis.fit(x[:10], 7)
    keys = basis.keys(x)
    true = np.linalg.norm(x[:, None].astype(np.float64) - x[None], axis=2)
    radius = np.linalg.norm(keys.astype(np.float64), axis=1)
    slack = basis.slack(radius[:, None] + radius[None])
    for some in (keys, truncated_keys(keys, size)):
        bound = np.linalg.norm(some[:, None].astype(np.float64) - some[None], axis=2)
        assert (bound <= true + slack).all()
        assert bound.max() > 0.3 * true.max()  # and they say something


def test_bounds_are_closer_with_norms_in_octaves():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 64)) / np.arange(1, 65)).astype(np.float32)
    keys = Basis.fit(x, 32).keys(x)
    octaves = truncated_keys(keys, 2)
    one = np.concatenate([keys[:, :2], np.linalg.norm(keys[:, 2:], axis=1, keepdims=True)], 1)

    def mean(k):
        return np.linalg.norm(k[:, None] - k[None], axis=2).mean()

    assert mean(one) < mean(octaves) < mean(keys)


def test_queries_that_bounds_cannot_settle_get_the_product():
    rng = np.random.default_rng(2)
    reals = rng.standard_normal((4000, 30)).astype(np.float32)  # no direction is principal
    ids, hashes = names(4000, rng)
    parts = cut(reals, ids, hashes, 1, rng)
    queries = np.concatenate([rng.standard_normal((20, 30)), np.full((2, 30), 1e4)])
    queries = queries.astype(np.float32)
    found = nearest(parts, queries, 4, None, SearchPlan("bounds", directions=1))
    assert found.id.tolist() == nearest(parts, queries, 4).id.tolist()


def test_too_few_reals_is_an_error():
    ids = np.array(["a"], dtype=object)
    one = Shard(np.zeros((1, 3), np.float32), ids, np.array(["h"], dtype=object))
    with pytest.raises(ManifptError, match="fewer than 1"):
        nearest([one], np.zeros((1, 3), np.float32), 1, np.array(["h"], dtype=object))
