"""Independent computation of nearest reals and artifacts by brute force, to verify others.

Nothing of the engine is used: distances to all reals are float64 sums of squares, and projections
are solved by least squares.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np

from manifpt.manifold import Metric, StoredManifold
from manifpt.manifold.geometry import Geometry
from manifpt.manifold.manifold_format import ProjectionCard
from manifpt.manifold.metric import EUCLIDEAN
from manifpt.manifold.riemannian import centres_of_mass

TOLERANCE = {"float": 1e-4, "halffloat": 2e-3}
DISTANCE_TOLERANCE = 1e-9
# The tolerance of whitened distances, relative to the distance and to the norms of points: these
# are float32.
WHITENED_TOLERANCE = 1e-6
SPARE = 4


@dataclass(frozen=True)
class ArtifactRow:
    """A row of artifacts: an image, or one of its tiles, with its nearest real.

    ``point`` is the id of its vector, ``sha256`` the hash of the pixels of that, and ``kind`` the
    type of the numbers of ``artifact`` in storage.
    """

    id: str
    point: str
    sha256: str
    neighbor_id: str
    distance: float
    artifact: np.ndarray
    kind: str


@dataclass
class Checked:
    """Rows of artifacts with their expected values: queries N x d, and the k nearest of each.

    ``rounding`` is the largest error of distances, relative to the points' norms: that of whitened
    points, or of a network's vectors. Until rows are settled, more neighbours are kept where the
    error may change the order.
    """

    rows: list[ArtifactRow]
    queries: np.ndarray
    neighbours: int
    metric: Metric
    rounding: float
    distance: np.ndarray = field(init=False)
    id: np.ndarray = field(init=False)
    vector: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.kept = self.neighbours + (SPARE if self.rounding else 0)
        shape = (len(self.rows), self.kept)
        self.distance = np.full(shape, np.inf)
        self.id = np.full(shape, "", dtype=object)
        self.vector = np.zeros((*shape, self.queries.shape[1]), np.float32)

    def meet(self, ids: np.ndarray, hashes: np.ndarray, vectors: np.ndarray) -> None:
        """Compare all rows with some reals and keep the nearest, by (distance, id)."""
        reals = _points(vectors.astype(np.float64), self.metric)
        for n, row in enumerate(self.rows):
            query = self._point(n)
            distance = np.sqrt(np.square(query - reals).sum(1))
            distance[hashes == row.sha256] = np.inf
            near = np.argpartition(distance, min(self.kept, len(distance)) - 1)
            far = distance[near[min(self.kept, len(distance)) - 1]]
            some = np.flatnonzero(distance <= far)
            all_distances = np.concatenate([self.distance[n], distance[some]])
            all_ids = np.concatenate([self.id[n], ids[some]])
            first = np.lexsort((all_ids.astype(str), all_distances))[: self.kept]
            vectors_of = np.concatenate([self.vector[n], vectors[some]])
            self.distance[n], self.id[n] = all_distances[first], all_ids[first]
            self.vector[n] = vectors_of[first]

    def _point(self, n: int) -> np.ndarray:
        return _points(self.queries[n : n + 1].astype(np.float64), self.metric)

    def tolerance(self, n: int) -> float:
        """Return the largest error that the distance of a row may have."""
        nearest = float(self.distance[n, 0])
        if not self.rounding:
            return DISTANCE_TOLERANCE * max(1.0, nearest)
        return self.rounding * (nearest + float(np.linalg.norm(self._point(n))))

    def settle(self) -> None:
        """Keep k neighbours of each row; the one that it names is first if rounding decides."""
        for n, row in enumerate(self.rows if self.rounding else ()):
            near = self.distance[n] <= self.distance[n, 0] + self.tolerance(n)
            named = near & (self.id[n] == row.neighbor_id)
            order = np.argsort(~named, kind="stable")
            for array in (self.distance, self.id, self.vector):
                array[n] = array[n][order]
        self.distance, self.id, self.vector = (
            array[:, : self.neighbours] for array in (self.distance, self.id, self.vector)
        )


def _points(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    if metric.name == "euclidean":
        return vectors
    if metric.whitening is not None:
        c = metric.whitening
        centred, sigma = vectors - c.mean, c.rest**0.5
        along = centred @ c.directions.T
        points: np.ndarray = (
            centred / sigma + (along / c.variances**0.5 - along / sigma) @ c.directions
        )
        return points
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: np.ndarray = vectors / np.where(norms > 0, norms, 1)
    return out


def expected_artifact(
    query: np.ndarray, reals: np.ndarray, card: ProjectionCard, manifold: StoredManifold
) -> tuple[np.ndarray, float]:
    """Return the expected artifact of a query, and the largest number in its computation.

    A denoiser is applied to this image alone, in float64.
    """
    if card["kind"] == "denoiser" and manifold.denoiser is not None:
        alone = deepcopy(manifold.denoiser).double()
        found = alone.artifacts(query.reshape(1, *manifold.manifest["shape"]))
        return found.ravel(), float(np.abs(query).max())
    metric = manifold.metric if card.get("whitened") else EUCLIDEAN
    point = _points(query[None], metric)[0]
    if card["kind"] == "riemannian":
        star = _projection(query, reals, card, manifold.geometry)
        star = _points(star[None], metric)[0]
    else:
        star = _projection(point, _points(reals.astype(np.float64), metric), card, None)
    return point - star, float(np.abs(point).max())


def _projection(
    query: np.ndarray, reals: np.ndarray, card: ProjectionCard, geometry: Geometry | None
) -> np.ndarray:
    """Return x* of one query, by least squares on a system with the ridge appended.

    Only a Riemannian centre of mass is computed by the engine's code, for this query alone.
    """
    if card["kind"] == "riemannian" and geometry is not None:
        centre: np.ndarray = centres_of_mass(geometry, reals[None])[0].astype(np.float64)
        return centre
    reals = reals.astype(np.float64)
    if card["kind"] == "none":
        return np.zeros_like(query)
    if card["kind"] != "tangent":
        mean: np.ndarray = reals.mean(0)
        return mean
    mean = reals.mean(0)
    spread = (reals - mean).T
    ridge = np.sqrt(np.square(spread).sum() / len(reals) * card["ridge"])
    system = np.vstack([spread, ridge * np.eye(len(reals))])
    goal = np.concatenate([query - mean, np.zeros(len(reals))])
    weights = np.linalg.lstsq(system, goal, rcond=None)[0]
    star: np.ndarray = mean + spread @ weights
    return star


def differences(
    row: ArtifactRow,
    distance: float,
    tolerance: float,
    name: str,
    artifact: np.ndarray,
    rounding: float,
) -> Iterator[str]:
    """Yield the differences of a row from its expected values.

    ``rounding`` is the largest error of the numbers of its vector.
    """
    if row.neighbor_id != name:
        yield f"neighbor_id is {row.neighbor_id}, should be {name}"
    if abs(row.distance - distance) > tolerance:
        yield f"distance is {row.distance}, should be {distance}"
    error = float(np.abs(row.artifact.astype(np.float64) - artifact).max())
    if error > TOLERANCE[row.kind] * max(1.0, float(np.abs(artifact).max())) + rounding:
        yield f"artifact is off by {error}"
