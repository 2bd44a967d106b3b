"""The noise residual of an image, to be correlated with the mean residual of each generator.

Marra, Gragnaniello, Verdoliva and Poggi, "Do GANs leave artificial fingerprints?", IEEE MIPR 2019:
as with sensors, the mean of the residuals of many images is a generator's fingerprint, and an image
is attributed by correlation. ``--vectors correlation`` is that classifier.

Deviations: the paper's denoiser is a collaborative filter in a transform's domain. Here it is a
local Wiener filter (Lee, "Digital image enhancement and noise filtering by use of local
statistics", IEEE TPAMI 1980), which keeps variations above the variance of noise of a fixed
strength; it is fast and needs no library. Residuals are scaled to variance 1, by which correlations
stay the same.
"""

import numpy as np

# Half the side of the filter's window, and the standard deviation of noise, of 255.
RADIUS = 2
NOISE = 3.0
LEAST = 1e-9  # of a standard deviation
SETTINGS = {"radius": RADIUS, "noise": NOISE}


def _window_sums(planes: np.ndarray) -> np.ndarray:
    """Return sums of int64 planes, N x H x W, over windows; borders are reflected."""
    for axis in (1, 2):
        size = planes.shape[axis]
        widths = [(RADIUS, RADIUS) if k == axis else (0, 0) for k in range(3)]
        padded = np.moveaxis(np.pad(planes, widths, mode="reflect"), axis, 0)
        total = sum(padded[k : k + size] for k in range(2 * RADIUS + 1))
        planes = np.moveaxis(np.asarray(total), 0, axis)
    return planes


def wiener_residual(planes: np.ndarray) -> np.ndarray:
    """Return N x H x W integer planes less the filtered planes, N x H x W float64.

    It is the share NOISE^2 / local variance, at most 1, of the difference to the local mean.
    """
    values = planes.astype(np.int64)
    pixels = (2 * RADIUS + 1) ** 2
    sums, squares = _window_sums(values), _window_sums(values**2)
    variance = (pixels * squares - sums**2) / pixels**2  # from integers: exactly 0 at flat places
    share = NOISE**2 / np.maximum(variance, NOISE**2)
    residual: np.ndarray = (values - sums / pixels) * share
    return residual


def noise_residual(images: np.ndarray) -> np.ndarray:
    """Return the residual of N x H x W x 3 uint8, N x 3 H W float32, of mean 0 and variance 1.

    Channels follow each other. That of a constant image is 0.
    """
    planes = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])
    rows = wiener_residual(planes).reshape(len(images), -1)
    rows = rows - rows.mean(1, keepdims=True)
    found: np.ndarray = rows / np.maximum(rows.std(1, keepdims=True), LEAST)
    return found.astype(np.float32)
