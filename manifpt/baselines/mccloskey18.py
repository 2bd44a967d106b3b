"""Shares of extreme pixels, and a histogram of chromaticity.

McCloskey and Albright, "Detecting GAN-generated imagery using color cues", arXiv 1812.08247, 2018,
and "Detecting GAN-generated imagery using saturation cues", IEEE ICIP 2019: the normalisation
inside generators leaves few saturated and under-exposed pixels, and their last layer mixes colours
otherwise than a camera does.

We found no code of the authors, and their thresholds and numbers of bins in no public summary.

Deviations: both cues are one vector, to which our classifiers are fitted; the papers have a
linear support vector machine for the one, and for the other a network of another author.
Thresholds and the number of bins are ours. Histogram values are square roots of shares, which vary
alike whatever the share. One is added to each channel, so that black has the chromaticity of grey.
"""

import numpy as np

# A value is extreme if it is at most this far from 0 or from 255.
MARGINS = (0, 1, 2, 4, 8, 16, 32)
BINS = 16
SETTINGS = {"margins": list(MARGINS), "bins": BINS}


def extreme_shares(images: np.ndarray) -> np.ndarray:
    """Return the shares of values near 0, then near 255, in each channel: N x 42.

    >>> extreme_shares(np.array([[[[0, 8, 254]]]], np.uint8)).reshape(3, 2, 7)[1, 0]
    array([0., 0., 0., 0., 1., 1., 1.])
    """
    rows = images.reshape(len(images), -1, 3)
    found = [
        part
        for channel in range(3)
        for values in (rows[..., channel], 255 - rows[..., channel])
        for part in ((values <= margin).mean(1) for margin in MARGINS)
    ]
    return np.stack(found, 1)


def chromaticity_shares(images: np.ndarray) -> np.ndarray:
    """Return the shares of the bins of r = R / (R + G + B) and g, which add up to 1: N x 136.

    Blue has a share of at least a little, so r + g < 1: of 16 x 16 bins, 136 can have a pixel.

    >>> white = np.full((1, 2, 2, 3), 255, np.uint8)
    >>> np.sort(chromaticity_shares(white)[0])[-2:].tolist()
    [0.0, 1.0]
    """
    rows = images.reshape(len(images), -1, 3).astype(np.int32) + 1
    red, green = (BINS * rows[..., k] // rows.sum(-1) for k in (0, 1))
    codes = red * BINS + green
    counts = np.stack([np.bincount(code, minlength=BINS**2) for code in codes])
    down, along = np.divmod(np.arange(BINS**2), BINS)
    shares: np.ndarray = counts[:, down + along < BINS] / codes.shape[1]
    return shares


def colour_shares(images: np.ndarray) -> np.ndarray:
    """Return both, the histogram as square roots, N x 178 float32, of N x H x W x 3 uint8."""
    parts = [extreme_shares(images), np.sqrt(chromaticity_shares(images))]
    return np.hstack(parts).astype(np.float32)
