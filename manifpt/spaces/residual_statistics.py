"""Statistics of neighbouring pixels of N x H x W planes, as averages over all positions.

Rounded residuals and their triples are those of Fridrich and Kodovsky ("Rich models for
steganalysis of digital images", IEEE TIFS 2012), and symmetric as they have them. Sums of levels
are of integers, and exact; power is float64.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import as_strided

TRUNCATION = 2
LEVELS = 2 * TRUNCATION + 1
LAGS = 4
# The spectrum's bins are 1 / CYCLES cycles a pixel apart.
CYCLES = 20


def residual(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return where a k x l kernel fits into N x H x W int16 planes, N x H-k+1 x W-l+1 int16."""
    height, width = (n - k + 1 for n, k in zip(planes.shape[1:], kernel.shape, strict=True))
    out = np.zeros((len(planes), height, width), np.int16)
    for y, x in zip(*np.nonzero(kernel), strict=True):
        shifted = planes[:, y : y + height, x : x + width]
        out += shifted if kernel[y, x] == 1 else np.int16(kernel[y, x]) * shifted
    return out


def levels(residuals: np.ndarray, step: int) -> np.ndarray:
    """Round integers to multiples of ``step``, halves away from zero, and truncate; -2 ... 2."""
    out = np.zeros(residuals.shape, np.int8)
    for k in range(TRUNCATION):
        edge = -(-step * (2 * k + 1) // 2)
        out += (residuals >= edge).view(np.int8)
        out -= (residuals <= -edge).view(np.int8)
    return out


@lru_cache
def _orbits() -> np.ndarray:
    """Return 125 x 39 zeros and ones: triples that are equal except for sign and direction."""
    triples = np.array(list(product(range(LEVELS), repeat=3)))
    place = LEVELS ** np.arange(3)[::-1]
    other = LEVELS - 1 - triples
    alike = [t @ place for t in (triples, triples[:, ::-1], other, other[:, ::-1])]
    first = np.min(alike, axis=0)
    found: np.ndarray = (first[:, None] == np.unique(first)).astype(np.float64)
    return found


def triples(found: np.ndarray, axis: int) -> np.ndarray:
    """Return relative frequencies, N x 39, of three levels in a row of N x H x W along an axis.

    A triple, its mirror image, and both with the other sign are counted as one.
    """
    codes = (found + TRUNCATION).view(np.uint8)
    length = codes.shape[axis] - 2
    codes = np.moveaxis(codes, axis, 0)
    base = np.uint8(LEVELS)
    code = (codes[:length] * base + codes[1:-1]) * base + codes[2:]
    code = np.moveaxis(code, 0, axis).reshape(len(found), -1)
    bins = LEVELS**3
    shifted = code + bins * np.arange(len(found))[:, None]
    counts = np.bincount(shifted.ravel(), minlength=bins * len(found)).reshape(-1, bins)
    shares: np.ndarray = counts.astype(np.float64) @ _orbits() / code.shape[1]
    return shares


def lagged_sums(found: np.ndarray) -> np.ndarray:
    """Return sums of l[y, x] l[y + a, x + b] for N x H x W levels, N x 5 x 9.

    a = 0 ... 4, b = -4 ... 4. A matrix product combines strips of some columns with all rows and
    columns near them, and sums run along the diagonals of the product.
    """
    number, height, width = found.shape
    strip = 32 if width <= 64 else 16
    strips = -(-width // strip)
    near = strip + 2 * LAGS
    padded = np.zeros((number, height + LAGS, strips * strip + 2 * LAGS), np.float32)
    padded[:, :height, LAGS : LAGS + width] = found
    image, row, column = padded.strides
    left = as_strided(
        padded[:, :, LAGS:],
        (number, strips, 1, strip, height),
        (image, strip * column, 0, column, row),
    )
    right = as_strided(
        padded, (number, strips, LAGS + 1, height, near), (image, strip * column, row, row, column)
    )
    products = (left @ right).sum(1, dtype=np.float64)
    image, down, row, column = products.strides
    diagonals = as_strided(
        products, (number, LAGS + 1, 2 * LAGS + 1, strip), (image, down, column, row + column)
    )
    sums: np.ndarray = diagonals.sum(-1)
    return sums


def covariances(found: np.ndarray) -> np.ndarray:
    """Return mean products of levels, N x H x W, at 41 lags of a half-plane, lag 0 first: N x 41.

    A lag that an image is too small for has 0.
    """
    _, height, width = found.shape
    down, along = np.mgrid[: LAGS + 1, -LAGS : LAGS + 1]
    pairs = np.maximum(height - down, 0) * np.maximum(width - abs(along), 0)
    means = (lagged_sums(found) / np.maximum(pairs, 1)).reshape(len(found), -1)
    half: np.ndarray = means[:, LAGS:]
    return half


@lru_cache
def _bins(length: int) -> np.ndarray:
    """Return 20 x length weights of the frequencies of a transform near k / 20 cycles."""
    apart = np.arange(CYCLES)[:, None] - np.fft.fftfreq(length) * CYCLES
    apart = abs((apart + CYCLES / 2) % CYCLES - CYCLES / 2)
    weights = np.maximum(1 - apart, 0)
    bins: np.ndarray = weights / weights.sum(1, keepdims=True)
    return bins


@lru_cache
def _half_plane() -> np.ndarray:
    """Return the 202 of 20 x 11 bins that are not another's negative frequency."""
    middle = CYCLES // 2
    kept = np.ones((CYCLES, middle + 1), bool)
    kept[middle + 1 :, [0, middle]] = False
    return kept


def power_by_frequency(planes: np.ndarray) -> np.ndarray:
    """Return power a pixel in 202 bins of frequency, without the mean: N x 202."""
    planes = planes - planes.mean((1, 2), keepdims=True)
    # An image of few pixels has too few frequencies: zeros around it interpolate between them.
    sides = [max(n, CYCLES) for n in planes.shape[1:]]
    spectrum = np.abs(np.fft.fft2(planes, sides)) ** 2 / planes[0].size
    rows, columns = (_bins(n) for n in sides)
    binned: np.ndarray = (rows @ spectrum @ columns[: CYCLES // 2 + 1].T)[:, _half_plane()]
    return binned
