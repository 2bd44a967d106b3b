"""The lowest bits of pixels, as maps for a network.

Wang, Cheng, Han and Gui, "Attribution as retrieval: model-agnostic AI-generated image attribution"
(LIDA), arXiv 2603.10583, CVPR 2026: the lowest bit planes hide the content, and keep the noise of a
generator.

Deviations: the paper trains an encoder on such maps without labels and retrieves the nearest
images; here any network for maps learns from labels. No patches are chosen: images are small.
"""

import numpy as np

PLANES = 3
SETTINGS = {"planes": PLANES}


def low_bits(images: np.ndarray) -> np.ndarray:
    """Return the lowest 3 bits of N x H x W x 3 uint8, N x 3 x H x W float32 in [0, 1].

    >>> low_bits(np.array([[[[0, 7, 250]]]], np.uint8)).ravel().tolist()
    [0.0, 1.0, 0.2857142984867096]
    """
    most = 2**PLANES - 1
    lowest = np.moveaxis(images & np.uint8(most), -1, 1)
    return lowest.astype(np.float32) / np.float32(most)
