"""Clusters against choices and effects of choices, on generators that were built by hand."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from manifpt.errors import ManifptError
from manifpt.evaluation.clustering import (
    causal_effects,
    cluster_agreement,
    normalised_information,
)


def fingerprints(values: list[str], per: int, d: int = 4, seed: int = 0):
    """Rows of recipes whose mean their value decides, and the recipe and value of each row."""
    rng = np.random.default_rng(seed)
    centres = {value: 8 * rng.normal(size=d) for value in dict.fromkeys(values)}
    rows = np.concatenate([centres[value] + rng.normal(size=(per, d)) for value in values])
    recipes = np.repeat([f"r{number}" for number in range(len(values))], per)
    return rows, recipes, np.repeat(values, per)


def test_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 200), rng.integers(0, 4, 200)
    table = np.zeros((3, 4))
    np.add.at(table, (a, b), 1)
    found = normalised_information(table)
    assert float(found) == pytest.approx(normalized_mutual_info_score(a, b))


def test_a_choice_that_decides_the_fingerprint_is_found():
    found = cluster_agreement(*fingerprints(["x", "x", "x", "x", "y", "y", "y", "y"], 20))
    assert found.nmi == pytest.approx(1)
    assert found.ami == pytest.approx(1)
    assert (found.k, found.rows, found.recipes, found.arrangements) == (2, 160, 8, 70)
    # Two of the 70 arrangements agree as well: the given one, and its mirror.
    assert found.p == pytest.approx(2 / 70, abs=0.006)


def test_rows_do_not_pass_for_recipes():
    """Two recipes of 500 rows each are two designs, however well their rows are told apart."""
    found = cluster_agreement(*fingerprints(["x", "y"], 500))
    assert found.nmi == pytest.approx(1)
    assert found.p == 1.0


def test_the_test_holds_its_level_where_recipes_differ_for_other_reasons():
    """Each recipe has a fingerprint of its own, which the choice has no part in."""
    values, ps = np.array(["x", "y", "z"] * 3), []
    for seed in range(40):
        rows, recipes, _ = fingerprints([f"r{number}" for number in range(9)], 8, seed=seed)
        found = cluster_agreement(rows, recipes, np.repeat(values, 8), permutations=199, seed=seed)
        ps.append(found.p)
    assert np.mean(np.array(ps) <= 0.1) <= 0.2
    # Above 0.5, as many arrangements agree equally well; far below 1, so the test is not blind.
    assert 0.4 < np.mean(ps) < 0.9


def test_a_second_seed_is_a_row_of_its_recipe():
    rows, recipes, values = fingerprints(["x", "x", "y", "y"], 10)
    joined = np.where(recipes == "r1", "r0", recipes)
    assert cluster_agreement(rows, joined, values).recipes == 3


def test_rows_without_the_choice_are_left_out():
    rows, recipes, values = fingerprints(["x", "y", "", "x", "y"], 10)
    found = cluster_agreement(rows, recipes, values)
    assert (found.k, found.rows, found.recipes) == (2, 40, 4)


def test_a_recipe_of_two_values_and_a_choice_of_one_are_refused():
    rows, recipes, values = fingerprints(["x", "y"], 5)
    with pytest.raises(ManifptError, match="recipe r: has the values x and y"):
        cluster_agreement(rows, np.full(10, "r"), values)
    with pytest.raises(ManifptError, match="1 values of the choice"):
        cluster_agreement(rows, recipes, np.full(10, "x"))


LOSSES, UPSAMPLINGS = ("ls", "hinge", "wgan"), ("nearest", "bilinear", "bicubic")


def grid(loss: float, upsampling: float, seed: float):
    """All losses x upsamplings x 2 seeds, where a new value or seed moves the mean at random."""
    rng = np.random.default_rng(0)
    moves = {name: loss * rng.normal(size=30) for name in LOSSES}
    moves |= {name: upsampling * rng.normal(size=30) for name in UPSAMPLINGS}
    means, choices, seeds = {}, {}, {}
    for name in LOSSES:
        for other in UPSAMPLINGS:
            for number in ("1", "2"):
                generator = f"{name}-{other}-{number}"
                means[generator] = moves[name] + moves[other] + seed * rng.normal(size=30)
                choices[generator] = {"loss": name, "upsampling": other}
                seeds[generator] = number
    return means, choices, seeds


def test_a_choice_that_acts_is_told_from_one_that_does_not():
    effects = causal_effects(*grid(loss=3, upsampling=0, seed=1))
    loss, upsampling = effects["loss"], effects["upsampling"]
    # Differences of means have the variance 2 s^2 of a seed, and 2 s^2 + 2 L^2 of a choice, too.
    assert loss.ratio == pytest.approx(np.sqrt(10), rel=0.2)
    assert loss.p < 0.001
    assert upsampling.ratio == pytest.approx(1, abs=0.15)
    assert upsampling.p > 0.05
    # Three pairs of 3 values, times 3 values of the other choice, times 2 seeds.
    assert (loss.pairs, upsampling.pairs, loss.seed_pairs) == (18, 18, 9)


def test_pairs_differ_in_one_thing_alone():
    means = {name: np.array([value]) for name, value in zip("abcd", (0.0, 1, 2, 7), strict=True)}
    choices = {"a": {"loss": "x", "up": "n"}, "b": {"loss": "x", "up": "n"}}
    choices |= {"c": {"loss": "y", "up": "n"}, "d": {"loss": "z", "up": "m"}}
    seeds = {"a": "1", "b": "2", "c": "1", "d": "1"}
    effects = causal_effects(means, choices, seeds)
    # b and c differ in the seed, too; d differs from all in two choices.
    assert list(effects) == ["loss"]
    assert (effects["loss"].ratio, effects["loss"].pairs) == (2, 1)
    assert effects["loss"].p == pytest.approx(0.5, abs=0.03)


def test_seeds_that_change_nothing_give_an_infinite_ratio():
    effects = causal_effects(*grid(loss=3, upsampling=0, seed=0))
    assert effects["loss"].ratio == np.inf


def test_means_without_choices_or_second_seeds_are_refused():
    means, choices, seeds = grid(1, 1, 1)
    with pytest.raises(ManifptError, match="stranger: no choices or seed"):
        causal_effects({**means, "stranger": means["ls-nearest-1"]}, choices, seeds)
    first = {name: mean for name, mean in means.items() if name.endswith("1")}
    with pytest.raises(ManifptError, match="give a second seed"):
        causal_effects(first, choices, seeds)
