"""The azimuthal average of the power spectrum.

Durall, Keuper and Keuper, "Watch your up-convolution: CNN based generative deep neural networks are
failing to reproduce spectral distributions", CVPR 2020: upsampling in generators distorts the
spectrum, and its average over all directions shows this.

Deviations: the mean of the image is taken out, where the paper divides by the power of the zero
frequency; in logarithms that adds the same number to all bins. The power of rounding to 8 bits is
added before the logarithm. The paper's number of bins follows from the image size; here 64 bins are
interpolated for any size, up to the corners of the spectrum. Classifiers are ours to choose.
"""

from functools import lru_cache

import numpy as np

from manifpt.baselines.spectrum import ROUNDING, ring_power

BINS = 64
SETTINGS = {"bins": BINS}


@lru_cache
def _interpolation(rings: int, side: int) -> np.ndarray:
    """Return weights, R - 1 x 64, that interpolate rings from 1 on at the bins' frequencies."""
    bins = np.linspace(0, np.sqrt(0.5), BINS)
    centres = np.arange(1, rings) / side
    return np.stack([np.interp(bins, centres, one) for one in np.eye(rings - 1)])


def azimuthal_spectrum(images: np.ndarray) -> np.ndarray:
    """Return the log-power of grey N x H x W x 3 uint8 images at 64 frequencies, N x 64 float32.

    Bin k is at k / 63 of 0.7 cycles a pixel. Values are of pixels from 0 to 255.
    """
    power = np.log(ring_power(images.mean(-1)) + ROUNDING)
    weights = _interpolation(power.shape[1], min(images.shape[1:3]))
    # A product an image, so that no other image changes its last bits.
    found: np.ndarray = (power[:, None, 1:] @ weights)[:, 0].astype(np.float32)
    return found
