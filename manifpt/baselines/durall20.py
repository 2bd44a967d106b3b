"""The azimuthal average of the logarithm of the spectrum.

Durall, Keuper and Keuper, "Watch your up-convolution: CNN based generative deep neural networks are
failing to reproduce spectral distributions", CVPR 2020: upsampling in generators distorts the
spectrum, and its average over all directions shows this.

The authors' code (github.com/cc-hpc-itwm/DeepFakeDetection) is followed in this: luma, logarithms
of magnitudes before the average, rings of one frequency from the lowest to the corners, and 80 bins
by cubic interpolation.

Deviations: bins are not divided by the first, as the code does for CelebA and not for Faces-HQ:
logarithms of small images come near 0, where the ratio has no limit. The power of rounding to 8
bits is added before the logarithm, since small drawn images have frequencies without power. Rings
are centred at frequency 0, where the code's centre is half a frequency away. The code has 80, 300
or 722 bins by data set; here 80 serve all sizes. The code fits a support vector machine or a
logistic regression; here the classifier is chosen as for any vector.
"""

from functools import lru_cache

import numpy as np

from manifpt.baselines.spectrum import ROUNDING, luma, power_spectrum, ring_means

BINS = 80
SETTINGS = {"bins": BINS, "mean_of": "logarithms"}


@lru_cache
def _interpolation(rings: int) -> np.ndarray:
    """Return weights, R - 1 x 80, that interpolate the rings from 1 on at the bins' places."""
    from scipy.interpolate import CubicSpline

    places = np.linspace(1, rings - 1, BINS)
    weights: np.ndarray = CubicSpline(np.arange(1, rings), np.eye(rings - 1))(places).T
    return weights


def azimuthal_spectrum(images: np.ndarray) -> np.ndarray:
    """Return the mean log-power of N x H x W x 3 uint8 in 80 bins of frequency, N x 80 float32.

    Bins lie evenly between 1 / side and 0.7 cycles a pixel. Values are of pixels from 0 to 255.
    """
    logs = ring_means(np.log(power_spectrum(luma(images)) + ROUNDING), images.shape[2])
    weights = _interpolation(logs.shape[1])
    # A product an image, so that no other image changes its last bits.
    found: np.ndarray = (logs[:, None, 1:] @ weights)[:, 0].astype(np.float32)
    return found
