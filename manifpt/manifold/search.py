"""Exact nearest reals: FAISS proposes in float32, float64 decides, and a bound certifies.

The result is that of a float64 brute force ordered by (distance, id), whatever the batch, the
shards and their order: every candidate's distance is recomputed from the stored vectors, and the
candidates suffice because the last one that FAISS gave lies further than the k-th true distance
by more than float32 arithmetic can err.
"""

from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np

from manifpt.manifold.shard import Shard

FIRST_CANDIDATES = 8
REFINE_BYTES = 64 * 2**20


class Neighbours(NamedTuple):
    """The k nearest reals of N queries, each N x k: distance (float64), id, and where it lies."""

    distance: np.ndarray
    id: np.ndarray
    shard: np.ndarray
    row: np.ndarray


def distances(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return Euclidean distances in float64 of N x d queries and their N x c x d candidates."""
    difference = queries.astype(np.float64)[:, None, :] - vectors
    out: np.ndarray = np.sqrt((difference * difference).sum(-1))
    return out


def _rounding(dimension: int, radii: np.ndarray) -> np.ndarray:
    """Bound the error of a squared distance by norms and dot product in float32.

    Any order of summation errs by at most gamma_n (|x| + |y|)^2, gamma_n = n u / (1 - n u)
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). The eight extra
    terms cover centring and the sums of the three parts.
    """
    n_u = (dimension + 8) * 2.0**-24
    return n_u / (1 - n_u) * radii**2


def _search_shard(
    shard: Shard, queries: np.ndarray, k: int, excluded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows, N x k, of the nearest in one shard; inf where there are fewer."""
    count, (total, dimension) = len(queries), shard.vectors.shape
    best = np.full((count, k), np.inf)
    rows = np.full((count, k), -1, dtype=np.int64)
    centred = np.ascontiguousarray(queries - shard.centre)
    norms = np.sqrt((centred.astype(np.float64) ** 2).sum(1))
    error = _rounding(dimension, norms + shard.radius)
    open_queries = np.arange(count)
    candidates = min(total, k + FIRST_CANDIDATES)
    while len(open_queries):
        approximate, found = shard.index.search(centred[open_queries], candidates)
        step = max(1, REFINE_BYTES // (8 * candidates * dimension))
        for start in range(0, len(open_queries), step):
            these = open_queries[start : start + step]
            some = found[start : start + step]
            exact = distances(queries[these], shard.vectors[some])
            if len(excluded):
                exact[shard.pixel_sha256[some] == excluded[these][:, None]] = np.inf
            best[these], rows[these] = _first(exact, some, shard.ids[some], k)
        if candidates == total:
            break
        reach = np.sqrt(np.maximum(approximate[:, -1] - error[open_queries], 0))
        open_queries = open_queries[reach <= best[open_queries, -1]]
        candidates = min(total, candidates * 4)
    return best, rows


def _first(
    distance: np.ndarray, row: np.ndarray, ids: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first k of each line by (distance, id); pad with inf and -1."""
    order = _order(distance, ids)[:, :k]
    kept = np.take_along_axis(distance, order, 1)
    rows = np.where(np.isinf(kept), -1, np.take_along_axis(row, order, 1))
    missing = k - kept.shape[1]
    if missing > 0:
        kept = np.pad(kept, ((0, 0), (0, missing)), constant_values=np.inf)
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    return kept, rows


def _order(distance: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the order of each line by (distance, id); ids are compared only where it matters."""
    order = np.argsort(distance, axis=1, kind="stable")
    ranked = np.take_along_axis(distance, order, 1)
    tied = np.flatnonzero((ranked[:, 1:] == ranked[:, :-1]).any(1))
    for line in tied:
        order[line] = np.lexsort((ids[line].astype(str), distance[line]))
    return order


def nearest(
    shards: Sequence[Shard], queries: np.ndarray, k: int = 1, excluded: np.ndarray | None = None
) -> Neighbours:
    """Return the k nearest reals of each query, exactly, ordered by (distance, id).

    Args:
        shards: the manifold.
        queries: N x d float32.
        k: neighbours wanted; at most the number of reals that are not excluded.
        excluded: N pixel hashes; a real of that hash is no neighbour of that query, so that an
            image never meets itself or its exact copies.

    """
    excluded = np.empty(0, dtype=object) if excluded is None else excluded
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    partial = [_search_shard(shard, queries, k, excluded) for shard in shards]
    distance = np.concatenate([p[0] for p in partial], 1)
    rows = np.concatenate([p[1] for p in partial], 1)
    where = np.repeat(np.arange(len(shards)), k)[None, :].repeat(len(queries), 0)
    ids = np.empty(rows.shape, dtype=object)
    ids.fill("")
    for number, shard in enumerate(shards):
        mine = (where == number) & (rows >= 0)
        ids[mine] = shard.ids[rows[mine]]
    order = _order(distance, ids)[:, :k]
    take = [np.take_along_axis(a, order, 1) for a in (distance, ids, where, rows)]
    if np.isinf(take[0]).any():
        raise ValueError(f"the manifold has fewer than k = {k} reals for some query")
    return Neighbours(*take)


def use_threads(threads: int) -> None:
    """Let FAISS use so many threads."""
    faiss.omp_set_num_threads(threads)
