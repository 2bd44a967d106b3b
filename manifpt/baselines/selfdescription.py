"""How the pixels of an image predict each other: the coefficients of a linear predictor.

Nguyen, Azizpour and Stamm, "Forensic self-descriptions are all you need for zero-shot detection,
open-set source attribution, and clustering of AI-generated images", CVPR 2025: filters that were
learned from reals take the content away, and the parameters of a model of the rest, at several
scales, describe the image.

The authors' code (github.com/ductai199x/Forensic-Self-Descriptions-CVPR25) is followed in this:
luma, a filter whose prediction of a pixel has weights of sum 1, three scales by bilinear halving of
residuals, and one least-squares predictor of a residual by its neighbours for all scales, whose
coefficients add up to 1.

Deviations: the code has 8 learned filters of 15 x 15 pixels and squares of 11 x 11, 960
coefficients, of residuals enlarged to 1024 pixels. Here a fixed filter of 3 x 3 pixels stands for
the learned ones, since a space has no training, and squares have 7 x 7, since a picture of 28
pixels has 900 residuals in all; nothing is enlarged. A ridge that is relative to the variance keeps
coefficients finite where an image is flat. The code scores images by mixtures of Gaussians, one a
source, after a learned map; here the classifier is chosen as for any vector.
"""

import numpy as np

from manifpt.baselines.spectrum import ROUNDING, luma

# Residuals are halved this often; neighbours lie within this radius.
HALVINGS, RADIUS = 2, 3
# Relative to the variance of residuals.
RIDGE = 1e-3
SETTINGS = {"halvings": HALVINGS, "radius": RADIUS, "ridge": RIDGE, "channel": "luma"}
# The 48 places around a pixel.
_NEAR = range(-RADIUS, RADIUS + 1)
NEIGHBOURS = tuple((down, along) for down in _NEAR for along in _NEAR if (down, along) != (0, 0))


def prediction_errors(planes: np.ndarray) -> np.ndarray:
    """Return second differences along rows of those along columns, over 4: N x H - 2 x W - 2.

    That is a pixel less a prediction of it by its 8 neighbours, whose weights add up to 1.
    """
    for axis in (1, 2):
        planes = np.moveaxis(planes, axis, 0)
        planes = np.moveaxis(planes[1:-1] - (planes[:-2] + planes[2:]) / 2, 0, axis)
    return planes


def reduced(planes: np.ndarray, scale: int) -> np.ndarray:
    """Return N x H // scale x W // scale, by bilinear interpolation without a filter before it.

    The value of a square is the mean of the 2 x 2 in its middle; ``scale`` is 1 or even.
    """
    if scale == 1:
        return planes
    for axis in (1, 2):
        size = planes.shape[axis] // scale * scale
        planes = np.moveaxis(planes, axis, 0)[:size]
        first = scale // 2 - 1
        planes = np.moveaxis((planes[first::scale] + planes[first + 1 :: scale]) / 2, 0, axis)
    return planes


def _equations(residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the neighbours of all residuals, N x 48 x P, and the residuals, N x P x 1.

    Borders are reflected; a plane of fewer pixels than the radius is repeated.
    """
    number, height, width = residuals.shape
    pad = np.pad(residuals, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS)), mode="reflect")
    moved = [
        pad[:, RADIUS + a : RADIUS + a + height, RADIUS + b : RADIUS + b + width]
        for a, b in NEIGHBOURS
    ]
    return np.stack(moved, 1).reshape(number, len(moved), -1), residuals.reshape(number, -1, 1)


def predictor(scales: list[np.ndarray]) -> np.ndarray:
    """Return the coefficients of a residual's neighbours, N x 48, for N x H x W at each scale.

    They add up to 1, and minimise the squared error over all scales, with a ridge.
    """
    size, number = len(NEIGHBOURS), len(scales[0])
    left, right = np.zeros((number, size, size)), np.zeros((number, size, 1))
    for residuals in scales:
        terms, centres = _equations(residuals)
        left += terms @ terms.transpose(0, 2, 1)
        right += terms @ centres
    count = sum(residuals[0].size for residuals in scales)
    left, right = left / count, right / count
    variances = np.einsum("nkk->nk", left)
    variances += RIDGE * (variances.mean(1, keepdims=True) + ROUNDING)
    # With the multiplier of the sum: the least squares under one linear condition.
    system = np.ones((number, size + 1, size + 1))
    system[:, :size, :size], system[:, size, size] = left, 0
    target = np.concatenate([right, np.ones((number, 1, 1))], 1)
    found: np.ndarray = np.linalg.solve(system, target)[:, :size, 0]
    return found


def self_description(images: np.ndarray) -> np.ndarray:
    """Return the coefficients, N x 48 float32, of N x H x W x 3 uint8, H, W >= 16."""
    residuals = prediction_errors(luma(images))
    scales = [reduced(residuals, 2**halvings) for halvings in range(HALVINGS + 1)]
    return predictor(scales).astype(np.float32)
