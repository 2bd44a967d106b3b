"""A test whether lengths of artifacts rank generators as distances of distributions do."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from manifpt.errors import ManifptError
from manifpt.evaluation.clustering import PERMUTATIONS
from manifpt.evaluation.divergence import (
    mean_artifact_length,
    median_distance,
    sliced_wasserstein,
    squared_mmd,
)
from manifpt.evaluation.significance import permutation_p
from manifpt.evaluation.support import support_overlap

LENGTH = "artifact_length"
MEASURES = ("precision", "recall", "density", "coverage", "squared_mmd", "sliced_wasserstein")


class RankCorrelation(NamedTuple):
    """Spearman's correlation and its two-sided p-value; NaN and 1 where a side is constant."""

    rho: float
    p: float


class RankTable(NamedTuple):
    """The measures of each generator, and their correlations with the mean artifact length.

    ``rows`` are by generator and measure, ``correlations`` by measure. All measures are from
    ``samples`` images of each generator.
    """

    rows: dict[str, dict[str, float]]
    correlations: dict[str, RankCorrelation]
    samples: int


def rank_correlation(
    x: np.ndarray, y: np.ndarray, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> RankCorrelation:
    """Return Spearman's rank correlation of N pairs, ties at their mean rank, by permutation.

    >>> rank_correlation(np.arange(9), np.arange(9) ** 2).rho
    1.0
    """
    from scipy.stats import rankdata

    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    if scale == 0:
        return RankCorrelation(float("nan"), 1.0)
    rng = np.random.default_rng(seed)
    permuted = rng.permuted(np.tile(second, (permutations, 1)), axis=1) @ first / scale
    rho = float(second @ first / scale)
    return RankCorrelation(rho, permutation_p(abs(rho), np.abs(permuted)))


def rank_table(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    artifacts: Mapping[str, np.ndarray],
    *,
    k: int = 5,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> RankTable:
    """Return the mean artifact length of generators beside other measures of their samples.

    ``real`` are N x d vectors of reals, ``generated`` M x d vectors of each generator's images, and
    ``artifacts`` the artifacts of the same images in the same order. Measures depend on the number
    of rows: the same number is drawn for each generator, as many as the smallest has. The kernel's
    bandwidth is the median distance of the reals, one for all generators. ``real`` should be reals
    that the manifold does not hold, or precision counts copies.

    A correlation is over generators, and its p-value exchanges generators; correct the table with
    ``significance.holm``. Second seeds of a recipe are not independent of its first: leave them
    out, or read the p-value as too small.

    Raises ManifptError if artifacts are missing, or a side has not more than ``k`` rows.

    >>> rng = np.random.default_rng(0)
    >>> noise = {"near": rng.normal(size=(50, 2)), "far": 9 + rng.normal(size=(50, 2))}
    >>> table = rank_table(rng.normal(size=(50, 2)), noise, noise)
    >>> table.correlations["sliced_wasserstein"].rho, table.correlations["coverage"].rho
    (1.0, -1.0)
    """
    for name, vectors in generated.items():
        if name not in artifacts or len(artifacts[name]) != len(vectors):
            raise ManifptError(f"{name}: give one artifact for each of its {len(vectors)} images")
    count = min((len(vectors) for vectors in generated.values()), default=0)
    if min(count, len(real)) <= k:
        raise ManifptError(
            f"{len(real)} reals, {count} images of the smallest generator: give more than k = {k}"
        )
    rng, bandwidth = np.random.default_rng(seed), median_distance(real, seed=seed)
    rows: dict[str, dict[str, float]] = {}
    for name, vectors in generated.items():
        drawn = np.sort(rng.choice(len(vectors), count, replace=False))
        sample = vectors[drawn]
        rows[name] = {
            LENGTH: mean_artifact_length(artifacts[name][drawn]),
            **support_overlap(real, sample, k),
            "squared_mmd": squared_mmd(real, sample, bandwidth=bandwidth),
            "sliced_wasserstein": sliced_wasserstein(real, sample, seed=seed),
        }
    columns = {m: np.array([row[m] for row in rows.values()]) for m in (LENGTH, *MEASURES)}
    correlations = {
        m: rank_correlation(columns[LENGTH], columns[m], permutations=permutations, seed=seed)
        for m in MEASURES
    }
    return RankTable(rows, correlations, count)
