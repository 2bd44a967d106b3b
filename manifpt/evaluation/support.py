"""How the supports of samples and of reals overlap: precision, recall, density, coverage.

Precision and recall: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing
Generative Models", NeurIPS 2019, eqs. 1-2: a point's ball reaches to its k-th neighbour of its own
kind. Density and coverage: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative
Models", ICML 2020, eqs. 3-4, which outliers among the reals cannot inflate so.
"""

import numpy as np


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances of N x d and M x d points, N x M, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    found: np.ndarray = np.sqrt(np.maximum(square, 0))
    return found


def support_overlap(real: np.ndarray, generated: np.ndarray, k: int = 5) -> dict[str, float]:
    """Return precision, recall, density and coverage of M x d samples against N x d reals.

    All are shares, but for density, whose expectation is 1 where both are of one distribution.
    N and M must be larger than k; the metrics depend on both, so compare equal numbers only.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"{len(real)} reals and {len(generated)} samples: more than {k} are needed"
        )
    real_radii = np.sort(distances(real, real), axis=1)[:, k]
    generated_radii = np.sort(distances(generated, generated), axis=1)[:, k]
    between = distances(real, generated)
    inside = between < real_radii[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between < generated_radii).any(1).mean()),
        "density": float(inside.sum(0).mean() / k),
        "coverage": float((between.min(1) < real_radii).mean()),
    }
