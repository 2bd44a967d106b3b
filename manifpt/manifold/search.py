"""Exact nearest reals: bounds choose the pairs that may be nearest, float64 decides among them.

The result is that of a float64 brute force ordered by (distance, id), for any batch, shards, order
of shards and plan, unless the plan is an approximate index:

    product  bounds all distances by one product of queries and reals;
    bounds   bounds them from below in a few principal directions, which costs a fraction of that,
             and looks at the reals themselves only where the bound does not rule them out;
    index    lets a FAISS index propose; a flat one (which may lie on a GPU) is asked for more until
             no real that it left out can be nearer, any other is approximate.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from manifpt.errors import ManifptError
from manifpt.manifold.basis import truncated_keys
from manifpt.manifold.index import FLAT, WIDEST
from manifpt.manifold.manifold_format import PlanCard
from manifpt.manifold.product import Pairs, Product, gamma, squared
from manifpt.manifold.shard import Shard

REFINE_BYTES = 2**20
QUERIES = 256  # queries that are searched at once
# Cost of the distance of one pair by itself, in distances of a matrix product; and the number of
# queries below which a product takes no less time, because it reads all reals.
PAIR_COST = 10
LEAST_PRODUCT = 32
MOST_PAIRS = 2**15  # reals of one query that pass the first, coarse bound
FIRST_CANDIDATES = 8


class Neighbours(NamedTuple):
    """The k nearest reals of N queries.

    ``distance``, N x k float64, and ``id``, N x k, are inf and "" where there are fewer than k;
    ``vector`` is N x k x d float32; ``seen``, N, tells whether the excluded real of a query is in
    the manifold.
    """

    distance: np.ndarray
    id: np.ndarray
    vector: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class SearchPlan:
    """A plan of search: a ``method`` of this module, and its settings.

    ``multiply`` names the implementation of products, ``directions`` is the number of directions of
    the first bounds, ``factory`` FAISS's name of an index, ``candidates`` the number of neighbours
    that an approximate one proposes beside k, and ``float16`` halves the memory of a flat one on a
    GPU.
    """

    method: str = "product"
    multiply: str = "torch"
    directions: int = 32
    factory: str = FLAT
    candidates: int = 32
    float16: bool = False

    def __str__(self) -> str:
        named = {
            "product": f"product by {self.multiply}",
            "bounds": f"bounds on {self.directions} directions by {self.multiply}",
        }
        return named.get(self.method, f"index {self.factory}")

    def card(self) -> PlanCard:
        """Return the plan as JSON values."""
        card: Any = asdict(self)
        return card

    @property
    def exact(self) -> bool:
        """Tell whether the result is certain to be that of brute force."""
        return self.method != "index" or self.factory == FLAT


PRODUCT = SearchPlan()


@dataclass(frozen=True)
class QueryBatch:
    """Queries N x d float32, their points, and the row that is excluded for each, or -1."""

    queries: np.ndarray
    points: np.ndarray
    hidden: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def at(self, rows: Any) -> "QueryBatch":
        """Return some of them."""
        x = np.ascontiguousarray(self.points[rows])
        return QueryBatch(self.queries[rows], x, self.hidden[rows])


def _distances(asked: QueryBatch, shard: Shard, pairs: Pairs) -> np.ndarray:
    """Return the distances of pairs in float64; each depends on its pair alone."""
    out = np.empty(len(pairs))
    step = max(1, REFINE_BYTES // (8 * asked.queries.shape[1]))
    for start in range(0, len(pairs), step):
        these = slice(start, start + step)
        if shard.metric.rounding:
            query, real = asked.queries[pairs.query[these]], shard.vectors[pairs.row[these]]
            exact = (shard.metric.points(v.astype(np.float64)) for v in (query, real))
            difference = np.subtract(*exact)
        else:
            query, real = asked.points[pairs.query[these]], shard.points[pairs.row[these]]
            difference = np.subtract(query, real, dtype=np.float64)
        difference *= difference
        out[these] = np.sqrt(difference.sum(1))
    return out


def _product_error(radius: np.ndarray, reach: float, norms: np.ndarray, terms: int) -> np.ndarray:
    """Bound the error of ||x||^2 - 2 q.x in float32 for queries of norm ``radius``.

    ``reach`` bounds the norms of x; all sums err relative to the sum of their parts' sizes.
    """
    error: np.ndarray = gamma(terms + 8) * (float(norms.max()) + 2 * radius * reach)
    return error


def _norms(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms of N x d vectors in float64."""
    out: np.ndarray = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return out


def _by_product(shard: Shard, asked: QueryBatch, k: int, plan: SearchPlan) -> Pairs:
    """Return pairs that include each query's k nearest, by one product."""
    centred = asked.points - shard.centre
    product = Product(centred, shard.points, shard.norms, asked.hidden, plan.multiply)
    error = _product_error(_norms(centred), shard.reach, shard.norms, centred.shape[1])
    error += 5 * shard.metric.rounding  # of the square: two directions are at most 2 apart
    return product.nearest(k, 2 * error)


def _by_bounds(
    shard: Shard, asked: QueryBatch, k: int, plan: SearchPlan
) -> tuple[Pairs, np.ndarray]:
    """Return pairs as ``_by_product`` does, and the queries for which bounds cost more."""
    if shard.basis is None or shard.keys is None:
        raise ValueError("search by bounds needs a shard with a basis and keys")
    count, (total, dimension) = len(asked), shard.vectors.shape
    exactly = gamma(dimension + 2)
    keys = shard.keys
    long = shard.basis.keys(asked.points)
    short = truncated_keys(long, plan.directions)
    reals, norms = shard.shortened(plan.directions)
    radius = _norms(long)
    slack = shard.basis.slack(radius + shard.spread) + 2 * shard.metric.rounding
    product = Product(short, reals, norms, asked.hidden, plan.multiply)

    def bounds(pairs: Pairs) -> np.ndarray:
        """Return the lower bounds of pairs on all directions."""
        return np.sqrt(squared(long, keys, pairs) * (1 - gamma(long.shape[1] + 2)))

    def limit(pairs: Pairs, lower: np.ndarray, few: int) -> np.ndarray:
        """Return the largest bound that the k-th nearest can have, from the closest pairs."""
        few_pairs = pairs.where(lower <= pairs.kth(lower, few, count)[pairs.query])
        kth = few_pairs.kth(squared(asked.points, shard.points, few_pairs), k, count)
        return np.sqrt(kth / (1 - exactly)) + slack

    pairs = product.nearest(min(total, k + 31))
    best = limit(pairs, bounds(pairs), k + 3)
    own = np.square(short, dtype=np.float64).sum(1)
    error = _product_error(radius, shard.spread, norms, short.shape[1])
    pairs, dropped = product.up_to(np.square(best) - own + error, MOST_PAIRS)
    share = long.shape[1] / dimension
    dropped |= _too_many(np.bincount(pairs.query, minlength=count) * share, dropped, total)
    pairs = pairs.where(~dropped[pairs.query])
    lower = bounds(pairs)
    within = lower <= best[pairs.query]
    pairs, lower = pairs.where(within), lower[within]
    best = np.minimum(best, limit(pairs, lower, k + 15))
    pairs = pairs.where(lower <= best[pairs.query])
    dropped |= _too_many(np.bincount(pairs.query, minlength=count), dropped, total)
    return pairs.where(~dropped[pairs.query]), np.flatnonzero(dropped)


def _too_many(counts: np.ndarray, dropped: np.ndarray, total: int) -> np.ndarray:
    """Return the queries for which one product costs less than their pairs, and those dropped."""
    order = np.argsort(-np.where(dropped, np.inf, counts))
    given = np.arange(len(counts) + 1)
    product = np.where(given > 0, np.maximum(given, LEAST_PRODUCT) * total, 0)
    left = np.concatenate([[0.0], np.cumsum(counts[order])])
    cost = product + PAIR_COST * (left[-1] - left)
    cost[: dropped.sum()] = np.inf
    out = np.zeros(len(counts), bool)
    out[order[: np.argmin(cost)]] = True
    return out


def _by_index(
    shard: Shard, asked: QueryBatch, k: int, plan: SearchPlan
) -> tuple[Pairs, np.ndarray]:
    """Return pairs that a FAISS index proposes, and the queries that a flat one cannot settle."""
    index, error = shard.index(plan.factory, float16=plan.float16)
    centred = asked.points - shard.centre
    errors = error(_norms(centred)) + 5 * shard.metric.rounding
    count, total = len(asked), len(shard.vectors)
    spare = FIRST_CANDIDATES if plan.exact else plan.candidates
    width, left = min(total, k + spare), np.arange(count)
    proposed = [Pairs(np.empty(0, np.int64), np.empty(0, np.int64))]
    while len(left) and width <= WIDEST:
        near, rows = index.search(np.ascontiguousarray(centred[left]), width)
        query = np.repeat(left, width)
        pairs = Pairs(query, rows.ravel())
        pairs = pairs.where((pairs.row >= 0) & (pairs.row != asked.hidden[query]))
        kth = pairs.kth(squared(asked.points, shard.points, pairs), k, count)
        certain = near[:, -1] - errors[left] > kth[left] / (1 - gamma(centred.shape[1] + 2))
        settled = certain | (width == total) | (not plan.exact)
        proposed.append(pairs.where(np.isin(pairs.query, left[settled])))
        left = left[~settled]
        width = min(total, 4 * width)
    query = np.concatenate([pairs.query for pairs in proposed])
    row = np.concatenate([pairs.row for pairs in proposed])
    order = np.argsort(query, kind="stable")
    return Pairs(query[order], row[order]), left


def _first(shard: Shard, asked: QueryBatch, pairs: Pairs, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows, N x k, of the nearest by (distance, id) among some pairs."""
    count = len(asked)
    if len(pairs) > k * count:
        error, rounding = gamma(asked.points.shape[1] + 2), 2 * shard.metric.rounding
        near = np.sqrt(squared(asked.points, shard.points, pairs), dtype=np.float64)
        kth = pairs.kth(near, k, count) * (1 + error) + rounding
        pairs = pairs.where(near * (1 - error) <= kth[pairs.query] + rounding)
    distance, row = pairs.lines(_distances(asked, shard, pairs), count)
    missing = k - distance.shape[1]
    if missing > 0:
        distance = np.pad(distance, ((0, 0), (0, missing)), constant_values=np.inf)
        row = np.pad(row, ((0, 0), (0, missing)), constant_values=-1)
    order = _order(distance, shard.ids[row])[:, :k]
    return np.take_along_axis(distance, order, 1), np.take_along_axis(row, order, 1)


def _order(distance: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the order of each line by (distance, id); ids are compared only where it matters."""
    order = np.argsort(distance, axis=1, kind="stable")
    ranked = np.take_along_axis(distance, order, 1)
    tied = np.flatnonzero((ranked[:, 1:] == ranked[:, :-1]).any(1))
    for line in tied:
        order[line] = np.lexsort((ids[line].astype(str), distance[line]))
    return order


def search(
    shard: Shard, queries: np.ndarray, k: int, excluded: np.ndarray | None, plan: SearchPlan
) -> Neighbours:
    """Return the k nearest reals of one shard, or as many as it has; see ``nearest``."""
    neighbours = neighbour_rows(shard, queries, k, excluded, plan)
    return neighbours._replace(vector=shard.vectors[neighbours.vector[:, :, 0]])


def neighbour_rows(
    shard: Shard, queries: np.ndarray, k: int, excluded: np.ndarray | None, plan: SearchPlan
) -> Neighbours:
    """Search as ``search`` does; return rows in the shard, N x k x 1, in place of vectors."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    distance = np.full((len(queries), k), np.inf)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    hidden = np.full(len(queries), -1) if excluded is None else shard.rows_of(excluded)
    every = QueryBatch(queries, shard.metric.points(queries), hidden)
    for start in range(0, len(queries), QUERIES):
        part = slice(start, min(start + QUERIES, len(queries)))
        asked, left = every.at(part), np.arange(part.stop - part.start)
        if plan.method != "product":
            propose = _by_bounds if plan.method == "bounds" else _by_index
            pairs, left = propose(shard, asked, k, plan)
            distance[part], rows[part] = _first(shard, asked, pairs, k)
        if len(left):
            these, rest = start + left, asked.at(left)
            pairs = _by_product(shard, rest, k, plan)
            distance[these], rows[these] = _first(shard, rest, pairs, k)
    ids = np.where(rows < 0, "", shard.ids[rows])
    return Neighbours(distance, ids, rows[:, :, None], hidden >= 0)


def merge(parts: Sequence[Neighbours], k: int) -> Neighbours:
    """Return the k nearest among the results of several shards."""
    distance, ids, vector = (np.concatenate([part[i] for part in parts], 1) for i in range(3))
    order = _order(distance, ids)[:, :k]
    return Neighbours(
        np.take_along_axis(distance, order, 1),
        np.take_along_axis(ids, order, 1),
        np.take_along_axis(vector, order[:, :, None], 1),
        np.any([part.seen for part in parts], axis=0),
    )


def nearest(
    shards: Iterable[Shard],
    queries: np.ndarray,
    k: int = 1,
    excluded: np.ndarray | None = None,
    plan: SearchPlan = PRODUCT,
) -> Neighbours:
    """Return the k nearest reals of each query, ordered by (distance, id).

    Args:
        shards: the manifold; each is searched as it comes.
        queries: N x d float32.
        k: neighbours wanted; at most the number of reals that are not excluded.
        excluded: N pixel hashes; a real of that hash is no neighbour of that query, so that an
            image never meets itself or its exact copies.
        plan: the plan of search; the result does not depend on it if it is an exact one.

    """
    neighbours: Neighbours | None = None
    for shard in shards:
        part = search(shard, queries, k, excluded, plan)
        neighbours = part if neighbours is None else merge([neighbours, part], k)
    return complete(neighbours, k)


def complete(neighbours: Neighbours | None, k: int) -> Neighbours:
    """Return the neighbours if every query has k; raise if not."""
    if neighbours is None or np.isinf(neighbours.distance).any():
        raise ManifptError(f"the manifold has fewer than {k} reals for some image; ask for fewer")
    return neighbours
