"""The space of local statistics: any size, each image by itself, and what must not matter."""

from itertools import pairwise

import numpy as np
import pytest

from manifpt.errors import ManifptError
from manifpt.spaces import make_space, space_from_card

GREEN = 32 * 39 + 36 * 41 + 202 + 32


def images(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures with noise of many strengths, uint8 shape x 3."""
    rng = np.random.default_rng(seed)
    count, height, width = shape
    y, x = np.mgrid[:height, :width] / 9
    waves = np.stack([90 * np.sin(a * x + b * y) for a, b in rng.uniform(0.2, 1, (count * 3, 2))])
    waves = waves.reshape(count, 3, height, width).transpose(0, 2, 3, 1)
    noise = rng.normal(0, 1, (count, height, width, 3)) * rng.choice([1, 5, 20], (count, 1, 1, 3))
    return np.clip(128 + waves + noise, 0, 255).astype(np.uint8)


def embed(pictures: np.ndarray) -> np.ndarray:
    return make_space("residual", 28).embed(pictures)


def test_there_are_as_many_statistics_at_any_size_and_small_images_have_all():
    space = make_space("residual", 28)
    assert space.shape == (3972,)
    for height, width in ((8, 8), (9, 30), (28, 28), (64, 65), (256, 192)):
        found = space.embed(images(2, height, width))
        assert found.shape == (2, 3972)
        assert np.isfinite(found).all()
    assert space_from_card(space.card()) == space


def test_the_same_texture_has_like_statistics_at_another_size():
    large, other = images(2, 256, 256)
    crop = large[None, 64:192, 64:192]
    near, far = (np.linalg.norm(embed(x) - embed(crop)) for x in (large[None], other[None]))
    assert near < far / 3


def test_a_negative_and_red_for_blue_change_nothing_but_values():
    pictures = images(3, 32, 32)
    found, negative = embed(pictures), embed(255 - pictures)
    exact = np.ones(3972, bool)
    exact[GREEN - 32 : GREEN] = False
    np.testing.assert_allclose(negative[:, exact], found[:, exact], rtol=1e-5, atol=1e-6)
    assert not np.allclose(negative[:, ~exact], found[:, ~exact], atol=1e-3)
    np.testing.assert_allclose(embed(pictures[..., ::-1]), found, rtol=1e-6)


def test_grey_images_have_zeros_for_colour_and_coloured_ones_beside_them_what_they_have_alone():
    pictures = images(6, 16, 24)
    pictures[::2] = pictures[::2, ..., 1:2]
    for n, vector in enumerate(embed(pictures)):
        assert vector[GREEN:].any() == (n % 2 == 1)
        assert np.array_equal(embed(pictures[n : n + 1])[0], vector)


def test_the_least_of_colour_is_near_none_at_any_size():
    for side in (8, 20, 100):
        pictures = np.repeat(images(1, side, side)[..., 1:2], 3, -1)
        pictures[0, 3, 3, 0] ^= 1
        colour = embed(pictures)[0, GREEN:]
        assert 0 < np.abs(colour).max() < 40 / side


def test_it_tells_noise_by_its_neighbours_that_pixel_histograms_cannot_tell():
    """White noise, and the same smoothed along rows to the same variance."""
    rng = np.random.default_rng(0)
    white = rng.normal(0, 8, (40, 28, 28))
    wide = rng.normal(0, 8, (40, 28, 29))
    smooth = (wide[..., 1:] + wide[..., :-1]) / np.sqrt(2)
    one, two, three = (
        embed(np.repeat((128 + x[..., None]).round().astype(np.uint8), 3, -1))
        for x in (white[:20], white[20:], smooth)
    )
    between = [np.linalg.norm(a.mean(0) - b.mean(0)) for a, b in pairwise((one, two, three))]
    assert between[1] > 5 * between[0]


def test_images_below_8_pixels_are_refused_in_one_line():
    with pytest.raises(ManifptError, match=r"--image-size 6: residual needs 8 pixels"):
        make_space("residual", 6)
