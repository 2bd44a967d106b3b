"""Projections x* of embedded images onto the manifold, from their k nearest reals.

    nearest  the nearest real itself (ManiFPT, CVPR 2024, section 3);
    mean     the mean of the k nearest;
    tangent  the nearest point of the affine hull of the k nearest, ridge-regularised: an orthogonal
             projection, as the paper's figure 2 draws it, on the plane that those reals span;
    riemannian  the k nearest reals' centre of mass in a learned geometry (see riemannian.py);
    denoiser    the output of a denoiser for the image, at several scales (see denoiser.py); the
             nearest real is found as evidence;
    none     the origin: the "artifact" is the embedding itself, the baseline of a space.

By the metric ``whitened`` all of this is done with points W v, W = C^(-1/2) of the reals'
covariance (see metric.py): the artifact W (phi(x) - x*) has the Mahalanobis distance as its norm.
Only a geometry is of the vectors, so ``riemannian`` finds x* among these and whitens it, and the
embedding of ``none`` stays as it is. ``cosine`` chooses neighbours and changes nothing else.

All work in float64 and on each image by itself.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from manifpt.errors import ManifptError
from manifpt.manifold.geometry import Geometry
from manifpt.manifold.manifold_format import ManifoldManifest, ProjectionCard
from manifpt.manifold.metric import EUCLIDEAN, Metric
from manifpt.manifold.riemannian import centres_of_mass

# The number of neighbours of each kind by default.
PROJECTORS = {"nearest": 1, "mean": 8, "tangent": 16, "riemannian": 8, "denoiser": 1, "none": 1}


@dataclass(frozen=True)
class Projection:
    """A kind of projection, its number of neighbours, and the ridge of ``tangent``.

    ``geometry`` is the hash of the geometry of ``riemannian``, ``learned`` that of the denoiser.
    With ``whitened`` artifacts are differences of whitened points. In earlier versions they were
    differences of vectors by any metric, and cards of these versions have no such field.

    ``ridge`` is relative to the mean variance of the neighbours; with none, k neighbours in fewer
    than k dimensions would reach any point.
    """

    kind: str = "nearest"
    neighbours: int = 1
    ridge: float = 0.0
    geometry: str | None = None
    learned: str | None = None
    whitened: bool = False

    def card(self) -> ProjectionCard:
        """Return all settings that decide the projection, as JSON values."""
        newer = {"learned", "whitened"}
        fields = asdict(self).items()
        card: Any = {name: value for name, value in fields if value or name not in newer}
        return card

    def by(self, metric: str) -> "Projection":
        """Return this projection by the metric of that name."""
        pixels = {"none", "denoiser"}  # their results are of the embedding by any metric
        return replace(self, whitened=metric == "whitened" and self.kind not in pixels)

    def on(self, manifest: ManifoldManifest) -> "Projection":
        """Return this projection on a manifold, by its manifest."""
        if self.kind == "denoiser":
            if "denoiser" not in manifest:
                raise ManifptError(
                    "--projector denoiser: the manifold has none; build it with --denoiser, of 100 "
                    "reals or more"
                )
            return replace(self, learned=manifest["denoiser"]["sha256"])
        made = self.by(manifest["metric"])
        if self.kind != "riemannian":
            return made
        if "geometry" not in manifest:
            raise ManifptError(
                "--projector riemannian: the manifold has no geometry; build it with --geometry"
            )
        return replace(made, geometry=manifest["geometry"]["sha256"])

    def artifacts(
        self,
        queries: np.ndarray,
        neighbours: np.ndarray,
        metric: Metric = EUCLIDEAN,
        geometry: Geometry | None = None,
    ) -> np.ndarray:
        """Return phi(x) - x*, N x d float32, of N x d queries with N x k x d neighbours.

        With ``whitened`` the points of ``metric`` take the vectors' place.
        """
        points = metric.points(queries) if self.whitened else queries
        if not self.whitened:
            star = self.project(queries, neighbours, geometry)
        elif self.kind == "riemannian":
            star = metric.points(self.project(queries, neighbours, geometry))
        else:
            reals = metric.points(neighbours.reshape(-1, neighbours.shape[2]))
            star = self.project(points, reals.reshape(neighbours.shape))
        artifacts: np.ndarray = points - star
        return artifacts

    def project(
        self, queries: np.ndarray, neighbours: np.ndarray, geometry: Geometry | None = None
    ) -> np.ndarray:
        """Return x*, N x d float32, of N x d queries with N x k x d neighbours."""
        if self.kind == "nearest":
            nearest: np.ndarray = neighbours[:, 0]
            return nearest
        if self.kind == "none":
            return np.zeros_like(queries)
        if self.kind == "riemannian":
            if geometry is None:
                raise ValueError("a Riemannian projection needs a geometry")
            return centres_of_mass(geometry, neighbours)
        reals = neighbours.astype(np.float64)
        mean = reals.mean(1)
        if self.kind == "mean":
            return np.asarray(mean, dtype=np.float32)
        spread = reals - mean[:, None]
        gram = spread @ spread.transpose(0, 2, 1)
        size = gram.shape[1]
        # Identical neighbours span nothing: the smallest number keeps the system solvable.
        scale = np.trace(gram, axis1=1, axis2=2) / size * self.ridge + np.finfo(np.float64).tiny
        gram += scale[:, None, None] * np.eye(size)
        beside = spread @ (queries - mean)[:, :, None]
        weights = np.linalg.solve(gram, beside)
        star = mean + (spread.transpose(0, 2, 1) @ weights)[:, :, 0]
        return np.asarray(star, dtype=np.float32)


NEAREST = Projection()


def projection_of(kind: str, neighbours: int | None, ridge: float) -> Projection:
    """Return a projection by its settings; ``nearest`` and ``none`` have exactly one neighbour."""
    count = neighbours or PROJECTORS[kind]
    if kind in {"nearest", "denoiser", "none"} and count != 1:
        raise ManifptError(f"--neighbors {count}: {kind} takes 1; choose mean or tangent")
    return Projection(kind, count, ridge if kind == "tangent" else 0.0)
