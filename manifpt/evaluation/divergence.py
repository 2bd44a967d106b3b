"""Distances of two distributions, estimated from samples: integral probability metrics.

The mean length of artifacts is compared with them: the distance of a point to a manifold that holds
all data is at most its distance to any data, so E|a| <= W1(P_G, P_data).
"""

import numpy as np

from manifpt.evaluation.support import distance_blocks

DIRECTIONS = 256
# The largest number of rows for the median distance.
MEDIAN_ROWS = 1000


def mean_artifact_length(artifacts: np.ndarray) -> float:
    """Return the mean Euclidean length of N artifacts of any shape, in units of their space.

    >>> mean_artifact_length(np.array([[3.0, 4.0], [0.0, 0.0]]))
    2.5
    """
    flat = artifacts.reshape(len(artifacts), -1).astype(np.float64)
    return float(np.linalg.norm(flat, axis=1).mean())


def median_distance(points: np.ndarray, *, seed: int = 0) -> float:
    """Return the median distance of two different rows of N x d, of at most MEDIAN_ROWS rows.

    The usual bandwidth of a Gaussian kernel (Gretton et al., JMLR 13, 2012, section 8).

    >>> median_distance(np.array([[0.0], [1.0], [3.0]]))
    2.0
    """
    from scipy.spatial.distance import pdist

    if len(points) > MEDIAN_ROWS:
        rows = np.random.default_rng(seed).choice(len(points), MEDIAN_ROWS, replace=False)
        points = points[np.sort(rows)]
    return float(np.median(pdist(points.astype(np.float64))))


def squared_mmd(
    a: np.ndarray, b: np.ndarray, *, bandwidth: float | None = None, seed: int = 0
) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of N x d and M x d rows.

    Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, eq. 3, with the kernel
    exp(-|x - y|^2 / (2 h^2)). It is characteristic: the discrepancy is 0 for equal distributions
    only. The estimate is then about 0, and may be below it. The bandwidth h is the median distance
    of all rows, unless one is given; values of several pairs are comparable with one bandwidth.
    ValueError if a side has fewer than 2 rows, or the bandwidth is not positive.

    >>> far = squared_mmd(np.zeros((3, 1)), np.full((3, 1), 9.0), bandwidth=1.0)
    >>> round(far, 6)
    2.0
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} rows: 2 or more of each are needed")
    h = median_distance(np.concatenate([a, b]), seed=seed) if bandwidth is None else bandwidth
    if not h > 0:
        raise ValueError(f"bandwidth {h}: give one above 0")

    def kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
        parts = distance_blocks(x, y, squared=True)
        return float(sum(np.exp(part / (-2 * h**2)).sum() for part in parts))

    n, m = len(a), len(b)
    own = (kernel_sum(a, a) - n) / (n * (n - 1)) + (kernel_sum(b, b) - m) / (m * (m - 1))
    return own - 2 * kernel_sum(a, b) / (n * m)


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, *, directions: int = DIRECTIONS, seed: int = 0
) -> float:
    """Return the sliced 1-Wasserstein distance of N x d and M x d rows, in units of the features.

    It is the mean over random unit directions of the exact distance of the projections (Bonneel et
    al., "Sliced and Radon Wasserstein Barycenters of Measures", Journal of Mathematical Imaging and
    Vision 51, 2015). The directions depend on d and ``seed`` alone. It is at most the 1-Wasserstein
    distance, and in many dimensions far below it, so it may be below E|a|, too.

    >>> sliced_wasserstein(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0], [4.0]]))
    2.5
    """
    axes = np.random.default_rng(seed).normal(size=(directions, a.shape[1]))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    first, second = (np.sort(x.astype(np.float64) @ axes.T, axis=0) for x in (a, b))
    n, m = len(a), len(b)
    # Both quantile functions are steps; in units of 1 / (n m) their ends are whole numbers.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(ends, prepend=0) / (n * m)
    gaps = np.abs(first[(ends - 1) // m] - second[(ends - 1) // n])
    return float((widths @ gaps).mean())
