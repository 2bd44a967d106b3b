"""Bounds on squared distances by matrix products, and the pairs that may be nearest.

A product of queries and reals in float32 gives ||x||^2 - 2 q.x, a squared distance up to a constant
of the query. Its rounding error is bounded, so the few pairs that may hold a query's k nearest are
known for certain, for any implementation and any order of summation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np
import torch

UNIT = 2.0**-24  # float32's rounding unit
GROUP = 64  # successive reals, whose smallest value is checked first
BLOCK = 2048  # reals that are multiplied at once: with 256 queries the product stays in cache
LONG = 512  # dimensions from which on this number of reals is enough work
PAIRS = 2**23  # pairs that are held at once, about
SPREAD = 1024  # numbers of a vector from which on the order of pairs matters


def gamma(terms: int) -> float:
    """Bound the relative error of a sum of products in float32, in any order of summation.

    Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1: n u / (1 - n u).
    """
    return terms * UNIT / (1 - terms * UNIT)


class Multiplier(NamedTuple):
    """An implementation of products. All arrays are float32.

    ``product(reals, queries, norms, out)`` writes ``norms + reals @ queries.T``, rows x B;
    ``smallest(values, out)`` the smallest of each GROUP rows, groups x B.
    """

    product: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
    smallest: Callable[[np.ndarray, np.ndarray], None]


def _numpy_product(
    reals: np.ndarray, queries: np.ndarray, norms: np.ndarray, out: np.ndarray
) -> None:
    np.matmul(reals, queries.T, out=out)
    out += norms[:, None]


def _numpy_smallest(values: np.ndarray, out: np.ndarray) -> None:
    values.reshape(-1, GROUP, values.shape[1]).min(1, out=out)


def _torch_product(
    reals: np.ndarray, queries: np.ndarray, norms: np.ndarray, out: np.ndarray
) -> None:
    left, right, bias, into = map(torch.from_numpy, (reals, queries, norms, out))
    torch.addmm(bias[:, None], left, right.T, out=into)


def _torch_smallest(values: np.ndarray, out: np.ndarray) -> None:
    groups = torch.from_numpy(values).view(-1, GROUP, values.shape[1])
    torch.amin(groups, 1, out=torch.from_numpy(out))


MULTIPLIERS = {
    "torch": Multiplier(_torch_product, _torch_smallest),
    "numpy": Multiplier(_numpy_product, _numpy_smallest),
}


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a real by their rows, sorted by query; ``len`` is their number."""

    query: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.query)

    def where(self, kept: np.ndarray) -> "Pairs":
        """Return some of the pairs."""
        return Pairs(self.query[kept], self.row[kept])

    def lines(self, values: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
        """Return values and rows as one line a query, padded with inf and -1."""
        counts = np.bincount(self.query, minlength=queries)
        width = int(counts.max(initial=1))
        place = np.arange(len(self)) - (np.cumsum(counts) - counts)[self.query]
        padded = np.full((queries, width), np.inf)
        rows = np.full((queries, width), -1, dtype=np.int64)
        padded[self.query, place], rows[self.query, place] = values, self.row
        return padded, rows

    def kth(self, values: np.ndarray, k: int, queries: int) -> np.ndarray:
        """Return the k-th smallest value of each query; inf where it has fewer."""
        padded, _ = self.lines(values, queries)
        if padded.shape[1] < k:
            return np.full(queries, np.inf)
        found: np.ndarray = np.partition(padded, k - 1, axis=1)[:, k - 1]
        return found


def squared(queries: np.ndarray, vectors: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the squared distances of pairs in float32, relative error at most gamma(d + 2)."""
    out = np.empty(len(pairs), np.float32)
    if not len(pairs):
        return out
    query, row, order = pairs.query, pairs.row, None
    if queries.shape[1] >= SPREAD:  # a real that is in cache meets all its queries
        order = np.argsort(row * len(queries) + query)
        query, row = query[order], row[order]
    faiss.pairwise_indexed_L2sqr(
        queries.shape[1],
        len(pairs),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(query),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(row),
        faiss.swig_ptr(out),
    )
    if order is not None:
        out[order] = out.copy()
    return out


@dataclass
class _Found:
    """Pairs with their values, block by block."""

    query: list[np.ndarray]
    row: list[np.ndarray]
    value: list[np.ndarray]

    def add(self, query: np.ndarray, row: np.ndarray, value: np.ndarray) -> None:
        self.query.append(query)
        self.row.append(row)
        self.value.append(value)

    def sorted(self) -> tuple[Pairs, np.ndarray]:
        """Return the pairs ordered by query, then by row."""
        query, row, value = (np.concatenate(p) for p in (self.query, self.row, self.value))
        order = np.argsort(query, kind="stable")
        return Pairs(query[order], row[order]), value[order]


class Product:
    """||x||^2 - 2 q.x of all pairs of B queries and N reals, block by block.

    ``hidden`` has the row of the real that is excluded for a query, or -1.
    """

    def __init__(
        self,
        queries: np.ndarray,
        vectors: np.ndarray,
        norms: np.ndarray,
        hidden: np.ndarray,
        who: str,
    ) -> None:
        self.queries, self.vectors, self.norms = -2 * queries, vectors, norms
        self.who = MULTIPLIERS[who]
        self.seen = np.flatnonzero(hidden >= 0)
        self.hidden = hidden[self.seen]
        rows = BLOCK * min(4, max(1, LONG // vectors.shape[1]))
        padded = -(-min(rows, len(vectors)) // GROUP) * GROUP
        self.block = np.empty((padded, len(queries)), np.float32)
        self.groups = np.empty((padded // GROUP, len(queries)), np.float32)

    def _blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the first row of a block, its values rows x B, and its groups' smallest."""
        total, step = len(self.vectors), len(self.block)
        for start in range(0, total, step):
            rows = min(step, total - start)
            groups = -(-rows // GROUP)
            values, smallest = self.block[: groups * GROUP], self.groups[:groups]
            some = slice(start, start + rows)
            self.who.product(self.vectors[some], self.queries, self.norms[some], values[:rows])
            values[rows:] = np.inf
            mine = (self.hidden >= start) & (self.hidden < start + rows)
            values[self.hidden[mine] - start, self.seen[mine]] = np.inf
            self.who.smallest(values, smallest)
            yield start, values, smallest

    def nearest(self, k: int, margin: np.ndarray | float = 0.0) -> Pairs:
        """Return the pairs at most ``margin`` above the k-th smallest value of their query."""
        count = len(self.queries)
        best = np.full((k, count), np.inf, np.float32)
        limit = np.full(count, np.inf)
        found = _Found([], [], [])
        for start, values, smallest in self._blocks():
            # Each group has a pair of that value, so k groups have k pairs within the k-th.
            both = np.concatenate([best, smallest])
            best = both.min(0, keepdims=True) if k == 1 else np.partition(both, k - 1, axis=0)[:k]
            limit = np.minimum(limit, best[-1] + margin)
            found.add(*_picked(start, values, smallest, limit))
            if sum(map(len, found.query)) > PAIRS:
                limit, found = self._tightened(found, k, margin)
        limit, found = self._tightened(found, k, margin)
        return found.sorted()[0]

    def _tightened(
        self, found: _Found, k: int, margin: np.ndarray | float
    ) -> tuple[np.ndarray, _Found]:
        """Drop the pairs that others rule out; return the new limit, too."""
        pairs, value = found.sorted()
        limit = pairs.kth(value, k, len(self.queries)) + margin
        kept = value <= limit[pairs.query]
        pairs = pairs.where(kept)
        return limit, _Found([pairs.query], [pairs.row], [value[kept]])

    def up_to(self, limit: np.ndarray, most: int) -> tuple[Pairs, np.ndarray]:
        """Return the pairs whose value is at most their query's limit, B.

        A query with more than ``most`` has none; a mask of these queries, B bool, is returned, too.
        """
        count = len(self.queries)
        counts = np.zeros(count, np.int64)
        found = _Found([], [], [])
        for start, values, smallest in self._blocks():
            query, row, value = _picked(start, values, smallest, limit)
            found.add(query, row, value)
            counts += np.bincount(query, minlength=count)
            limit = np.where(counts > most, -np.inf, limit)
        pairs, _ = found.sorted()
        return pairs.where(counts[pairs.query] <= most), counts > most


def _picked(
    start: int, values: np.ndarray, smallest: np.ndarray, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return query, row and value of a block's pairs that do not exceed their query's limit."""
    limit = up(np.minimum(limit, np.finfo(np.float32).max))  # padding and hidden reals are inf
    group, query = np.divmod(np.flatnonzero(smallest <= limit), len(limit))
    row = (group * GROUP)[:, None] + np.arange(GROUP)
    value = values[row, query[:, None]]
    kept = np.flatnonzero(value <= limit[query, None])
    query = query[kept // GROUP]
    return query, start + row.ravel()[kept], value.ravel()[kept]


def up(values: np.ndarray) -> np.ndarray:
    """Round to float32, never down, and never to inf."""
    below = values.astype(np.float32)
    out: np.ndarray = np.nextafter(below, np.finfo(np.float32).max)
    return out
