"""A classifier of vectors by votes of the nearest training vectors.

Cover and Hart, "Nearest neighbor pattern classification", IEEE Transactions on Information Theory
1967. Distances are Euclidean, of standardised vectors. How many neighbours vote is chosen by
validation images, by the same loss as the shrinkage of a discriminant. The coordinates of a vector
are the logarithms of the classes' shares of the votes, of which one more is split evenly among all
classes; logits are these coordinates, and late fusion fits their temperature. The training vectors
are part of the weights.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from manifpt.attribution.model.discriminant import Rows
from manifpt.attribution.model.fusion import fit_weights, fused_log_probabilities

NEIGHBOURS = "knn"
COUNTS = (1, 3, 5, 9, 17, 33, 65)


class StoredVectors(NamedTuple):
    """Training vectors, N x d, the numbers of their classes, N, and how many of them vote."""

    rows: Tensor
    labels: Tensor
    nearest: int
    classes: int

    def state(self) -> dict[str, Tensor]:
        """Return the weights of a head's layers."""
        return {
            "0.rows": self.rows,
            "0.labels": self.labels,
            "0.nearest": torch.tensor(self.nearest),
            "1.weight": torch.eye(self.classes),
            "1.bias": torch.zeros(self.classes),
        }


class NeighbourShares(nn.Module):
    """Vectors, B x d -> logarithms of the classes' shares among neighbours, B x C.

    The training vectors come with the weights, so their number is that of the weights.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features, self.classes = features, classes
        self.rows: Tensor
        self.labels: Tensor
        self.nearest: Tensor
        self.register_buffer("rows", torch.zeros(1, features))
        self.register_buffer("labels", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("nearest", torch.tensor(1))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *rest: object
    ) -> None:
        rows, labels = (state_dict.get(f"{prefix}{name}") for name in ("rows", "labels"))
        if rows is not None and labels is not None and rows.shape == (len(labels), self.features):
            self.rows = self.rows.new_zeros(rows.shape)
            self.labels = self.labels.new_zeros(labels.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]

    def forward(self, vectors: Tensor) -> Tensor:
        """Return B x C."""
        near = torch.cdist(vectors, self.rows).topk(int(self.nearest), largest=False).indices
        votes = nn.functional.one_hot(self.labels[near], self.classes).sum(1)
        return log_shares(votes)


def log_shares(votes: Tensor) -> Tensor:
    """Return the logarithms of shares of votes, B x C, with one vote split among all classes.

    >>> log_shares(torch.tensor([[3, 0]])).exp().tolist()
    [[0.875, 0.125]]
    """
    return ((votes + 1 / votes.shape[1]) / (votes.sum(1, keepdim=True) + 1)).log()


def neighbour_layers(features: int, coordinates: int, classes: int) -> nn.Sequential:
    """Return the layers of a head, B x features -> B x classes."""
    return nn.Sequential(NeighbourShares(features, coordinates), nn.Linear(coordinates, classes))


def fit_neighbours(train: Rows, validation: Rows, classes: int) -> StoredVectors:
    """Return the training rows with that number of neighbours whose validation loss is the least.

    What is compared is the loss at the best temperature, since all else calibrates later.
    """
    from sklearn.neighbors import NearestNeighbors

    rows, labels = train
    most = min(max(COUNTS), len(rows))
    order = NearestNeighbors(n_neighbors=most).fit(rows).kneighbors(validation[0])[1]
    near = nn.functional.one_hot(torch.from_numpy(labels[order]), classes)
    truth = torch.from_numpy(validation[1])

    def loss(count: int) -> float:
        logits = log_shares(near[:, :count].sum(1)).double()[:, None]
        calibrated = fused_log_probabilities(logits, fit_weights(logits, truth).double())
        return float(nn.functional.nll_loss(calibrated, truth))

    nearest = min((count for count in COUNTS if count <= most), key=loss)
    stored = torch.from_numpy(np.float32(rows)), torch.from_numpy(labels)
    return StoredVectors(*stored, nearest, classes)
