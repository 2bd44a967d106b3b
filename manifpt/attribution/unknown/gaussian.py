"""Classes as Gaussians of one covariance, and squared Mahalanobis distances to their means."""

from dataclasses import dataclass

import numpy as np

# Every direction gets at least this share of the mean variance: features may lie in a subspace.
LEAST_SHRINKAGE = 1e-3
# Every feature gets at least this share of the mean deviation: some never vary in training.
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class ClassGaussian:
    """Class means, C x d float64, whitened by ``whitening``, d x d float32."""

    means: np.ndarray
    whitening: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, classes: int) -> "ClassGaussian":
        """Fit on N x d features; each of the classes needs at least one row.

        The covariance is shrunk to that of independent features, each with its own variance.
        """
        values = features.astype(np.float64)
        counts = np.bincount(labels, minlength=classes)
        sums = np.zeros((classes, values.shape[1]))
        np.add.at(sums, labels, values)
        means = sums / counts[:, None]
        centred = values - means[labels]
        scale = centred.std(0)
        scale = np.maximum(scale, LEAST_SCALE * scale.mean() or 1.0)
        # Rows are nearer to their own mean than to the true one: these degrees of freedom are lost.
        freedom = len(values) / max(1, len(values) - classes)
        correlation = freedom * shrunk_covariance(centred / scale)
        whitening = (np.linalg.inv(np.linalg.cholesky(correlation)) / scale).astype(np.float32)
        return cls(means @ whitening.T.astype(np.float64), whitening)

    def squared(self, features: np.ndarray) -> np.ndarray:
        """Return N x C squared Mahalanobis distances of N x d features, float64."""
        white = features.astype(np.float64) @ self.whitening.T.astype(np.float64)
        lengths = np.square(white).sum(1)[:, None] + np.square(self.means).sum(1)
        found: np.ndarray = np.maximum(lengths - 2 * white @ self.means.T, 0)
        return found


def shrunk_covariance(centred: np.ndarray) -> np.ndarray:
    """Return the d x d covariance of N x d centred rows, shrunk to a multiple of the identity.

    The share is the best one by the estimate of Ledoit & Wolf ("A well-conditioned estimator for
    large-dimensional covariance matrices", JMVA 2004, section 3.2), at least LEAST_SHRINKAGE.
    """
    rows, size = centred.shape
    sample = centred.T @ centred / rows
    mean = max(float(np.trace(sample)) / size, np.finfo(np.float32).tiny)
    spread = float(np.square(sample).sum()) - size * mean**2
    noise = float(np.square(np.square(centred).sum(1)).sum()) / rows**2
    noise -= float(np.square(sample).sum()) / rows
    shrinkage = min(1.0, noise / spread) if spread > 0 else 1.0
    shrinkage = max(shrinkage, LEAST_SHRINKAGE)
    shrunk: np.ndarray = (1 - shrinkage) * sample + shrinkage * mean * np.eye(size)
    return shrunk
