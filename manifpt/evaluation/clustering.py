"""Fingerprints against design choices: agreement of clusters, and effects of single choices.

Song, Khayatkhoei and AbdAlmageed, "ManiFPT: Defining and Analyzing Fingerprints of Generative
Models", CVPR 2024, table 5, compare clusters of fingerprints with the choices by which generators
were built. A choice belongs to a generator, not to an image: the tests here exchange recipes, never
images.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from manifpt.errors import ManifptError
from manifpt.evaluation.design_choices import Choices
from manifpt.evaluation.significance import permutation_p

PERMUTATIONS = 9999


class ClusterAgreement(NamedTuple):
    """The agreement of clusters of rows with the values of a choice.

    ``nmi`` and ``ami`` are the normalised and the adjusted mutual information, ``k`` the number of
    values and of clusters. ``arrangements`` is the number of ways to give the values to the
    ``recipes``: the p-value is at least about its inverse.
    """

    nmi: float
    ami: float
    p: float
    k: int
    rows: int
    recipes: int
    arrangements: int


def normalised_information(tables: np.ndarray) -> np.ndarray:
    """Return the normalised mutual information of contingency tables, ... x V x K counts -> ...

    The mutual information over the mean of the two entropies; 0 where one side has one value.

    >>> normalised_information(np.array([[[2, 0], [0, 2]], [[1, 1], [1, 1]]]))
    array([1., 0.])
    """

    def entropy(shares: np.ndarray) -> np.ndarray:
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        found: np.ndarray = -(shares * logs).sum(-1)
        return found

    joint = tables / tables.sum((-2, -1), keepdims=True)
    first, second = entropy(joint.sum(-1)), entropy(joint.sum(-2))
    mutual = first + second - entropy(joint.reshape(*joint.shape[:-2], -1))
    mean = (first + second) / 2
    ratio = np.divide(mutual, mean, out=np.zeros_like(mean), where=mean > 0)
    clipped: np.ndarray = ratio.clip(0, 1)
    return clipped


def _value_of(recipes: np.ndarray, values: np.ndarray) -> dict[str, str]:
    """Return the value of each recipe; raise ManifptError if a recipe has two."""
    found: dict[str, str] = {}
    for recipe, value in dict.fromkeys(zip(recipes.tolist(), values.tolist(), strict=True)):
        if found.setdefault(recipe, value) != value:
            raise ManifptError(
                f"recipe {recipe}: has the values {found[recipe]} and {value} of one choice; give "
                "each recipe one value"
            )
    return found


def cluster_agreement(
    features: np.ndarray,
    recipes: Sequence[str],
    choice_values: Sequence[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> ClusterAgreement:
    """Return the agreement of k-means clusters of N x d rows with the values of a choice.

    ``recipes`` and ``choice_values`` name the recipe and the value of each row. A row without the
    choice has the value "" and is left out. There are as many clusters as values. Distances are
    Euclidean in the features as they are: standardise them before, if that is wanted. The mutual
    information is normalised by the mean of the entropies, and adjusted for chance (Vinh, Epps and
    Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 11, 2010).

    The p-value is that of a permutation test of the normalised mutual information: values are
    exchanged between recipes, and all rows of a recipe keep one value, those of its second seeds
    included. A test that exchanged rows would take thousands of images for thousands of
    independent designs. Other choices that go along with this one are not accounted for.

    Raises ManifptError for a recipe with two values, and where fewer than 2 values are left.

    >>> features = np.repeat([[0.0], [0.1], [5.0], [5.1]], 10, axis=0)
    >>> recipes = np.repeat(["a", "b", "c", "d"], 10)
    >>> found = cluster_agreement(features, recipes, np.repeat(["x", "x", "y", "y"], 10))
    >>> found.nmi, found.arrangements, round(found.p, 1)
    (1.0, 6, 0.3)
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    values, names = np.asarray(choice_values), np.asarray(recipes)
    rows = values != ""
    features, values, names = features[rows], values[rows], names[rows]
    of_recipe = _value_of(names, values)
    k = len(set(of_recipe.values()))
    if k < 2:
        raise ManifptError(f"clusters: {k} values of the choice; give rows of 2 or more values")
    means = KMeans(k, n_init=10, random_state=seed)
    clusters = means.fit_predict(features.astype(np.float64))
    order, number = np.unique(names, return_inverse=True)
    table = np.zeros((len(order), k), np.int64)
    np.add.at(table, (number, clusters), 1)
    given = np.unique([of_recipe[name] for name in order], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(given, (permutations, 1)), axis=1)

    def information(assigned: np.ndarray) -> np.ndarray:
        return normalised_information(np.eye(k)[assigned].swapaxes(-1, -2) @ table)

    nmi = float(information(given))
    arrangements = math.factorial(len(order))
    for count in Counter(given.tolist()).values():
        arrangements //= math.factorial(count)
    ami = float(adjusted_mutual_info_score(values, clusters))
    p = permutation_p(nmi, information(drawn))
    return ClusterAgreement(nmi, ami, p, k, len(names), len(order), arrangements)


class CausalEffect(NamedTuple):
    """The effect of one design choice on mean fingerprints, against the effect of a new seed.

    ``distance`` and ``seed_distance`` are mean distances of ``pairs`` that differ in the choice
    alone, and of ``seed_pairs`` that differ in the seed alone; ``ratio`` is the first over the
    second, infinite where seeds change nothing.
    """

    ratio: float
    p: float
    distance: float
    pairs: int
    seed_distance: float
    seed_pairs: int


def _pairs(choices: Choices, seeds: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Return pairs of generators that differ in a choice alone, and under "" in the seed alone."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for a, b in itertools.combinations(choices, 2):
        names = dict.fromkeys([*choices[a], *choices[b]])
        apart = [name for name in names if choices[a].get(name, "") != choices[b].get(name, "")]
        same_seed = seeds[a] == seeds[b]
        if len(apart) == same_seed:
            found.setdefault(apart[0] if apart else "", []).append((a, b))
    return found


def causal_effects(
    means: Mapping[str, np.ndarray],
    choices: Choices,
    seeds: Mapping[str, str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, CausalEffect]:
    """Return the effect of each design choice on the mean fingerprints of generators.

    ``means`` has a mean fingerprint of any shape for each generator, ``choices`` the value of its
    choices, ``seeds`` the seed of its training. Two generators that differ in one choice and have
    the same seed are a pair of that choice. Two that differ in the seed alone are a pair of seeds.
    Choices without a pair are left out: a pair that differs in two choices shows the effect of
    neither.

    The p-value is one-sided: labels are exchanged between the pairs of the choice and those of
    seeds, and the statistic is the mean distance of the choice's pairs. It assumes independent
    pairs, but pairs share generators, so it is approximate; with few pairs of seeds it cannot be
    small. Distances of means hold the noise of finite images, above and below the line alike. Give
    the generators of one family to compare choices with seeds of that family alone.

    Raises ManifptError if a generator has no choices or seed, or no two differ in the seed alone.

    >>> means = {"a": np.zeros(1), "a-seed2": np.ones(1), "b": np.full(1, 4.0)}
    >>> choices = {"a": {"loss": "x"}, "a-seed2": {"loss": "x"}, "b": {"loss": "y"}}
    >>> effect = causal_effects(means, choices, {"a": "1", "a-seed2": "2", "b": "1"})["loss"]
    >>> effect.ratio, effect.pairs, effect.seed_pairs
    (4.0, 1, 1)
    """
    unknown = [name for name in means if name not in choices or name not in seeds]
    if unknown:
        raise ManifptError(
            f"{', '.join(unknown)}: no choices or seed; name generators of the table of recipes"
        )
    pairs = _pairs({name: choices[name] for name in means}, seeds)
    of_seeds = pairs.pop("")
    if not of_seeds:
        raise ManifptError("no two generators differ in the seed alone; give a second seed of one")

    def distances(of: list[tuple[str, str]]) -> np.ndarray:
        return np.array([np.linalg.norm(np.ravel(means[a] - means[b])) for a, b in of])

    theirs = distances(of_seeds)
    rng = np.random.default_rng(seed)
    found = {}
    for choice in sorted(pairs):
        ours = distances(pairs[choice])
        pool = np.tile(np.concatenate([ours, theirs]), (permutations, 1))
        permuted = rng.permuted(pool, axis=1)[:, : len(ours)].mean(1)
        mean, usual = float(ours.mean()), float(theirs.mean())
        ratio = mean / usual if usual > 0 else math.inf
        p = permutation_p(mean, permuted)
        found[choice] = CausalEffect(ratio, p, mean, len(ours), usual, len(theirs))
    return found
