"""Co-occurrence matrices of the values of neighbouring pixels, as maps for a network.

Nataraj, Mohammed, Manjunath, Chandrasekaran, Flenner, Bappy and Roy-Chowdhury, "Detecting GAN
generated fake images using co-occurrence matrices", IS&T Electronic Imaging 2019: one matrix a
channel, of pixels side by side.

We found no code of the authors.

Deviations: the paper has 256 levels; here values are divided by 4 and there are 64, since networks
on CPUs take 16 times as long for maps of 256 x 256, and an image of 28 pixels has 756 pairs. Maps
are square roots of shares instead of counts, so that the size of the image does not matter. The
paper has a network of six convolutions and two dense layers; here it is chosen as for any maps.
"""

import numpy as np

LEVELS = 64
SETTINGS = {"levels": LEVELS}


def cooccurrences(images: np.ndarray) -> np.ndarray:
    """Return N x 3 x L x L float32 of N x H x W x 3 uint8: rows are left pixels, columns right.

    A value is the square root of a pair's share, relative to that of pairs that are all as likely.

    >>> two = np.array([[[[0, 0, 0], [255, 0, 8]]]], np.uint8)
    >>> np.argwhere(cooccurrences(two)[0]).tolist(), float(cooccurrences(two).max())
    ([[0, 0, 63], [1, 0, 0], [2, 0, 2]], 64.0)
    """
    values = np.moveaxis(images, -1, 1) // (256 // LEVELS)
    codes = values[..., :-1].astype(np.int32) * LEVELS + values[..., 1:]
    codes = codes.reshape(3 * len(images), -1)
    counts = np.stack([np.bincount(code, minlength=LEVELS**2) for code in codes])
    roots = (np.sqrt(counts / codes.shape[1]) * LEVELS).astype(np.float32)
    maps: np.ndarray = roots.reshape(-1, 3, LEVELS, LEVELS)
    return maps
