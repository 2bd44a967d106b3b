"""The outputs of a network for images, and for images whose classes are known."""

from typing import NamedTuple

import numpy as np


class Outputs(NamedTuple):
    """The outputs of a network for N images, float32.

    ``logits`` are N x heads x classes, ``features`` of each head, the input of its last layer, N x
    its width.
    """

    logits: np.ndarray
    features: list[np.ndarray]


class Known(NamedTuple):
    """The outputs of a network for N images, and the numbers of their classes.

    ``degradations`` names the kind by which each image is degraded, "" for none, the default.
    """

    outputs: Outputs
    labels: np.ndarray
    degradations: np.ndarray = np.array("")
