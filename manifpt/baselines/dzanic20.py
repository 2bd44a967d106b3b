"""The decay of the spectrum at its highest frequencies.

Dzanic, Shah and Witherden, "Fourier spectrum discrepancies in deep network generated images",
NeurIPS 2020: a power law is fitted to the azimuthal average of the spectrum beyond a threshold, and
images are told apart by its parameters.

Deviations: the law is fitted by least squares to logarithms of magnitudes, with the power of
rounding to 8 bits added. The deviation of the spectrum from the law is a third parameter. The paper
has a classifier by nearest neighbours; ours is chosen as for any vector.
"""

from functools import lru_cache

import numpy as np

from manifpt.baselines.spectrum import ROUNDING, ring_power

# The fit is of frequencies from this share of the highest one along an axis, 0.5 cycles a pixel.
THRESHOLD = 0.75
SETTINGS = {"threshold": THRESHOLD}


@lru_cache
def _law(side: int) -> tuple[slice, np.ndarray]:
    """Return the K rings that are fitted, and the K x 2 terms of the law's logarithm."""
    first, last = int(np.ceil(THRESHOLD * side / 2)), side // 2
    terms = np.log(np.arange(first, last + 1) / (side / 2))
    return slice(first, last + 1), np.stack([np.ones_like(terms), terms], 1)


def spectral_decay(images: np.ndarray) -> np.ndarray:
    """Return three numbers a channel, N x 9 float32, of N x H x W x 3 uint8, H, W >= 16.

    The law is log |F|(k) = b + c log(k / k_max). They are the level b at the highest frequency, the
    exponent c, and the standard deviation of log |F| from the law.
    """
    planes = np.ascontiguousarray(np.moveaxis(images, -1, 1), np.float64)
    planes = planes.reshape(-1, *images.shape[1:3])
    rings, terms = _law(min(images.shape[1:3]))
    logs = np.log(ring_power(planes)[:, None, rings] + ROUNDING) / 2
    fitted = logs @ np.linalg.pinv(terms).T
    apart = np.sqrt(((logs - fitted @ terms.T) ** 2).mean(-1, keepdims=True))
    found: np.ndarray = np.concatenate([fitted, apart], -1).reshape(len(images), 9)
    return found.astype(np.float32)
