"""A classifier of vectors by their correlation with the mean vector of each class.

This identifies a camera by the pattern of its sensor, and a generator by its fingerprint (Marra et
al., "Do GANs leave artificial fingerprints?", IEEE MIPR 2019). Logits are correlations times the
square root of the number of values d: for independent values their standard deviation is about 1,
for any d. Late fusion fits their temperature. A class whose images share no pattern, such as
photographs of many cameras, is recognised badly: its images correlate with no mean, not even with
their own.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from manifpt.attribution.model.discriminant import Discriminant, Rows

CORRELATION = "correlation"
LEAST = 1e-9  # of a variance


class StandardisedRows(nn.Sequential):
    """Linear layers of vectors, B x d, that are first brought to mean 0 and variance 1 each."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs of the layers."""
        rows = layer_norm(input, input.shape[1:], eps=LEAST)
        out: Tensor = super().forward(rows)  # type: ignore[no-untyped-call]
        return out


def fit_correlation(train: Iterable[Rows], classes: int) -> Discriminant:
    """Return the layers of a head that correlates vectors with the class means of training rows.

    The coordinates of a vector are its correlations with C means, times the square root of d; the
    logits are these coordinates.
    """
    sums = torch.zeros(())
    counts = torch.zeros(classes, 1).double()
    for rows, numbers in train:
        x, labels = torch.tensor(rows, dtype=torch.float64), torch.from_numpy(numbers)
        sums = sums + torch.zeros(classes, x.shape[1]).double().index_add(0, labels, x)
        counts += torch.bincount(labels, minlength=classes)[:, None]
    means = sums / counts
    size = means.shape[1]
    patterns = layer_norm(means, (size,), eps=LEAST**2) / size**0.5
    return Discriminant(0.0, patterns, torch.eye(classes).double(), torch.zeros(classes).double())
