"""The mathematics of published methods, against independent values."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from manifpt.baselines import (
    durall20,
    dzanic20,
    lowbits,
    marra19,
    mccloskey18,
    nataraj19,
    npr,
    selfdescription,
)
from manifpt.baselines.spectrum import ROUNDING, luma, power_spectrum, ring_means

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 20, 23, 3), dtype=np.uint8)


def ring_power(planes: np.ndarray) -> np.ndarray:
    return ring_means(power_spectrum(planes), planes.shape[2])


def test_grey_is_that_of_pillow_within_its_rounding():
    from PIL import Image

    for image, grey in zip(IMAGES, luma(IMAGES), strict=True):
        assert np.abs(np.asarray(Image.fromarray(image).convert("L")) - grey).max() <= 1


@pytest.mark.parametrize("shape", [(28, 28), (33, 33), (16, 25)])
def test_the_power_of_white_noise_is_its_variance_in_all_rings(shape):
    noise = np.random.default_rng(0).normal(0, 7, (3000, *shape))
    found = ring_power(noise).mean(0)
    assert found[1:] == pytest.approx(np.full(len(found) - 1, 49.0), rel=0.1)
    assert found[0] < 1e-9


@pytest.mark.parametrize("side", [27, 28])
def test_rings_are_means_over_all_frequencies_of_a_full_transform(side):
    planes = np.random.default_rng(1).normal(0, 1, (2, side, side))
    power = np.abs(np.fft.fft2(planes - planes.mean((1, 2), keepdims=True))) ** 2 / side**2
    along = np.fft.fftfreq(side) * side
    rings = np.rint(np.hypot(along[:, None], along)).astype(int)
    expected = [[p[rings == k].mean() for k in range(rings.max() + 1)] for p in power]
    np.testing.assert_allclose(ring_power(planes), expected, rtol=1e-9, atol=1e-12)


def test_a_wave_is_at_its_frequency_at_any_size():
    for side in (32, 64):
        wave = 100 * np.cos(2 * np.pi * np.arange(side) / 4)
        images = np.broadcast_to((128 + wave)[None, None, :, None], (1, side, side, 3))
        (found,) = durall20.azimuthal_spectrum(np.rint(images).astype(np.uint8))
        last = np.rint(side * np.sqrt(0.5))
        assert found.argmax() == pytest.approx(79 * (side / 4 - 1) / (last - 1), abs=2)


def test_bins_are_means_of_logarithms_from_the_lowest_frequency_to_the_corners():
    from scipy.interpolate import interp1d

    images = np.random.default_rng(4).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    grey = np.rint(images @ np.array([0.299, 0.587, 0.114]))
    power = np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2 / 28**2
    along = np.fft.fftfreq(28) * 28
    rings = np.rint(np.hypot(along[:, None], along)).astype(int)
    for image, found in zip(power, durall20.azimuthal_spectrum(images), strict=True):
        logs = [np.log(image[rings == k] + ROUNDING).mean() for k in range(1, 21)]
        bins = interp1d(np.arange(1, 21), logs, "cubic")(np.linspace(1, 20, 80))
        np.testing.assert_allclose(found, bins, atol=1e-4)


def test_a_power_law_has_its_exponent():
    side, exponent = 64, -1.5
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1
    noise = np.fft.fft2(np.random.default_rng(2).normal(0, 1, (60, side, side)))
    planes = np.fft.ifft2(noise * frequency**exponent, axes=(1, 2)).real
    planes *= 30 / planes.std()
    images = np.clip(128 + planes, 0, 255).round().astype(np.uint8)
    found = dzanic20.spectral_decay(np.repeat(images[..., None], 3, -1))
    assert found[:, 0].mean() == pytest.approx(exponent, abs=0.25)
    first, last = np.ceil(0.75 * side * np.sqrt(0.5)), np.rint(side * np.sqrt(0.5))
    levels = (found[:, 2] - found[:, 1]).mean()
    assert levels == pytest.approx(exponent * np.log(last / first), abs=0.1)


def test_residuals_are_those_of_a_local_wiener_filter():
    from scipy.ndimage import uniform_filter

    planes = IMAGES[..., 0].copy()
    planes[:, :9] //= 40
    for plane, found in zip(planes, marra19.wiener_residual(planes), strict=True):
        values = plane.astype(float)
        mean = uniform_filter(values, 5, mode="mirror")
        variance = uniform_filter(values**2, 5, mode="mirror") - mean**2
        gain = np.maximum(variance - 9, 0) / np.maximum(variance, 9)
        denoised = mean + gain * (values - mean)
        np.testing.assert_allclose(found, values - denoised, atol=1e-8)


def test_residuals_keep_their_strength_channel_by_channel():
    rows = marra19.noise_residual(IMAGES).reshape(len(IMAGES), 3, 20, 23)
    for channel in range(3):
        expected = marra19.wiener_residual(IMAGES[..., channel])
        np.testing.assert_allclose(rows[:, channel], expected, rtol=1e-5)


def test_cooccurrences_count_pairs_and_forget_the_size():
    found = nataraj19.cooccurrences(IMAGES) ** 2
    for image, maps in zip(IMAGES, found, strict=True):
        for channel in range(3):
            values = (image[..., channel] // 4).tolist()
            pairs = Counter(p for row in values for p in pairwise(row))
            total = sum(pairs.values())
            for pair, count in pairs.items():
                assert maps[channel][pair] == pytest.approx(64**2 * count / total, rel=1e-5)
            assert maps[channel].sum() == pytest.approx(64**2, rel=1e-5)
    twice = np.concatenate([IMAGES, IMAGES], 1)
    np.testing.assert_allclose(nataraj19.cooccurrences(twice) ** 2, found, rtol=1e-5)


def test_differences_are_those_of_torchs_nearest_resizing():
    import torch
    from torch.nn.functional import interpolate

    images = IMAGES[:, :20, :22]
    maps = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    half = interpolate(maps, scale_factor=0.5, mode="nearest", recompute_scale_factor=True)
    whole = interpolate(half, scale_factor=2.0, mode="nearest", recompute_scale_factor=True)
    np.testing.assert_allclose(npr.neighbour_differences(images), maps - whole, atol=1e-6)
    odd = npr.neighbour_differences(IMAGES)
    assert np.array_equal(odd[..., :22], npr.neighbour_differences(images))


def test_the_highest_five_bits_change_no_low_bits():
    assert np.array_equal(lowbits.low_bits(IMAGES), lowbits.low_bits(IMAGES ^ np.uint8(0b10101000)))
    assert set(np.unique(lowbits.low_bits(IMAGES) * 7).round(5)) == set(range(8))


def test_shares_of_extreme_values_and_of_chromaticity():
    images = np.full((1, 10, 10, 3), 100, np.uint8)
    images[0, 0] = 255  # a tenth is saturated
    images[0, 1:3] = 2  # a fifth is at most 2 from black
    low, high = mccloskey18.extreme_shares(images).reshape(3, 2, 7)[0]
    assert low.tolist() == [0, 0, 0.2, 0.2, 0.2, 0.2, 0.2]
    assert high.tolist() == [0.1] * 7
    shares = mccloskey18.chromaticity_shares(images)
    assert (shares > 0).sum() == 1  # all of it is grey
    assert mccloskey18.chromaticity_shares(IMAGES).sum(1) == pytest.approx(np.ones(5))


def test_scales_are_those_of_torchs_bilinear_resizing():
    import torch
    from torch.nn.functional import interpolate

    planes = np.random.default_rng(5).normal(0, 9, (2, 27, 34))
    for scale in (1, 2, 4):
        expected = interpolate(
            torch.from_numpy(planes)[None], scale_factor=1 / scale, mode="bilinear"
        )[0]
        found = selfdescription.reduced(planes, scale)
        assert found.shape == (2, 27 // scale, 34 // scale)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_predictor_is_the_least_squares_solution_of_sum_1():
    rng = np.random.default_rng(3)
    large = rng.normal(0, 9, (2, 30, 34))
    large[1] += np.roll(large[1], 1, 1)
    scales = [large, selfdescription.reduced(large, 2)]
    for number, found in enumerate(selfdescription.predictor(scales)):
        terms, wanted = [], []
        for planes in scales:
            padded = np.pad(planes[number], 3, mode="reflect")
            height, width = planes[number].shape
            for row in range(height):
                for column in range(width):
                    square = padded[row : row + 7, column : column + 7].ravel()
                    terms.append(np.delete(square, 24))
                    wanted.append(square[24])
        left, right = np.array(terms), np.array(wanted)
        assert found.sum() == pytest.approx(1)
        # Written without the condition: the last coefficient is 1 less the sum of the others.
        others, *_ = np.linalg.lstsq(left[:, :-1] - left[:, -1:], right - left[:, -1], rcond=None)
        np.testing.assert_allclose(found[:-1], others, atol=0.02)
