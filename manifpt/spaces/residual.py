"""RESIDUAL: statistics of neighbouring pixels, the same number of them for images of any size.

High-pass filters take the content out of an image; what is left over is rounded to five levels, and
described by how often triples of levels lie side by side (Fridrich and Kodovsky, "Rich models for
steganalysis of digital images", IEEE TIFS 2012; Pevny, Bas and Fridrich, "Steganalysis by
subtractive pixel adjacency matrix", IEEE TIFS 2010) and by autocorrelations. The power spectrum,
low bits and extreme values are added. Colour is seen in green, and in red and blue minus green.

Sums are of integers, and exact; the rest is float64 until the last rounding, each image by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from manifpt.errors import ManifptError

SMALLEST = 8
# Images of a step have about so many pixels together: its arrays stay in a core's cache.
STEP_PIXELS = 2**16
TRUNCATION = 2
LEVELS = 2 * TRUNCATION + 1
LAGS = 4
# The spectrum's bins are 1 / CYCLES cycles a pixel apart.
CYCLES = 20
LOW_BITS = 4
EXTREMES = 8
LEAST = 1e-3
# The variance of rounding to integers: where there is no more power, the logarithm says little.
ROUNDING = 1 / 12
# Of equal weight in distances: among real images, triples, correlations and spectrum vary alike.
LOG_SCALE, CORRELATION_SCALE, SPECTRUM_SCALE = 0.25, 0.5, 0.1

_DIFFERENCE = np.array([[-1, 1]])
_SECOND = np.array([[1, -2, 1]])
_SQUARE_3 = np.array([[-1, 2, -1], [2, -4, 2], [-1, 2, -1]])
_SQUARE_5 = np.array(
    [
        [-1, 2, -2, 2, -1],
        [2, -6, 8, -6, 2],
        [-2, 8, -12, 8, -2],
        [2, -6, 8, -6, 2],
        [-1, 2, -2, 2, -1],
    ]
)
# Filters of Fridrich and Kodovsky. Residuals are divided by the largest of a filter's numbers.
FILTERS = {
    "horizontal": _DIFFERENCE,
    "vertical": _DIFFERENCE.T,
    "diagonal": np.array([[-1, 0], [0, 1]]),
    "antidiagonal": np.array([[0, -1], [1, 0]]),
    "second-horizontal": _SECOND,
    "second-vertical": _SECOND.T,
    "square-3": _SQUARE_3,
    "square-5": _SQUARE_5,
}
FIRST = ("horizontal", "vertical", "diagonal", "square-3")


class Plan(NamedTuple):
    """Filters of triples, and rounding steps (of 255) of triples and of autocorrelations.

    Autocorrelations are of all filters.
    """

    filters: tuple[str, ...]
    steps: tuple[int, ...]
    correlated: tuple[int, ...]


LIGHT = Plan(tuple(FILTERS), (4, 16), (1, 4, 16))
COLOUR = Plan(FIRST, (4,), (1, 4))


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
    """Return 125 x 39 zeros and ones: which triples are one but for sign and direction."""
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

    a = 0 ... 4, b = -4 ... 4. Strips of some columns meet all rows and columns near them in one
    matrix product, and sums run along the diagonals of what comes out.
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
    """Return 20 x length weights: which frequencies of a transform are near k / 20 cycles."""
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


def power(planes: np.ndarray) -> np.ndarray:
    """Return power a pixel in 202 bins of frequency, without the mean: N x 202."""
    planes = planes - planes.mean((1, 2), keepdims=True)
    # An image of few pixels has too few frequencies: zeros around it interpolate between them.
    sides = [max(n, CYCLES) for n in planes.shape[1:]]
    spectrum = np.abs(np.fft.fft2(planes, sides)) ** 2 / planes[0].size
    rows, columns = (_bins(n) for n in sides)
    binned: np.ndarray = (rows @ spectrum @ columns[: CYCLES // 2 + 1].T)[:, _half_plane()]
    return binned


def _values(planes: np.ndarray) -> np.ndarray:
    """Return square roots of the shares of 16 low nibbles and of 16 extreme values, N x 32."""
    counted = np.stack([np.bincount(p.ravel(), minlength=256) for p in planes])
    low = counted.reshape(len(planes), -1, 2**LOW_BITS).sum(1)
    shares = np.hstack([low, counted[:, :EXTREMES], counted[:, -EXTREMES:]]) / planes[0].size
    roots: np.ndarray = np.sqrt(shares)
    return roots


def _averages(planes: np.ndarray, plan: Plan) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the statistics of N x H x W int16 planes that are averages, N x k, with their kind."""
    for name, kernel in FILTERS.items():
        residuals = residual(planes, kernel)
        size = int(abs(kernel).max())
        for step in sorted({*plan.steps, *plan.correlated}):
            found = levels(residuals, size * step)
            if step in plan.steps and name in plan.filters:
                for axis in (1, 2):
                    yield "triples", triples(found, axis)
            if step in plan.correlated:
                yield "covariances", covariances(found)
    yield "power", power(planes)


def _scaled(kind: str, averages: np.ndarray) -> np.ndarray:
    """Return square roots of frequencies, correlations and log-variance, or log-power."""
    if kind == "triples":
        roots: np.ndarray = np.sqrt(averages)
        return roots
    if kind == "power":
        logs: np.ndarray = np.log(averages + ROUNDING) * SPECTRUM_SCALE
        return logs
    variance = averages[:, :1] + LEAST
    return np.hstack([np.log(variance) * LOG_SCALE, averages[:, 1:] / variance * CORRELATION_SCALE])


def _light(planes: np.ndarray) -> np.ndarray:
    parts = [_scaled(kind, averages) for kind, averages in _averages(planes, LIGHT)]
    return np.hstack([*parts, _values(planes)]).astype(np.float32)


def _colour(red: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Return statistics of two differences of colours: averages over both."""
    both = zip(_averages(red, COLOUR), _averages(blue, COLOUR), strict=True)
    return np.hstack([_scaled(kind, (one + other) / 2) for (kind, one), (_, other) in both]).astype(
        np.float32
    )


def statistics(images: np.ndarray) -> np.ndarray:
    """Return the statistics, N x DIMENSION float32, of N x H x W x 3 uint8 images, H, W >= 8."""
    planes = np.moveaxis(images, -1, 0).astype(np.int16)
    green = planes[1]
    red, blue = planes[0] - green, planes[2] - green
    # Grey images have the colour of a black one.
    coloured = (red.any((1, 2))) | (blue.any((1, 2)))
    black = np.zeros((1, *green.shape[1:]), np.int16)
    colour = np.repeat(_colour(black, black), len(images), 0)
    if coloured.any():
        colour[coloured] = _colour(red[coloured], blue[coloured])
    return np.hstack([_light(green), colour])


@lru_cache
def dimension() -> int:
    """Return how many statistics there are."""
    black = np.zeros((1, SMALLEST, SMALLEST, 3), np.uint8)
    found: int = statistics(black).shape[1]
    return found


@dataclass(frozen=True)
class Residual:
    """Statistics of residuals, spectrum and values, d float32; of images of any size from 8 pixels.

    ``size`` is that of the images that jobs give it.
    """

    size: int
    name: str = "residual"

    tolerance = 0.0

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise ManifptError(
                f"--image-size {self.size}: residual needs {SMALLEST} pixels at least; "
                "name a larger size"
            )

    @property
    def shape(self) -> tuple[int]:
        """The shape of one vector."""
        return (dimension(),)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Map N x H x W x 3 uint8 images to N x d float32."""
        step = max(1, STEP_PIXELS // (images.shape[1] * images.shape[2]))
        out = np.empty((len(images), *self.shape), np.float32)
        for start in range(0, len(images), step):
            out[start : start + step] = statistics(images[start : start + step])
        return out

    def card(self) -> dict[str, Any]:
        """Return what makes the space: its name and settings."""
        return {
            "name": self.name,
            "size": self.size,
            "filters": {name: kernel.tolist() for name, kernel in FILTERS.items()},
            "light": {key: list(value) for key, value in LIGHT._asdict().items()},
            "colour": {key: list(value) for key, value in COLOUR._asdict().items()},
            "truncation": TRUNCATION,
            "lags": LAGS,
            "cycles": CYCLES,
            "low_bits": LOW_BITS,
            "extremes": EXTREMES,
            "scales": [LOG_SCALE, CORRELATION_SCALE, SPECTRUM_SCALE],
        }
