"""Tests whether a property of the files reveals the class, against shuffled labels.

All functions take columns of one bounded sample of rows, in memory.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PERMUTATIONS = 5000
# The number of them that may have as much information as the label.
REACHED = 1
_ROUNDING = 1e-9  # bits
_NUMBERS = 2_000_000  # size of the tables that are drawn at once
# Shuffled labels that a classifier is compared with: the first ones, some more at a time, and all
# at most. No more are needed where one does as well, or where the classifier is better than their
# mean by this number of their standard deviations.
FIRST_SHUFFLES, MORE_SHUFFLES, SHUFFLES = 10, 50, 400
DEVIATIONS = 7
FOLDS = 5
# Values of a property that are told apart: the commonest ones, or this number of quantiles.
MOST_VALUES = 64
QUANTILES = 16


class Information(NamedTuple):
    """The mutual information of a property with the label, in bits, and of shuffled labels.

    ``share`` is the part of the label's entropy that the property explains beyond ``baseline``,
    the mean of shuffled labels; ``chance`` is the largest of those. It is 0 where more than
    REACHED of PERMUTATIONS shuffled labels have as much information.
    """

    bits: float
    baseline: float
    chance: float
    share: float


def codes(values: Sequence[Any]) -> np.ndarray:
    """Return a property's values as whole numbers: quantiles of numbers with many, else by value.

    Null is a value. All texts beyond the commonest have one number.
    """
    known = [value for value in values if value is not None]
    distinct = set(known)
    if len(distinct) > QUANTILES and not isinstance(known[0], str):
        numbers = np.array([np.nan if v is None else float(v) for v in values])
        edges = np.unique(np.nanquantile(numbers, np.arange(1, QUANTILES) / QUANTILES))
        return np.where(np.isnan(numbers), -1, np.searchsorted(edges, numbers, "right")) + 1
    found, number, counts = np.unique(
        [str(value) for value in values], return_inverse=True, return_counts=True
    )
    if len(found) <= MOST_VALUES:
        return number
    rank = np.empty(len(found), int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(found))
    return np.minimum(rank, MOST_VALUES)[number]


def entropy(counts: np.ndarray) -> float:
    """Return the entropy of counts, in bits."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def cross_counts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the contingency table of two columns of whole numbers from 0.

    >>> cross_counts(np.array([0, 0, 2]), np.array([1, 0, 1])).tolist()
    [[1, 1], [0, 1]]
    """
    across = int(y.max()) + 1
    joint = np.bincount(x * across + y, minlength=(int(x.max()) + 1) * across).reshape(-1, across)
    found: np.ndarray = joint[joint.any(1)][:, joint.any(0)]
    return found


def mutual_information(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mutual information of two columns of whole numbers from 0, in bits."""
    table = cross_counts(x, y)
    return max(0.0, entropy(table.sum(1)) + entropy(table.sum(0)) - entropy(table.ravel()))


def shuffled_information(table: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the mutual information with PERMUTATIONS shuffled labels, in bits.

    ``table`` is that of ``cross_counts``. Shuffled labels have random tables with the same sums of
    rows and columns, which are drawn as such (Patefield, "Algorithm AS 159", 1981).
    """
    from scipy.stats import random_table

    rows, columns = table.sum(1), table.sum(0)
    drawing, rng = random_table(rows, columns), np.random.default_rng(seed)
    counts = np.arange(table.sum() + 1)
    parts = counts / counts[-1]
    terms = np.where(counts > 0, -parts * np.log2(np.maximum(parts, 1 / counts[-1])), 0.0)
    found, at_once = [], max(1, _NUMBERS // table.size)
    for begin in range(0, PERMUTATIONS, at_once):
        drawn = drawing.rvs(min(at_once, PERMUTATIONS - begin), random_state=rng)
        joint = terms[drawn.astype(np.int64)].sum((1, 2))
        found.append(entropy(rows) + entropy(columns) - joint)
    return np.concatenate(found)


def information(x: np.ndarray, labels: np.ndarray, seed: int = 0) -> Information:
    """Return the information of a property, as ``codes``, about the label.

    A property without information about the label has a share above 0 with probability at most
    (REACHED + 1) / (PERMUTATIONS + 1).
    """
    bits = mutual_information(x, labels)
    if bits == 0.0:
        return Information(0.0, 0.0, 0.0, 0.0)
    shuffled = shuffled_information(cross_counts(x, labels), seed)
    baseline, chance = float(shuffled.mean()), float(shuffled.max())
    if np.count_nonzero(shuffled >= bits - _ROUNDING) > REACHED:
        return Information(bits, baseline, chance, 0.0)
    share = (bits - baseline) / (entropy(np.bincount(labels)) - baseline)
    return Information(bits, baseline, chance, max(0.0, share))


class Accuracy(NamedTuple):
    """The balanced accuracy of a classifier that sees properties alone, cross-validated.

    ``share`` is its part of the way from chance, one in the number of classes, to 1; 0 if shuffled
    labels do as well. ``shuffled`` is the largest of their accuracies.
    """

    accuracy: float
    chance: float
    shuffled: float
    share: float


def tree_accuracy(
    columns: Sequence[np.ndarray], labels: np.ndarray, seed: int = 0
) -> Accuracy | None:
    """Return the accuracy of a decision tree on these columns of ``codes``.

    Null if a class has fewer images than there are folds. Columns that say nothing of the label
    have a share above 0 with a probability of about one in SHUFFLES.
    """
    from sklearn.model_selection import StratifiedKFold, permutation_test_score
    from sklearn.tree import DecisionTreeClassifier

    counts = np.bincount(labels)
    chance = 1 / len(counts)
    varied = [column for column in columns if (column != column[0]).any()]
    if not varied or len(counts) < 2:
        return Accuracy(chance, chance, chance, 0.0)
    if counts.min() < FOLDS:
        return None
    tree = DecisionTreeClassifier(
        min_samples_leaf=5, max_leaf_nodes=256, class_weight="balanced", random_state=seed
    )
    found, shuffled = 0.0, np.empty(0)
    while len(shuffled) < SHUFFLES:
        count = MORE_SHUFFLES if len(shuffled) else FIRST_SHUFFLES
        found, scores, _ = permutation_test_score(
            tree,
            np.column_stack(varied),
            labels,
            scoring="balanced_accuracy",
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
            n_permutations=count,
            random_state=seed + len(shuffled),
        )
        shuffled = np.append(shuffled, scores)
        if found <= shuffled.max() or found > shuffled.mean() + DEVIATIONS * shuffled.std():
            break
    share = max(0.0, (found - chance) / (1 - chance)) if found > shuffled.max() else 0.0
    return Accuracy(float(found), chance, float(shuffled.max()), share)
