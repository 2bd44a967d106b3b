"""Published methods as spaces: shapes, each image by itself, and the trace that each looks for."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

from manifpt import baselines
from manifpt.baselines import BASELINES, Baseline
from manifpt.errors import ManifptError
from manifpt.spaces import SPACES, make_space, space_from_card

SHAPES = {
    "mccloskey18": lambda side: (178,),
    "nataraj19": lambda side: (3, 64, 64),
    "durall20": lambda side: (80,),
    "dzanic20": lambda side: (3,),
    "marra19": lambda side: (3 * side**2,),
    "lowbits": lambda side: (3, side, side),
    "npr": lambda side: (3, side, side),
    "selfdescription": lambda side: (48,),
}


def pictures(count: int, side: int = 28, seed: int = 0) -> np.ndarray:
    """Smooth pictures with a little noise, float64 count x side x side x 3."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / 9
    waves = [60 * np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.2, 2, (3 * count, 3))]
    smooth = np.reshape(waves, (count, 3, side, side)).transpose(0, 2, 3, 1)
    return 128 + smooth + rng.normal(0, 6, (count, side, side, 3))


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def upsampled(count: int, seed: int) -> np.ndarray:
    """Every second row and column, twice, with a little noise."""
    half = pictures(count, seed=seed)[:, ::2, ::2]
    return half.repeat(2, 1).repeat(2, 2) + np.random.default_rng(seed).normal(0, 1, (28, 28, 3))


def smoothed_along_rows(count: int, seed: int) -> np.ndarray:
    """Noise that is correlated along rows, and as strong as that of ``flat``."""
    wide = np.random.default_rng(seed).normal(0, 6, (count, 28, 29, 3))
    noise = (wide[:, :, 1:] + wide[:, :, :-1]) / np.sqrt(2)
    return 128 + noise


def flat(count: int, seed: int) -> np.ndarray:
    return 128 + np.random.default_rng(seed).normal(0, 6, (count, 28, 28, 3))


def patterned(count: int, seed: int) -> np.ndarray:
    pattern = np.random.default_rng(7).normal(0, 2, (28, 28, 3))
    return pictures(count, seed=seed) + pattern


def plain(count: int, seed: int) -> np.ndarray:
    return pictures(count, seed=seed)


# What makes the two sources that a method is to tell apart.
TRACES = {
    "mccloskey18": (plain, lambda n, s: np.clip(2 * pictures(n, seed=s) - 128, 20, 235)),
    "nataraj19": (flat, smoothed_along_rows),
    "durall20": (plain, upsampled),
    "dzanic20": (plain, upsampled),
    "marra19": (plain, patterned),
    "lowbits": (plain, lambda n, s: np.floor(pictures(n, seed=s) / 8) * 8),
    "npr": (plain, upsampled),
    "selfdescription": (plain, upsampled),
}


def test_each_has_a_shape_and_a_trace():
    assert set(BASELINES) == set(SHAPES) == set(TRACES)
    assert set(BASELINES) < set(SPACES)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("side", [28, 33, 48])
def test_the_shape_follows_the_size_and_vectors_do_not_depend_on_the_batch(name, side):
    images = rounded(pictures(9, side))
    images[4] = 255
    space = make_space(name, side)
    whole = space.embed(images)
    assert whole.shape == (9, *space.shape) == (9, *SHAPES[name](side))
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    for size in (1, 4):
        parts = [space.embed(images[i : i + size]) for i in range(0, 9, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(space.embed(np.asfortranarray(images)), whole)


@pytest.mark.parametrize("name", BASELINES)
def test_the_card_makes_the_space_again(name):
    space = make_space(name, 32)
    again = space_from_card(space.card())
    assert again == space
    assert again.card() == space.card()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_images_have_finite_numbers(name, value):
    space = make_space(name, 28)
    assert np.isfinite(space.embed(np.full((2, 28, 28, 3), value, np.uint8))).all()


def accuracy(name: str, first: np.ndarray, second: np.ndarray, *, shuffled: bool) -> float:
    """Return that of a linear classifier of values and squares, on the other half of the images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    embed = Baseline(28, name).embed
    rows = np.concatenate([embed(rounded(images)) for images in (first, second)])
    rows = rows.reshape(len(rows), -1)
    rows = rows[:, rows.std(0) > 0]  # few pairs of values occur at all
    rows = np.hstack([rows, rows**2])
    labels = np.repeat([0, 1], [len(first), len(second)])
    order = np.random.default_rng(1).permutation(len(rows))
    if shuffled:
        labels = np.random.default_rng(2).permutation(labels)
    train, test = order[::2], order[1::2]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=100))
    return model.fit(rows[train], labels[train]).score(rows[test], labels[test])


@pytest.mark.parametrize("name", BASELINES)
def test_it_tells_its_trace_and_not_shuffled_labels(name):
    first, second = (make(120, seed) for make, seed in zip(TRACES[name], (3, 4), strict=True))
    assert accuracy(name, first, second, shuffled=False) > 0.95
    assert accuracy(name, first, second, shuffled=True) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("name", "size"), [("durall20", 7), ("selfdescription", 15)])
def test_images_that_are_too_small_are_refused_in_one_line(name, size):
    with pytest.raises(ManifptError, match=rf"--image-size {size}: {name} needs .* larger size$"):
        make_space(name, size)
    assert make_space(name, size + 1).embed(rounded(pictures(1, size + 1))).any()


@pytest.mark.parametrize("name", BASELINES)
def test_a_card_of_other_settings_is_refused(name):
    card = make_space(name, 32).card()
    with pytest.raises(ManifptError, match=f"space {name}: made by another version"):
        space_from_card(card | {"bins": 7})


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(baselines.__path__)])
def test_examples_are_true(module):
    found = doctest.testmod(importlib.import_module(f"manifpt.baselines.{module}"))
    assert found.failed == 0
