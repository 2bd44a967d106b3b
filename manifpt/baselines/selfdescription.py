"""Coefficients and errors of linear predictors of an image's pixels from each other.

Nguyen, Azizpour and Stamm, "Forensic self-descriptions are all you need for zero-shot detection,
open-set source attribution, and clustering of AI-generated images", CVPR 2025: filters that were
learned from reals take the content away, and the parameters of a model of the rest, at several
scales, describe the image.

Deviations: this is a simplification, which needs no training. One fixed high-pass filter stands for
the learned ones. The model of its residuals are predictors of a pixel from its neighbours, fitted
to each image in closed form. A neighbour and the one opposite have one coefficient.
"""

from functools import lru_cache

import numpy as np

from manifpt.baselines.spectrum import ROUNDING

# Images are averaged over squares of these sides, in pixels; neighbours lie within these radii.
SCALES = (1, 2)
RADII = (1, 2)
# Relative to a predictor's variances; keeps coefficients finite where an image is flat.
RIDGE = 1e-3
SETTINGS = {"scales": list(SCALES), "radii": list(RADII), "ridge": RIDGE}


@lru_cache
def neighbours(radius: int) -> tuple[tuple[int, int], ...]:
    """Return the half of a square's places that are not opposite to another.

    >>> neighbours(1)
    ((0, 1), (1, -1), (1, 0), (1, 1))
    """
    near = range(-radius, radius + 1)
    return tuple((a, b) for a in near for b in near if (a, b) > (0, 0))


def _reduced(planes: np.ndarray, scale: int) -> np.ndarray:
    """Return means over squares, N x H // scale x W // scale."""
    height, width = (side // scale for side in planes.shape[1:])
    whole = planes[:, : height * scale, : width * scale]
    found: np.ndarray = whole.reshape(len(planes), height, scale, width, scale).mean((2, 4))
    return found


def _second_differences(planes: np.ndarray) -> np.ndarray:
    """Return second differences along rows of those along columns, over 4: N x H - 2 x W - 2."""
    for axis in (1, 2):
        planes = np.moveaxis(planes, axis, 0)
        planes = np.moveaxis(planes[1:-1] - (planes[:-2] + planes[2:]) / 2, 0, axis)
    return planes


def predictors(residuals: np.ndarray, radius: int) -> np.ndarray:
    """Return coefficients and log of the mean squared error, N x K + 1, of N x H x W residuals.

    They minimise the squared error of predicting a residual by the means of opposite neighbours,
    with a ridge. Borders are reflected.
    """
    number, height, width = residuals.shape
    pad = np.pad(residuals, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")

    def moved(down: int, along: int) -> np.ndarray:
        top, left = radius + down, radius + along
        return pad[:, top : top + height, left : left + width].reshape(number, -1)

    means = [(moved(a, b) + moved(-a, -b)) / 2 for a, b in neighbours(radius)]
    terms, wanted = np.stack(means, 1), residuals.reshape(number, -1, 1)
    products = terms @ terms.transpose(0, 2, 1) / (height * width)
    diagonal = np.einsum("nkk->nk", products)
    diagonal += RIDGE * (diagonal.mean(1, keepdims=True) + ROUNDING)
    found = np.linalg.solve(products, terms @ wanted / (height * width))[..., 0]
    errors = wanted[..., 0] - (found[:, None] @ terms)[:, 0]
    return np.hstack([found, np.log((errors**2).mean(1, keepdims=True) + ROUNDING)])


def self_description(images: np.ndarray) -> np.ndarray:
    """Return the description, N x 114 float32, of N x H x W x 3 uint8, H, W >= 16.

    For green, and red and blue minus green, at each scale: the log of the residuals' power, and
    then for each radius coefficients and the log of the error. Pixels are from 0 to 255.
    """
    red, green, blue = np.moveaxis(images, -1, 0).astype(np.float64)
    parts = []
    for plane in (green, red - green, blue - green):
        for scale in SCALES:
            residuals = _second_differences(_reduced(plane, scale))
            power = (residuals.reshape(len(images), -1) ** 2).mean(1, keepdims=True)
            parts.append(np.log(power + ROUNDING))
            parts += [predictors(residuals, radius) for radius in RADII]
    return np.hstack(parts).astype(np.float32)
