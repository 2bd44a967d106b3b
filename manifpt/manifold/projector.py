"""Projections x* of embedded images onto the manifold, from their k nearest reals.

    nearest  the nearest real itself (ManiFPT, CVPR 2024, section 3);
    mean     the mean of the k nearest;
    tangent  the nearest point of the affine hull of the k nearest, ridge-regularised: an orthogonal
             projection, as the paper's figure 2 draws it, on the plane that those reals span;
    riemannian  the k nearest reals' centre of mass in a learned geometry (see riemannian.py);
    denoiser    what a denoiser makes of the image, at several scales (see denoiser.py); the nearest
             real is found as evidence;
    none     the origin: the "artifact" is the embedding itself, the baseline of a space.

All work in float64 and on each image by itself.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from manifpt.errors import ManifptError
from manifpt.manifold.geometry import Geometry
from manifpt.manifold.riemannian import project

# How many neighbours each takes if nothing else is asked for.
PROJECTORS = {"nearest": 1, "mean": 8, "tangent": 16, "riemannian": 8, "denoiser": 1, "none": 1}


@dataclass(frozen=True)
class Projection:
    """A kind of projection, how many neighbours it takes, and the ridge of ``tangent``.

    ``geometry`` is the hash of the one that ``riemannian`` takes, ``learned`` that of the denoiser.

    ``ridge`` is relative to the mean variance of the neighbours; with none, k neighbours in fewer
    than k dimensions would reach any point.
    """

    kind: str = "nearest"
    neighbours: int = 1
    ridge: float = 0.0
    geometry: str | None = None
    learned: str | None = None

    def card(self) -> dict[str, Any]:
        """Return all that decides the projection, as JSON values."""
        card = asdict(self)
        return card if self.learned else {n: v for n, v in card.items() if n != "learned"}

    def on(self, manifest: dict[str, Any]) -> "Projection":
        """Return this projection on a manifold, by its manifest."""
        if self.kind == "denoiser":
            if "denoiser" not in manifest:
                raise ManifptError(
                    "--projector denoiser: the manifold has none; build it with --denoiser"
                )
            return replace(self, learned=manifest["denoiser"]["sha256"])
        if self.kind != "riemannian":
            return self
        if "geometry" not in manifest:
            raise ManifptError(
                "--projector riemannian: the manifold has no geometry; build it with --geometry"
            )
        return replace(self, geometry=manifest["geometry"]["sha256"])

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
            return project(geometry, neighbours)
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
