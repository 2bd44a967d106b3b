"""P-values of permutation tests, and their correction for many tests."""

from collections.abc import Mapping

import numpy as np

# Statistics that differ by rounding alone are equal.
ROUNDING = 1e-9


def permutation_p(observed: float, permuted: np.ndarray) -> float:
    """Return the one-sided p-value of a statistic among P drawn permutations of it.

    The observed arrangement counts as one of the P + 1, so p is never 0 and the test holds its
    level (Phipson & Smyth, "Permutation p-values should never be zero", Statistical Applications
    in Genetics and Molecular Biology 9(1), 2010).

    >>> permutation_p(3.0, np.array([1.0, 2.0, 3.0]))
    0.5
    """
    slack = ROUNDING * max(abs(observed), 1)
    return float((1 + (permuted >= observed - slack).sum()) / (1 + len(permuted)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values of some tests by name, in the order given.

    A test whose adjusted p-value is below a level is significant while the chance of any false one
    among all tests stays below that level, for any dependence (Holm, "A simple sequentially
    rejective multiple test procedure", Scandinavian Journal of Statistics 6(2), 1979): the i-th
    smallest of n p-values times n - i + 1, never below a smaller one's, at most 1.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}
