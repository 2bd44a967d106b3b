"""The lowest bits of pixels, as maps for a network.

Wang, Cheng, Han and Gui, "Attribution as retrieval: model-agnostic AI-generated image attribution"
(LIDA), arXiv 2603.10583, CVPR 2026: the lowest bit planes hide the content, and keep the noise of a
generator.

Deviations from the authors' code (github.com/hongsong-wang/LIDA): bits are divided by 7 to lie in
[0, 1], where the code stretches them to 0 to 252 and normalises as for ImageNet; a network
normalises each channel by its training images, so that no constant factor matters. Maps keep their
size, where the code resizes them to 256 pixels, which takes means of bits. The code retrieves the
images whose features, of a ResNet-50 without its pooling that was trained without labels, are
nearest by cosine; here any network for maps learns from labels. The code's patch of 32 pixels with
the largest gradients is not chosen: images of 28 pixels are smaller.
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
