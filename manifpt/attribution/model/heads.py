"""Last layers from features: linear classifiers that need few images of a class.

Both ways give every class the same weight, however many images it has. Features are standardised
first; the layers that are returned take them as they are.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PENALTY = 1e-2
SHRINKAGE = 0.1
STEPS = 200
LEAST_STD = 1e-6

# A layer's weight, classes x d, and bias, classes, float64.
Layer = tuple[np.ndarray, np.ndarray]


def _moments(features: np.ndarray, labels: np.ndarray, classes: int) -> list[np.ndarray]:
    """Return the class means, classes x d, and mean and std over classes of one weight."""
    means = np.stack([features[labels == c].mean(0) for c in range(classes)])
    squares = np.stack([np.square(features[labels == c]).mean(0) for c in range(classes)])
    centre = means.mean(0)
    std = np.sqrt(np.maximum(squares.mean(0) - centre**2, 0))
    return [means, centre, np.maximum(std, LEAST_STD)]


def _unstandardised(
    weight: np.ndarray, bias: np.ndarray, centre: np.ndarray, std: np.ndarray
) -> Layer:
    weight = weight / std
    return weight, bias - weight @ centre


def fit_linear(features: np.ndarray, labels: np.ndarray, classes: int) -> Layer:
    """Return the layer of multinomial logistic regression with a Gaussian prior on weights.

    ``features`` are N x d, ``labels`` N integers, of each class at least one. It minimises the mean
    cross entropy, classes balanced, plus ``PENALTY``/2 times the squared norm of the weights: a
    convex problem, solved in float64 from zero, so equal features give equal layers.
    """
    features = features.astype(np.float64)
    _, centre, std = _moments(features, labels, classes)
    x = torch.from_numpy((features - centre) / std)
    y = torch.from_numpy(labels)
    share = torch.bincount(y, minlength=classes).double()
    balance = len(y) / (classes * share)
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = cross_entropy(x @ weight.T + bias, y, balance, reduction="sum") / len(y)
        value = value + PENALTY / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return _unstandardised(weight.detach().numpy(), bias.detach().numpy(), centre, std)


def fit_lda(features: np.ndarray, labels: np.ndarray, classes: int) -> Layer:
    """Return the layer of linear discriminant analysis with equal priors.

    Classes are Gaussians of one covariance, that within classes of one weight each, of which
    ``SHRINKAGE`` is replaced by a multiple of the identity (Friedman, "Regularized Discriminant
    Analysis", JASA 1989). Arguments are those of ``fit_linear``.
    """
    features = features.astype(np.float64)
    means, centre, std = _moments(features, labels, classes)
    points = (means - centre) / std
    within = np.zeros((features.shape[1], features.shape[1]))
    for c in range(classes):
        inside = (features[labels == c] - means[c]) / std
        within += inside.T @ inside / len(inside) / classes
    ridge = SHRINKAGE * np.trace(within) / len(within)
    covariance = (1 - SHRINKAGE) * within + max(ridge, LEAST_STD) * np.eye(len(within))
    weight = np.linalg.solve(covariance, points.T).T
    bias = -0.5 * (weight * points).sum(1)
    return _unstandardised(weight, bias, centre, std)


FITS = {"linear": fit_linear, "lda": fit_lda}
