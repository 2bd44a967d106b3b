"""The azimuthal average of the logarithm of the spectrum.

Durall, Keuper and Keuper, "Watch your up-convolution: CNN based generative deep neural networks are
failing to reproduce spectral distributions", CVPR 2020: upsampling in generators distorts the
spectrum, and its average over all directions shows this.

The authors' code (github.com/cc-hpc-itwm/DeepFakeDetection) is followed in this: luma, logarithms
of magnitudes before the average, rings of one frequency from the lowest to the corners, 80 bins by
cubic interpolation, and all bins relative to the first.

Deviations: bins are relative by a difference of logarithms, which is the ratio of powers that the
paper names; the code divides logarithms, which has no limit where the first is near 0. The power of
rounding to 8 bits is added before the logarithm, since small drawn images have frequencies without
power. Rings are centred at frequency 0, where the code's centre is half a frequency away. The code
has 80, 300 or 722 bins by data set; here 80 serve all sizes. The code fits a support vector machine
or a logistic regression; here the classifier is chosen as for any vector.
"""

from functools import lru_cache

import numpy as np

from manifpt.baselines.spectrum import ROUNDING, luma, power_spectrum, ring_means

BINS = 80
SETTINGS = {"bins": BINS, "relative_to": "first bin"}


@lru_cache
def _interpolation(rings: int) -> np.ndarray:
    """Return weights, R - 1 x 80, that interpolate the rings from 1 on at the bins' places."""
    from scipy.interpolate import CubicSpline

    places = np.linspace(1, rings - 1, BINS)
    weights: np.ndarray = CubicSpline(np.arange(1, rings), np.eye(rings - 1))(places).T
    return weights


def azimuthal_spectrum(images: np.ndarray) -> np.ndarray:
    """Return the mean log-power of N x H x W x 3 uint8 in 80 bins of frequency, N x 80 float32.

    Bins lie evenly between 1 / side and 0.7 cycles a pixel, and are differences to the first.
    """
    logs = ring_means(np.log(power_spectrum(luma(images)) + ROUNDING), images.shape[2])
    weights = _interpolation(logs.shape[1])
    # A product an image, so that no other image changes its last bits.
    bins = (logs[:, None, 1:] @ weights)[:, 0]
    found: np.ndarray = (bins - bins[:, :1]).astype(np.float32)
    return found
