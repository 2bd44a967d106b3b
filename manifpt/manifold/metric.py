"""Metrics: each maps vectors to points, which are compared by Euclidean distance.

    euclidean  the vectors themselves;
    cosine     their directions: the distance of two is sqrt(2 - 2 cos), which orders as the cosine;
    whitened   Mahalanobis distance sqrt((v - w)^T C^-1 (v - w)) for a covariance C of the reals.

An empirical covariance of n reals in d > n dimensions has no inverse. C is that of probabilistic
PCA (Tipping & Bishop, JRSS B 1999, eqs. 7-8): the variances of k principal directions, and one
variance, the mean of the remaining ones, for all other directions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from manifpt.manifold.basis import Basis

METRICS = ("euclidean", "cosine", "whitened")
DIRECTIONS = 256
REALS_A_DIRECTION = 8  # rows of a sample: fewer estimate variances badly
OVERSAMPLED = 16  # further directions in the search for the principal ones
# No direction counts for more than 10^4 of another.
LEAST_VARIANCE = 1e-8
BLOCK_BYTES = 16 * 2**20
# Directions are multiples of 2^-30. The vectors that they multiply are cut into SLICES slices of
# BITS bits. Since 30 + 22 < 53, float64 holds each sum of products without rounding.
GRID = 2.0**-30
BITS = 22
SLICES = 2


def product(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return vectors @ directions.T, N x k float64, in which the order of sums changes no bit.

    Each vector, N x d float64, is cut into two summands that are multiples of a power of two and at
    most 2^22 of it long. With k x d ``directions`` that are multiples of 2^-30 and at most 1 long,
    all sums then are multiples of one number and less than 2^53 of it (by Cauchy-Schwarz), so none
    is rounded, by any implementation (after Ozaki, Ogita, Oishi & Rump, "Error-free transformations
    of matrix multiplication by using fast routines of matrix multiplication", Numerical Algorithms
    2012). The remainder of each number is at most 2^-44 d of the largest.
    """
    transposed = torch.from_numpy(directions).T
    left, out = vectors, np.zeros((len(vectors), len(directions)))
    for _ in range(SLICES):
        length = np.sqrt(left.shape[1]) * np.abs(left).max(1, keepdims=True, initial=0)
        unit = np.ldexp(1.0, np.frexp(length)[1] - BITS)
        part = np.rint(left / unit) * unit
        out += (torch.from_numpy(part) @ transposed).numpy()
        left = left - part
    return out


@dataclass(frozen=True, eq=False)
class Whitening:
    """A covariance: ``variances`` k along ``directions`` k x d, ``rest`` in all other directions.

    All are float64. Directions are orthonormal up to rounding to 2^-30; ``mean``, d, is the origin
    of points, on which no distance depends.
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    rest: float

    @classmethod
    def fit(cls, sample: np.ndarray) -> "Whitening":
        """Estimate the covariance from n x d float32 vectors: k is at most 256, d and n / 8.

        Variances are at least 10^-8 of the largest, and at least those from rounding vectors to
        float32. If all are zero they become 1, so that the metric is the Euclidean one.
        """
        count, dimension = sample.shape
        size = min(DIRECTIONS, dimension, count // REALS_A_DIRECTION)
        basis = Basis.fit(sample, size + OVERSAMPLED)
        keys = basis.keys(sample).astype(np.float64) / np.sqrt(max(1, count - 1))
        # Principal directions within those that the basis found (Rayleigh-Ritz).
        variances, turned = np.linalg.eigh(keys[:, :-1].T @ keys[:, :-1])
        variances, turned = variances[::-1], turned[:, ::-1]
        directions = np.rint(turned[:, :size].T @ basis.directions / GRID) * GRID
        others = variances[size:].sum() + np.square(keys[:, -1]).sum()
        rest = float(others) / max(1, dimension - size)
        rounding = float(np.abs(sample).max()) * 2.0**-24
        least = max(LEAST_VARIANCE * max(rest, *variances), rounding**2) or 1.0
        floored = np.maximum(variances[:size], least)
        return cls(basis.centre, np.ascontiguousarray(directions), floored, max(rest, least))

    @classmethod
    def of_lines(cls, lines: np.ndarray) -> "Whitening":
        """Read an array of ``lines``."""
        directions = np.ascontiguousarray(lines[:-1, 1:])
        return cls(lines[-1, 1:].copy(), directions, lines[:-1, 0].copy(), float(lines[-1, 0]))

    def lines(self) -> np.ndarray:
        """Return an array (k + 1) x (d + 1): each variance and direction; the rest and the mean."""
        variances = np.append(self.variances, self.rest)
        return np.column_stack([variances, np.vstack([self.directions, self.mean])])

    def points(self, vectors: np.ndarray) -> np.ndarray:
        """Return N x d float32 of C^(-1/2) (v - mean), each vector's by itself to the bit.

        With U the directions: (v - mean) / sigma + U^T (1 / sqrt(variances) - 1 / sigma) U (v -
        mean), sigma^2 the rest, in float64 and rounded to float32 at last.
        """
        sigma = np.sqrt(self.rest)
        factors = 1 / np.sqrt(self.variances) - 1 / sigma
        across = np.ascontiguousarray(self.directions.T)
        out = np.empty(vectors.shape, np.float32)
        step = max(1, BLOCK_BYTES // (8 * vectors.shape[1]))
        for start in range(0, len(vectors), step):
            centred = vectors[start : start + step] - self.mean
            along = product(centred, self.directions) * factors
            out[start : start + step] = centred / sigma + product(along, across)
        return out


@dataclass(frozen=True)
class Metric:
    """A metric by its name, one of METRICS; ``whitened`` has its covariance."""

    name: str = "euclidean"
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        if self.name not in METRICS or (self.name == "whitened") != (self.whitening is not None):
            raise ValueError(f"a metric {self.name} with the covariance {self.whitening}")

    def points(self, vectors: np.ndarray) -> np.ndarray:
        """Return the points of N x d vectors, N x d, to compare by Euclidean distance.

        The type is that of ``vectors``, except for ``whitened``, whose points are float32 by
        definition: distances are those of these points. A zero vector has no direction and stays
        zero.
        """
        if self.whitening is not None:
            return self.whitening.points(vectors)
        if self.name == "euclidean":
            return vectors
        norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(1, keepdims=True))
        out: np.ndarray = (vectors / np.where(norms > 0, norms, 1)).astype(vectors.dtype)
        return out

    @property
    def rounding(self) -> float:
        """The largest error of a distance from rounding points to float32.

        It is 0 where distances are those of float32 points: only directions are closer in float64.
        """
        return 2.0**-21 if self.name == "cosine" else 0.0


EUCLIDEAN = Metric()
