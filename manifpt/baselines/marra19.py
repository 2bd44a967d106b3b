"""The noise residual of an image, to be correlated with the mean residual of each generator.

Marra, Gragnaniello, Verdoliva and Poggi, "Do GANs leave artificial fingerprints?", IEEE MIPR 2019:
as with sensors, the mean of the residuals of many images is a generator's fingerprint, and an image
is attributed by correlation. ``--vectors correlation`` is that classifier.

Residuals are averaged at their own strength, and only the correlation brings them to mean 0 and
variance 1, as in the paper. We found no code of the authors.

Deviations: the paper's denoiser is a collaborative filter in a transform's domain. Here it is a
local Wiener filter (Lee, "Digital image enhancement and noise filtering by use of local
statistics", IEEE TPAMI 1980), which keeps what varies more than noise of a fixed strength; it is
fast and needs no library. Cameras' fingerprints are often cleaned further, of their means by row
and column and of peaks of their spectrum (github.com/RUB-SysSec/GANDCTAnalysis does so for GANs);
here they are not, since such patterns are what a generator's upsampling leaves.
"""

import numpy as np

# Half the side of the filter's window, and the standard deviation of noise, of 255.
RADIUS = 2
NOISE = 3.0
SETTINGS = {"radius": RADIUS, "noise": NOISE, "scaled": False}


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
    """Return the residual of N x H x W x 3 uint8, N x 3 H W float32, of pixels from 0 to 255.

    Channels follow each other. That of a constant image is 0.
    """
    planes = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])
    return wiener_residual(planes).reshape(len(images), -1).astype(np.float32)
