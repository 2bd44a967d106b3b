"""The oracle: float64 brute force, ordered by (distance, id)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifpt.manifold import Shard, nearest


def oracle(reals, ids, queries, k, hashes=None, excluded=None):
    x, y = queries.astype(np.float64), reals.astype(np.float64)
    out = []
    for n, query in enumerate(x):
        distance = np.sqrt(((query - y) ** 2).sum(1))
        if excluded is not None:
            distance[hashes == excluded[n]] = np.inf
        order = sorted(range(len(ids)), key=lambda i: (distance[i], ids[i]))[:k]
        out.append([(distance[i], ids[i]) for i in order])
    return out


def cut(reals, ids, hashes, shards, rng):
    place = rng.integers(0, shards, len(ids))
    pieces = [np.flatnonzero(place == s) for s in range(shards)]
    return [Shard(reals[p], ids[p], hashes[p]) for p in pieces if len(p)]


@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("batch", [1, 17, 256])
@pytest.mark.parametrize("k", [1, 5])
def test_equals_the_oracle(shards, batch, k):
    rng = np.random.default_rng(0)
    reals = rng.integers(0, 4, (300, 12)).astype(np.float32)  # few values: many ties
    reals[50:80] = reals[0]
    ids = np.array([f"r{n:03d}" for n in rng.permutation(300)], dtype=object)
    hashes = np.array([f"h{n}" for n in range(300)], dtype=object)
    queries = np.concatenate([reals[:60], rng.random((197, 12), dtype=np.float32) * 4])[:256]
    excluded = np.array([f"h{n}" for n in range(len(queries))], dtype=object)
    expected = oracle(reals, ids, queries, k, hashes, excluded)
    parts = cut(reals, ids, hashes, shards, rng)
    for start in range(0, len(queries), batch):
        found = nearest(parts, queries[start : start + batch], k, excluded[start : start + batch])
        for n, line in enumerate(expected[start : start + batch]):
            assert list(found.id[n]) == [i for _, i in line]
            np.testing.assert_allclose(found.distance[n], [d for d, _ in line], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 60),
    dimension=st.integers(1, 40),
    shards=st.integers(1, 5),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    spread=st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_equals_the_oracle_where_float32_cancels(seed, count, dimension, shards, offset, spread):
    rng = np.random.default_rng(seed)
    reals = (offset + spread * rng.standard_normal((count, dimension))).astype(np.float32)
    queries = (offset + spread * rng.standard_normal((9, dimension))).astype(np.float32)
    queries[0] = -queries[0]
    ids = np.array([f"r{n:03d}" for n in rng.permutation(count)], dtype=object)
    hashes = np.full(count, "", dtype=object)
    found = nearest(cut(reals, ids, hashes, shards, rng), queries, 2)
    expected = oracle(reals, ids, queries, 2)
    assert found.id.tolist() == [[i for _, i in line] for line in expected]


def test_too_few_reals_is_an_error():
    ids = np.array(["a"], dtype=object)
    shard = Shard(np.zeros((1, 3), np.float32), ids, np.array(["h"], dtype=object))
    with pytest.raises(ValueError, match="fewer than k"):
        nearest([shard], np.zeros((1, 3), np.float32), 1, np.array(["h"], dtype=object))
