"""The overlap of the supports of samples and reals: precision, recall, density, coverage.

Precision and recall: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing
Generative Models", NeurIPS 2019, eqs. 1-2: a point's ball reaches to its k-th neighbour of its own
kind. Density and coverage: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative
Models", ICML 2020, eqs. 3-4, which outliers among the reals cannot inflate so. A ball is open, as
in the code of Naeem et al.: a point at the distance of the radius is outside.
"""

from collections.abc import Iterator

import numpy as np

# Distances in memory at a time: 32 MiB of float64.
BLOCK = 1 << 22


def distance_blocks(
    a: np.ndarray, b: np.ndarray, *, block: int = BLOCK, squared: bool = False
) -> Iterator[np.ndarray]:
    """Yield the Euclidean distances of N x d to M x d points, some rows x M at a time, in order.

    Differences are squared in float64, so the distance of two equal points is exactly 0. A block
    has at most ``block`` distances, but at least one row. ``squared`` leaves the root out.
    """
    from scipy.spatial.distance import cdist

    a, b = a.astype(np.float64), b.astype(np.float64)
    rows = max(1, block // len(b))
    for start in range(0, len(a), rows):
        yield cdist(a[start : start + rows], b, "sqeuclidean" if squared else "euclidean")


def neighbour_radii(points: np.ndarray, k: int, *, block: int = BLOCK) -> np.ndarray:
    """Return the distance of each of N x d points to its k-th nearest other point, N.

    >>> neighbour_radii(np.array([[0.0], [1.0], [3.0]]), 1)
    array([1., 1., 2.])
    """
    parts = distance_blocks(points, points, block=block)
    return np.concatenate([np.partition(part, k, axis=1)[:, k] for part in parts])


def support_overlap(
    real: np.ndarray, generated: np.ndarray, k: int = 5, *, block: int = BLOCK
) -> dict[str, float]:
    """Return precision, recall, density and coverage of M x d samples against N x d reals.

    All are shares, but for density, whose expectation is 1 where both are of one distribution.
    N and M must be larger than k; the metrics depend on both, so compare equal numbers only.
    Memory holds ``block`` distances at a time, or one row of them.

    >>> real = np.array([[0.0], [1.0], [2.0]])
    >>> support_overlap(real, np.array([[0.5], [0.5]]), k=1)
    {'precision': 1.0, 'recall': 0.0, 'density': 2.0, 'coverage': 0.6666666666666666}
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"{len(real)} reals and {len(generated)} samples: more than {k} are needed"
        )
    real_radii = neighbour_radii(real, k, block=block)
    generated_radii = neighbour_radii(generated, k, block=block)
    precise = np.zeros(len(generated), bool)
    start = recalled = covered = pairs = 0
    for between in distance_blocks(real, generated, block=block):
        radii = real_radii[start : start + len(between)]
        inside = between < radii[:, None]
        precise |= inside.any(0)
        pairs += int(inside.sum())
        recalled += int((between < generated_radii).any(1).sum())
        covered += int((between.min(1) < radii).sum())
        start += len(between)
    return {
        "precision": float(precise.mean()),
        "recall": recalled / len(real),
        "density": pairs / (k * len(generated)),
        "coverage": covered / len(real),
    }
