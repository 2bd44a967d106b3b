"""Linear discriminant analysis of vectors, with a shrinkage that validation images choose.

Classes are Gaussians of one covariance and of equal prior probability (Fisher, "The use of multiple
measurements in taxonomic problems", 1936). The covariance is that within classes of one weight
each, of which a share is replaced by a multiple of the identity (Friedman, "Regularized
Discriminant Analysis", JASA 1989). Training images are read once: means and products are all that
is kept of them, so that their number costs time and no memory.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifpt.attribution.model.fusion import fit_weights, fused_log_probabilities

SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
LEAST = 1e-6  # of a variance

# Artifacts of some images, N x shape, here vectors, N x d; and the numbers of their classes, N.
Rows = tuple[np.ndarray, np.ndarray]


class ClassMoments(NamedTuple):
    """Means of C classes, C x d, and the covariance within them, d x d, one weight each."""

    means: Tensor
    within: Tensor

    @classmethod
    def of(cls, parts: Iterable[Rows], counts: Sequence[int]) -> "ClassMoments":
        """Return the moments of rows, float64; ``counts`` are the rows of each class."""
        classes = len(counts)
        share = 1 / (classes * torch.tensor(counts, dtype=torch.float64))
        means = products = torch.zeros(())
        for rows, numbers in parts:
            x, labels = torch.from_numpy(rows).double(), torch.from_numpy(numbers)
            weight = share[labels][:, None]
            means = means + torch.zeros(classes, x.shape[1]).double().index_add(
                0, labels, x * weight * classes
            )
            products = products + x.T @ (x * weight)
        return cls(means, products - means.T @ means / classes)


class Discriminant(NamedTuple):
    """The layers of an analysis: ``coordinates``, k x d, then ``weight``, C x k, and ``bias``, C.

    In the coordinates the covariance within classes is the identity.
    """

    shrinkage: float
    coordinates: Tensor
    weight: Tensor
    bias: Tensor

    def state(self) -> dict[str, Tensor]:
        """Return the weights of a head's layers."""
        return {"0.weight": self.coordinates, "1.weight": self.weight, "1.bias": self.bias}

    def logits(self, rows: np.ndarray) -> Tensor:
        """Return N x C logits of N x d rows."""
        found: Tensor = torch.from_numpy(rows).double() @ self.coordinates.T
        return found @ self.weight.T + self.bias


def discriminant(moments: ClassMoments, shrinkage: float) -> Discriminant:
    """Return the analysis with a share of the covariance replaced.

    The number of coordinates is that of classes less one, or d if that is smaller.
    """
    means, within = moments
    classes, size = means.shape
    ridge = shrinkage * within.trace() / size + LEAST
    lower = torch.linalg.cholesky((1 - shrinkage) * within + ridge * torch.eye(size).double())
    centre = means.mean(0)
    white = torch.linalg.solve_triangular(lower, (means - centre).T, upper=False)
    basis, scale, right = torch.linalg.svd(white, full_matrices=False)
    kept = min(size, classes - 1)
    basis = basis[:, :kept]
    coordinates = torch.linalg.solve_triangular(lower.T, basis, upper=True).T
    weight = (scale[:kept, None] * right[:kept]).T
    # The rows are not centred: the bias of each class takes the centre away.
    bias = -0.5 * weight.square().sum(1) - weight @ (coordinates @ centre)
    return Discriminant(shrinkage, coordinates, weight, bias)


def fit_discriminant(
    train: Iterable[Rows], counts: Sequence[int], validation: Rows
) -> Discriminant:
    """Return the analysis of training rows whose calibrated loss on validation is the least.

    ``counts`` are the training rows of each class; each class has at least one. Losses are compared
    at the best temperature, since probabilities are calibrated later.
    """
    moments = ClassMoments.of(train, counts)
    rows, numbers = validation
    labels = torch.from_numpy(numbers)

    def loss(found: Discriminant) -> float:
        logits = found.logits(rows)[:, None]
        calibrated = fused_log_probabilities(logits, fit_weights(logits, labels).double())
        return float(torch.nn.functional.nll_loss(calibrated, labels))

    return min((discriminant(moments, share) for share in SHRINKAGES), key=loss)
