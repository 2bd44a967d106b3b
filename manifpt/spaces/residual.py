"""RESIDUAL: statistics of neighbouring pixels, the same number of them for images of any size.

High-pass filters remove the content of an image; the residual is rounded to five levels, and
described by the frequencies of triples of adjacent levels (Fridrich and Kodovsky, "Rich models for
steganalysis of digital images", IEEE TIFS 2012; Pevny, Bas and Fridrich, "Steganalysis by
subtractive pixel adjacency matrix", IEEE TIFS 2010) and by autocorrelations. The power spectrum,
low bits and extreme values are added. Colours are represented by green, and red and blue minus
green.

Sums are of integers, and exact; the rest is float64 until the last rounding, each image by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from manifpt.errors import ManifptError
from manifpt.outputs.formats import SpaceCard
from manifpt.spaces.residual_statistics import (
    CYCLES,
    LAGS,
    TRUNCATION,
    covariances,
    levels,
    power_by_frequency,
    residual,
    triples,
)

SMALLEST = 8
# Pixels of the images of one step, about: its arrays stay in a core's cache.
STEP_PIXELS = 2**16
LOW_BITS = 4
EXTREMES = 8
LEAST = 1e-3
# The variance of rounding to integers: where there is no more power, the logarithm says little.
ROUNDING = 1 / 12
# Scales that give each part the same weight in distances: reals vary alike in all of them.
LOG_SCALE, CORRELATION_SCALE, SPECTRUM_SCALE = 0.25, 0.5, 0.1

_DIFFERENCE = np.array([[-1, 1]])
_SECOND = np.array([[1, -2, 1]])
_THIRD = np.array([[1, -3, 3, -1]])
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
    "third-horizontal": _THIRD,
    "third-vertical": _THIRD.T,
    "mixed": np.array([[1, -1], [-1, 1]]),
    "laplacian": np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
}
MAIN = tuple(FILTERS)[:8]


class FilterPlan(NamedTuple):
    """Filters and rounding steps (of 255) of autocorrelations, and those that have triples, too."""

    filters: tuple[str, ...]
    steps: tuple[int, ...]
    triples: tuple[str, ...]
    triple_steps: tuple[int, ...]


LIGHT = FilterPlan(tuple(FILTERS), (1, 4, 16), MAIN, (4, 16))
COLOUR = FilterPlan(MAIN, (1, 4), ("horizontal", "vertical"), (4,))


def _values(planes: np.ndarray) -> np.ndarray:
    """Return square roots of the shares of 16 low nibbles and of 16 extreme values, N x 32."""
    counted = np.stack([np.bincount(p.ravel(), minlength=256) for p in planes])
    low = counted.reshape(len(planes), -1, 2**LOW_BITS).sum(1)
    shares = np.hstack([low, counted[:, :EXTREMES], counted[:, -EXTREMES:]]) / planes[0].size
    roots: np.ndarray = np.sqrt(shares)
    return roots


def _averages(planes: np.ndarray, plan: FilterPlan) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the statistics of N x H x W int16 planes that are averages, N x k, with their kind."""
    for name in plan.filters:
        residuals, size = residual(planes, FILTERS[name]), int(abs(FILTERS[name]).max())
        for step in plan.steps:
            found = levels(residuals, size * step)
            yield "covariances", covariances(found)
            if name in plan.triples and step in plan.triple_steps:
                for axis in (1, 2):
                    yield "triples", triples(found, axis)
    yield "power", power_by_frequency(planes)


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
    return np.hstack([*parts, _values(planes)])


def _colour(red: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Return statistics of two differences of colours: averages over both."""
    both = zip(_averages(red, COLOUR), _averages(blue, COLOUR), strict=True)
    return np.hstack([_scaled(kind, (one + other) / 2) for (kind, one), (_, other) in both])


@lru_cache
def _grey() -> np.ndarray:
    """Return the statistics of no colour, 1 x k, the same for any size."""
    none = np.zeros((1, SMALLEST, SMALLEST), np.int16)
    return _colour(none, none)


def statistics(images: np.ndarray) -> np.ndarray:
    """Return the statistics, N x d float32, of N x H x W x 3 uint8 images, H, W >= 8.

    Statistics of colour come last, less those of grey images: grey images have zeros there, which
    need no computation.
    """
    planes = np.moveaxis(images, -1, 0).astype(np.int16)
    green = planes[1]
    red, blue = planes[0] - green, planes[2] - green
    coloured = red.any((1, 2)) | blue.any((1, 2))
    colour = np.zeros((len(images), _grey().shape[1]))
    if coloured.any():
        colour[coloured] = _colour(red[coloured], blue[coloured]) - _grey()
    return np.hstack([_light(green), colour]).astype(np.float32)


@lru_cache
def dimension() -> int:
    """Return the number of statistics."""
    black = np.zeros((1, SMALLEST, SMALLEST, 3), np.uint8)
    found: int = statistics(black).shape[1]
    return found


class ResidualCard(SpaceCard):
    """The settings of the space ``residual``: the constants of this module."""

    filters: dict[str, list[list[float]]]
    light: dict[str, list[Any]]
    colour: dict[str, list[Any]]
    truncation: int
    lags: int
    cycles: int
    low_bits: int
    extremes: int
    scales: list[float]


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

    def card(self) -> ResidualCard:
        """Return the name and settings of the space."""
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
