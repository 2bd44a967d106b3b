"""Averages over pixels, against loops over pixels."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate2d

from manifpt.spaces import residual_statistics
from manifpt.spaces.residual import FILTERS


def numbers(shape: tuple[int, int]):
    count = shape[0] * shape[1]
    return st.integers(0, 2**32).map(
        lambda seed: np.random.default_rng(seed).integers(-300, 300, count).reshape(shape)
    )


shapes = st.tuples(st.integers(5, 40), st.integers(5, 100))


@pytest.mark.parametrize("name", FILTERS)
def test_residuals_are_correlations_without_borders(name):
    planes = np.random.default_rng(0).integers(0, 256, (2, 11, 13)).astype(np.int16)
    kernel = FILTERS[name]
    assert kernel.sum() == 0
    for plane, found in zip(planes, residual_statistics.residual(planes, kernel), strict=True):
        assert np.array_equal(found, correlate2d(plane, kernel, "valid"))


def test_no_residual_of_extreme_colours_overflows():
    kernel = FILTERS["square-5"]
    plane = np.where(kernel > 0, 255, -255).astype(np.int16)
    assert residual_statistics.residual(plane[None], kernel)[0, 0, 0] == 255 * abs(kernel).sum()
    assert residual_statistics.residual(-plane[None], kernel)[0, 0, 0] == -255 * abs(kernel).sum()


@given(st.integers(-20_000, 20_000), st.sampled_from([1, 2, 4, 12, 16, 48, 192]))
def test_levels_round_halves_away_from_zero_and_are_odd(value, step):
    (found,) = residual_statistics.levels(np.array([value], np.int16), step)
    expected = np.sign(value) * min(2, np.floor(abs(value) / step + 0.5))
    assert found == expected
    assert residual_statistics.levels(np.array([-value], np.int16), step)[0] == -found


def oracle_triples(levels: np.ndarray, axis: int) -> list[float]:
    """Relative frequencies of classes of triples, in the order of their first member."""
    rows = levels if axis == 1 else levels.T
    counts = Counter()
    for row in rows.tolist():
        for triple in zip(row, row[1:], row[2:], strict=False):
            other = tuple(-t for t in triple)
            counts[min(triple, triple[::-1], other, other[::-1])] += 1
    span = range(-2, 3)
    every = [(a, b, c) for a in span for b in span for c in span]
    classes = sorted({
        min(t, t[::-1], tuple(-v for v in t), tuple(-v for v in t[::-1])) for t in every
    })  # fmt: skip
    assert len(classes) == 39
    return [counts[c] / sum(counts.values()) for c in classes]


@given(shapes.flatmap(numbers))
def test_triples_and_covariances_equal_loops_over_pixels(values):
    found = residual_statistics.levels(values[None].astype(np.int16), 100)
    plane = found[0]
    for axis in (0, 1):
        np.testing.assert_allclose(
            residual_statistics.triples(found, 1 + axis)[0], oracle_triples(plane, axis), rtol=1e-12
        )
    height, width = plane.shape
    lags = [(a, b) for a in range(5) for b in range(-4, 5) if (a, b) >= (0, 0)]
    assert len(lags) == 41
    for (a, b), mean in zip(lags, residual_statistics.covariances(found)[0], strict=True):
        above = plane[: height - a, max(0, -b) : width - max(0, b)].astype(int)
        below = plane[a:, max(0, b) : width + min(0, b)].astype(int)
        products = above * below
        assert mean == pytest.approx(products.mean() if products.size else 0, abs=1e-12)


@pytest.mark.parametrize("side", [13, 28, 60])
@pytest.mark.parametrize(("down", "along"), [(0, 5), (3, 0), (18, 4), (10, 10)])
def test_the_power_of_a_wave_is_in_its_bin_at_any_size(side, down, along):
    y, x = np.mgrid[:side, :side]
    wave = 100 * np.cos(2 * np.pi * (down * y + along * x) / 20)
    found = residual_statistics.power_by_frequency(wave[None])[0]
    grid = np.zeros((20, 11))
    grid[residual_statistics._half_plane()] = found
    assert np.unravel_index(grid.argmax(), grid.shape) == (down, along)


def test_the_power_of_white_noise_is_its_variance_in_all_bins():
    noise = np.random.default_rng(0).normal(0, 7, (4000, 30, 26))
    mean = residual_statistics.power_by_frequency(noise).mean(0)
    assert mean[1:] == pytest.approx(np.full(201, 49.0), rel=0.05)
    assert mean[0] < 49  # of the mean nothing is left
