"""What a network says of images, and of images whose classes are known."""

from typing import NamedTuple

import numpy as np


class Outputs(NamedTuple):
    """What a network says of N images, float32.

    ``logits`` are N x heads x classes, ``features`` of each head N x its width: what its last layer
    is given.
    """

    logits: np.ndarray
    features: list[np.ndarray]


class Known(NamedTuple):
    """What a network says of N images, and the numbers of their classes.

    ``degradations`` names the kind by which each image is degraded, "" for none, the default.
    """

    outputs: Outputs
    labels: np.ndarray
    degradations: np.ndarray = np.array("")
