"""Neighbouring pixel relationships: differences within the cells of an upsampling by 2.

Tan, Liu, Zhao, Wei, Gu, Liu and Wei, "Rethinking the up-sampling operations in CNN-based generative
network for generalizable deepfake detection", CVPR 2024: an image less its copy that was reduced
to half and enlarged again, both by the nearest pixel.

Deviations: pixels are in [0, 1] and not normalised by the means of ImageNet. Networks are ours to
choose. Images of odd size have cells of one pixel at their ends, where the difference is 0.
"""

from typing import Any

import numpy as np

SETTINGS: dict[str, Any] = {}


def neighbour_differences(images: np.ndarray) -> np.ndarray:
    """Return each pixel less the upper left one of its 2 x 2 cell, N x 3 x H x W in [-1, 1].

    >>> row = np.array([[[[0] * 3, [255] * 3, [51] * 3]]], np.uint8)
    >>> neighbour_differences(row)[0, 0].tolist()
    [[0.0, 1.0, 0.0]]
    """
    values = np.moveaxis(images, -1, 1).astype(np.int16)
    rows, columns = (np.arange(side) // 2 * 2 for side in values.shape[2:])
    differences = values - values[:, :, rows[:, None], columns]
    found: np.ndarray = differences.astype(np.float32) / np.float32(255)
    return found
