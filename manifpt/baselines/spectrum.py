"""The spectrum of grey images, and its means in rings of frequency, for several methods."""

from functools import lru_cache

import numpy as np

# The variance of rounding to integers: where there is no more power, the logarithm says little.
ROUNDING = 1 / 12
# Recommendation ITU-R BT.601, in thousandths, as cv2.imread and rgb2gray have it.
LUMA = (299, 587, 114)


def luma(images: np.ndarray) -> np.ndarray:
    """Return the grey values of N x H x W x 3 uint8, N x H x W float64, rounded to integers.

    >>> luma(np.array([[[[255, 0, 0], [7, 7, 7]]]], np.uint8)).tolist()
    [[[76.0, 7.0]]]
    """
    weighted = sum(images[..., k].astype(np.int64) * weight for k, weight in enumerate(LUMA))
    found: np.ndarray = np.rint(np.asarray(weighted) / 1000)
    return found


@lru_cache
def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each frequency of a real transform its ring, and its share of the ring's mean."""
    columns = np.fft.rfftfreq(width)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], columns) * min(height, width)
    rings = np.rint(radius).astype(np.int64)
    # Frequencies that the real transform leaves out have the power of those opposite.
    times = np.broadcast_to(np.where((columns == 0) | (columns == 0.5), 1.0, 2.0), rings.shape)
    counts = np.bincount(rings.ravel(), times.ravel())
    return rings.ravel(), (times / counts[rings]).ravel()


def power_spectrum(planes: np.ndarray) -> np.ndarray:
    """Return the power a pixel of N x H x W planes less their mean, N x H x W // 2 + 1 float64."""
    planes = planes - planes.mean((1, 2), keepdims=True)
    found: np.ndarray = np.abs(np.fft.rfft2(planes)) ** 2 / planes[0].size
    return found


def ring_means(spectra: np.ndarray, width: int) -> np.ndarray:
    """Return the means in rings of N x H x width // 2 + 1 functions of ``power_spectrum``, N x R.

    Ring k has frequencies of about k / min(H, W) cycles a pixel, and the last the corners of the
    spectrum, at 0.7 cycles.
    """
    rings, shares = _rings(spectra.shape[1], width)
    weighted = spectra.reshape(len(spectra), -1) * shares
    return np.stack([np.bincount(rings, row) for row in weighted])
