"""Part of a manifold in memory, with the data for its search."""

from dataclasses import dataclass, field
from functools import cached_property

import faiss
import numpy as np
import pyarrow as pa

from manifpt.manifold.basis import Basis, truncated_keys
from manifpt.manifold.index import FLAT, Error, flat
from manifpt.manifold.metric import EUCLIDEAN, Metric

ROWS = {
    "id": pa.string(),
    "uri": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "perceptual_hash": pa.uint64(),  # not in shards of earlier versions
}


@dataclass(frozen=True)
class Shard:
    """Part of a manifold: ``vectors`` N x d float32, ids and pixel hashes of its N reals.

    For search by bounds it has the manifold's ``basis`` and the ``keys`` of its points there;
    ``indexes`` are FAISS's, by factory name.
    """

    vectors: np.ndarray
    ids: np.ndarray
    pixel_sha256: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=object))
    metric: Metric = EUCLIDEAN
    basis: Basis | None = None
    keys: np.ndarray | None = None
    indexes: dict[str, tuple[faiss.Index, Error]] = field(default_factory=dict)
    _shortened: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @cached_property
    def points(self) -> np.ndarray:
        """The points to compare, N x d float32: the vectors themselves, or a second array."""
        return self.metric.points(self.vectors)

    @cached_property
    def centre(self) -> np.ndarray:
        """The mean point, d float32. Distances do not change with the origin; rounding does."""
        mean: np.ndarray = self.points.mean(0, dtype=np.float64).astype(np.float32)
        return mean

    @cached_property
    def _squares(self) -> tuple[np.ndarray, np.ndarray]:
        """The squared norms of all points from the centre and from the origin, float64."""
        parts = []
        for start in range(0, len(self.points), 256):
            block = self.points[start : start + 256].astype(np.float64)
            centred = block - self.centre
            parts.append([(v * v).sum(1) for v in (centred, block)])
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    @cached_property
    def norms(self) -> np.ndarray:
        """The squared distances from the centre, N float32."""
        return self._squares[0].astype(np.float32)

    @cached_property
    def spread(self) -> float:
        """The largest distance from the centre, of the mean or of the basis."""
        if self.keys is not None:
            return float(np.sqrt(np.square(self.keys, dtype=np.float64).sum(1).max()))
        return float(np.sqrt(self._squares[0].max()))

    @cached_property
    def reach(self) -> float:
        """The largest norm of a point."""
        return float(np.sqrt(self._squares[1].max()))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {sha: row for row, sha in enumerate(self.pixel_sha256)}

    def rows_of(self, pixel_sha256: np.ndarray) -> np.ndarray:
        """Return the row of each pixel hash, -1 where it is not here."""
        return np.array([self._places.get(sha, -1) for sha in pixel_sha256], dtype=np.int64)

    def index(self, factory: str, *, float16: bool = False) -> tuple[faiss.Index, Error]:
        """Return FAISS's index of that name and the bound of its errors; a flat one is made."""
        if factory not in self.indexes:
            if factory != FLAT:
                raise ValueError(f"a shard without the index {factory}")
            centred = np.ascontiguousarray(self.points - self.centre)
            self.indexes[FLAT] = flat(centred, float16=float16)
        return self.indexes[factory]

    def shortened(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys of the first ``size`` directions and their squared norms."""
        if size not in self._shortened:
            if self.keys is None:
                raise ValueError("a shard without keys has no directions")
            keys = truncated_keys(self.keys, size)
            norms = np.square(keys, dtype=np.float64).sum(1).astype(np.float32)
            self._shortened[size] = keys, norms
        return self._shortened[size]
