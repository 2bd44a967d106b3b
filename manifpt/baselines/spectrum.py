"""The power of images in rings of frequency, which several methods use."""

from functools import lru_cache

import numpy as np

# The variance of rounding to integers: where there is no more power, the logarithm says little.
ROUNDING = 1 / 12


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


def ring_power(planes: np.ndarray) -> np.ndarray:
    """Return the mean power a pixel in rings of frequency of N x H x W planes, N x R float64.

    Ring k has frequencies of about k / min(H, W) cycles a pixel, and the last the corners of the
    spectrum, at 0.7 cycles. The mean of a plane is taken out: ring 0 has no power.
    """
    planes = planes - planes.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.rfft2(planes)) ** 2 / planes[0].size
    rings, shares = _rings(*planes.shape[1:])
    weighted = power.reshape(len(planes), -1) * shares
    return np.stack([np.bincount(rings, row) for row in weighted])
