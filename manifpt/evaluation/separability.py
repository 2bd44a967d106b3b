"""The separation of generators' fingerprints: the Frechet distance ratio of features (FDR).

Song, Khayatkhoei and AbdAlmageed, "ManiFPT: Defining and Analyzing Fingerprints of Generative
Models", CVPR 2024, compare feature spaces by the ratio of the Frechet distances between and within
classes. The paper does not give the estimator of the distance within a class. The one here is the
distance between two random halves of the class.
"""

from typing import NamedTuple

import numpy as np
import threadpoolctl

from manifpt.errors import ManifptError
from manifpt.evaluation.closed_set import CONFIDENCE, RESAMPLES

MOST = 64
LEAST_ROWS = 4


class FrechetRatio(NamedTuple):
    """The Frechet distance ratio, with the ends of its interval and the data behind it.

    ``between`` and ``within`` are the mean distances whose ratio it is, ``rows`` the size of each
    sample, ``components`` the dimensions that were left. ``low`` and ``high`` are NaN for two
    classes, which have no other classes to draw.
    """

    ratio: float
    low: float
    high: float
    between: float
    within: float
    rows: int
    components: int


class _Gaussian(NamedTuple):
    """A mean (d) and a factor (r x d) of the covariance, which is factor' factor."""

    mean: np.ndarray
    factor: np.ndarray


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    """Return their Frechet distance; the trace of the root is a sum of singular values.

    With A = F'F and B = G'G, the eigenvalues of A^(1/2) B A^(1/2) are the squares of the singular
    values of F G'. No root of a matrix is needed, and no covariance need be invertible.
    """
    overlap = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    square = ((a.mean - b.mean) ** 2).sum() + (a.factor**2).sum() + (b.factor**2).sum()
    return max(float(square - 2 * overlap), 0.0)


def frechet_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """Return the Frechet distance of two Gaussians, at least 0, in squared units of the features.

    Means are d, covariances d x d and possibly singular. It is |m_a - m_b|^2 + tr(A + B -
    2 (A^(1/2) B A^(1/2))^(1/2)), the squared 2-Wasserstein distance (Dowson & Landau, "The Frechet
    distance between multivariate normal distributions", Journal of Multivariate Analysis 12(3),
    1982), which Heusel et al. (NeurIPS 2017) call FID for features of Inception.

    For N(0, 1) and N(3, 4) it is 3^2 + (2 - 1)^2:

    >>> one, four = np.array([[1.0]]), np.array([[4.0]])
    >>> frechet_distance(np.zeros(1), one, np.full(1, 3.0), four)
    10.0
    """

    def gaussian(mean: np.ndarray, cov: np.ndarray) -> _Gaussian:
        values, vectors = np.linalg.eigh(cov.astype(np.float64))
        return _Gaussian(mean.astype(np.float64), (vectors * np.sqrt(values.clip(0))).T)

    return _distance(gaussian(mean_a, cov_a), gaussian(mean_b, cov_b))


def _fitted(sample: np.ndarray) -> _Gaussian:
    """Return the mean and the covariance (with n - 1) of n x d rows."""
    mean = sample.mean(0)
    return _Gaussian(mean, np.linalg.qr((sample - mean) / np.sqrt(len(sample) - 1)).R)


def _reduced(features: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return N x d features on their first principal components, N x min(N, d, most)."""
    from sklearn.decomposition import PCA

    features = features.astype(np.float64)
    if features.shape[1] <= most:
        return features
    count = min(most, len(features))
    reduced: np.ndarray = PCA(count, random_state=seed).fit_transform(features)
    return reduced


def _ratio_of(distances: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the mean distance between and within K classes that count with some weights.

    ``distances`` is K x K: of halves of one class on the diagonal, of two classes elsewhere.
    """
    pairs = np.outer(weights, weights).astype(np.float64)
    np.fill_diagonal(pairs, 0)
    within = float(weights @ np.diagonal(distances) / weights.sum())
    return float((pairs * distances).sum() / pairs.sum()), within


def _interval(distances: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the ends of the percentile bootstrap interval over classes; NaN for two classes."""
    classes = len(distances)
    if classes < 3:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(classes, np.full(classes, 1 / classes), RESAMPLES)
    drawn = drawn[(drawn > 0).sum(1) > 1]
    means = np.array([_ratio_of(distances, weights) for weights in drawn])
    tail = (1 - CONFIDENCE) / 2
    with np.errstate(divide="ignore"):
        low, high = np.quantile(means[:, 0] / means[:, 1], [tail, 1 - tail])
    return float(low), float(high)


def frechet_ratio(
    features: np.ndarray, labels: np.ndarray, *, seed: int = 0, halves: int = 5, most: int = MOST
) -> FrechetRatio:
    """Return the mean Frechet distance between classes over that within a class.

    ``features`` are N x d, ``labels`` N names of classes. Each class is cut into two random halves,
    ``halves`` times, and distances are averaged over the cuts. The distance within a class is that
    of its two halves. The distance between two classes is that of a half of one and a half of the
    other. All halves of all classes have the same number of rows, half of the smallest class: the
    Frechet distance of samples is biased upwards, the more the fewer the rows, and this bias must
    be the same above and below the line. The ratio is about 1 where all classes have one
    distribution. With fewer rows the bias is larger and draws the ratio towards 1, so compare
    ratios of equal ``rows`` and ``components``.

    More than ``most`` dimensions are reduced to the first ``most`` principal components of all
    rows; distances in the directions that are left out do not count.

    The interval is a percentile bootstrap over classes with the distances as they are: it is for
    other generators like these, and not for other images of the same ones. A pair of two copies of
    one class does not count, nor a draw of one class alone.

    Raises ManifptError where there are fewer than 2 classes, 4 rows of a class, or no variance.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(["a", "b", "c"], 200)
    >>> alike = rng.normal(size=(600, 20))
    >>> 0.8 < frechet_ratio(alike, labels).ratio < 1.2
    True
    >>> shifted = alike + 9 * np.repeat(np.eye(3, 20), 200, axis=0)
    >>> frechet_ratio(shifted, labels).ratio > 20
    True
    """
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or min(counts) < LEAST_ROWS:
        raise ManifptError(
            f"Frechet distance ratio: {len(names)} classes, the smallest with "
            f"{min(counts, default=0)} rows; give 2 or more classes of {LEAST_ROWS} or more rows"
        )
    reduced, rows = _reduced(features, most, seed), int(counts.min()) // 2
    rng = np.random.default_rng(seed)
    distances = np.zeros((len(names), len(names)))
    with threadpoolctl.threadpool_limits(1):  # threads slow small matrices down
        for _ in range(halves):
            cut = [rng.permutation(np.flatnonzero(labels == name))[: 2 * rows] for name in names]
            first = [_fitted(reduced[part[:rows]]) for part in cut]
            second = [_fitted(reduced[part[rows:]]) for part in cut]
            distances += np.array([[_distance(a, b) for b in second] for a in first]) / halves
    between, within = _ratio_of(distances, np.ones(len(names)))
    if within <= 0:
        raise ManifptError(
            "Frechet distance ratio: the rows of each class are equal; give features that vary"
        )
    low, high = _interval(distances, seed)
    return FrechetRatio(between / within, low, high, between, within, rows, reduced.shape[1])
