"""Neighbouring pixel relationships: differences within the cells of an upsampling by 2.

Tan, Liu, Zhao, Wei, Gu, Liu and Wei, "Rethinking the up-sampling operations in CNN-based generative
network for generalizable deepfake detection", CVPR 2024: an image less its copy that was reduced
to half and enlarged again, both by the nearest pixel.

Deviations from the authors' code (github.com/chuangchuangtan/NPR-DeepfakeDetection): pixels are in
[0, 1], where the code divides by deviations of ImageNet's channels and multiplies by 2 / 3; a
network normalises each channel by its training images, so that no constant factor matters. Images
keep their size, where the code resizes to 256 and crops to 224 pixels: resizing would spoil the
cells. The code's network is the first two stages of a ResNet-50, untrained; here it is chosen as
for any maps. Images of odd size, at which the code stops, have cells of one pixel at their ends,
where the difference is 0.
"""

import numpy as np

SETTINGS: dict[str, object] = {}


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
