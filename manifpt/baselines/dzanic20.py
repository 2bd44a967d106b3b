"""The decay of the spectrum at its highest frequencies.

Dzanic, Shah and Witherden, "Fourier spectrum discrepancies in deep network generated images",
NeurIPS 2020: a power law is fitted to the azimuthal average of the spectrum beyond a threshold, and
images are told apart by its parameters.

The authors' code (github.com/tarikdzanic/FourierSpectrumDiscrepancies) is followed in this: luma,
means of magnitudes in rings, frequencies relative to those of the corners, a law through the first
ring, and three numbers: its exponent, and the levels of the first and the last ring. The code's
classifier is nearest neighbours, 5 of standardised vectors: ``--vectors knn``.

Deviations: the exponent is fitted by least squares to logarithms, which has a closed form, and
levels are logarithms, too. The code fits the law from 0.85 of the highest frequency on in 200 bins,
smoothed over 5; images of 28 pixels have 20 rings in all, so here it is from 0.75 on, the code's
other threshold, in rings of one frequency. The power of rounding to 8 bits is added to magnitudes,
since flat images have none.
"""

from functools import lru_cache

import numpy as np

from manifpt.baselines.spectrum import ROUNDING, luma, power_spectrum, ring_means

# The law is fitted from this share of the highest frequency on, which is that of the corners.
THRESHOLD = 0.75
SETTINGS = {"threshold": THRESHOLD, "of": "corners"}


@lru_cache
def _law(side: int, rings: int) -> tuple[int, np.ndarray]:
    """Return the first ring of the fit, and weights of the K rings' logs that give the exponent."""
    first = int(np.ceil(THRESHOLD * side * np.sqrt(0.5)))
    terms = np.log(np.arange(first, rings) / first)
    return first, terms / (terms**2).sum()


def spectral_decay(images: np.ndarray) -> np.ndarray:
    """Return three numbers, N x 3 float32, of N x H x W x 3 uint8, H, W >= 16.

    The law is |F|(k) = |F|(k_first) (k / k_first)^c. They are the exponent c, and the logarithms of
    the first and the last level |F|, each of pixels from 0 to 255.
    """
    magnitudes = ring_means(np.sqrt(power_spectrum(luma(images))), images.shape[2])
    first, weights = _law(min(images.shape[1:3]), magnitudes.shape[1])
    logs = np.log(magnitudes[:, first:] ** 2 + ROUNDING) / 2
    exponents = ((logs - logs[:, :1]) * weights).sum(1)
    return np.stack([exponents, logs[:, 0], logs[:, -1]], 1).astype(np.float32)
