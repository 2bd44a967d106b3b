"""Are the images of a group as those of a known source are? A two-sample test says.

One image of an unknown generator is much like one of a known generator (see ``open_set``); many
are not, for what the attributor says of them has another mean than for any class. A group and the
validation images of a class are compared by Hotelling's T^2, the Mahalanobis distance of their
means. The p-value is the share of random exchanges of images between the two that make it as large
(a permutation test; Lehmann & Romano, Testing Statistical Hypotheses, 2005, section 15.2): if the
group's images are of the class as validation images are, p <= a has at most the probability a,
whatever their distribution and however few they are.

A group is unknown if it is of no class, so its p-value is the largest of all classes' (an
intersection-union test; Berger, Technometrics 1982). Of these, only such as can be its source are
tested: those that hold nearly all of its pooled probability, and that with the nearest mean. A
share of its images may be foreign; nobody knows which, so what is left counts whichever are taken
away: the largest p-value again. Those are sought whose loss brings the means together.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

EXCHANGES = 399
# Classes that hold so much of a group's pooled probability may be its source.
MASS = 0.999
# A p-value that is larger than this is of no interest, and not looked for.
LARGE = 0.5
# Of the covariance, what is that of all classes, and not of the two samples.
SHARED = 0.3
RIDGE = 1e-3
# Strangeness beyond this counts as this: a few foreign images do not decide.
STRANGEST = 6.0
# Of larger groups, the first so many.
TESTED = 1000


def vectors_of(evidence: np.ndarray, strangeness: np.ndarray) -> np.ndarray:
    """Return what is compared of N images, N x (K + 1): evidence and ``unknown_score``."""
    return np.column_stack([evidence, np.minimum(strangeness, STRANGEST)])


def _whitening(covariance: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return found


@dataclass(frozen=True, eq=False)
class Profiles:
    """Validation images of K classes: ``vectors`` R x (K + 1), see ``vectors_of``, and labels."""

    vectors: np.ndarray
    labels: np.ndarray

    @cached_property
    def classes(self) -> list[np.ndarray]:
        """The vectors of each class."""
        return [self.vectors[self.labels == n] for n in range(self.vectors.shape[1] - 1)]

    @cached_property
    def means(self) -> np.ndarray:
        """The mean of each class, K x (K + 1)."""
        return np.stack([rows.mean(0) for rows in self.classes])

    @cached_property
    def covariance(self) -> np.ndarray:
        """The covariance within classes, regular."""
        centred = self.vectors - self.means[self.labels]
        within, size = centred.T @ centred / len(centred), self.vectors.shape[1]
        found: np.ndarray = within + max(RIDGE * np.trace(within) / size, 1e-12) * np.eye(size)
        return found

    @cached_property
    def whitening(self) -> np.ndarray:
        """What takes rows to deviations: W with W W^T the inverse of the covariance."""
        return _whitening(self.covariance)

    def p_value(
        self, group: np.ndarray, pooled: np.ndarray, seed: int, foreign: float = 0.0
    ) -> float:
        """Return the p-value of n x (K + 1) vectors, whose pooled probabilities are K ``pooled``.

        A share of at most ``foreign`` is of other sources. ``seed`` draws the exchanges; a value
        above LARGE is a lower bound.
        """
        group = group[:TESTED]
        left = len(group) - int(foreign * len(group))
        largest = 0.0
        for number in self._possible(group, pooled):
            rng = np.random.default_rng([seed, number])
            known = self.classes[number]
            mine = self._nearest(group, known, left)
            largest = max(largest, self._p_value(mine, known, rng))
            if largest > LARGE:
                break
        return largest

    def _possible(self, group: np.ndarray, pooled: np.ndarray) -> list[int]:
        """Return the classes that may be a group's source, the most probable first."""
        order = np.argsort(-pooled, kind="stable")
        before = np.cumsum(pooled[order]) - pooled[order]
        found: list[int] = order[before < MASS].tolist()
        away = (self.means - group.mean(0)) @ self.whitening
        nearest = int(np.square(away).sum(1).argmin())
        return list(dict.fromkeys([*found, nearest]))

    def _white(self, group: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return two samples as one, centred, in deviations."""
        both = np.concatenate([group, known])
        centred = both - both.mean(0)
        covariance = (1 - SHARED) * centred.T @ centred / len(both) + SHARED * self.covariance
        found: np.ndarray = centred @ _whitening(covariance)
        return found

    def _nearest(self, group: np.ndarray, known: np.ndarray, left: int) -> np.ndarray:
        """Return ``left`` rows of a group; one by one, the farthest on its side go."""
        white = self._white(group, known)
        rows, middle = list(range(len(group))), white[len(group) :].mean(0)
        while len(rows) > left:
            side = white[rows].mean(0) - middle
            del rows[int((white[rows] @ side).argmax())]
        return group[rows]

    def _p_value(self, group: np.ndarray, known: np.ndarray, rng: np.random.Generator) -> float:
        """Return the p-value of two samples by random exchanges, the given one among them."""
        white = self._white(group, known)
        # Of centred rows the means of the two parts are opposite: one sum gives their distance.
        chosen = np.zeros((EXCHANGES + 1, len(white)))
        drawn = rng.random((EXCHANGES, len(white)), np.float32).argsort(1)[:, : len(group)]
        np.put_along_axis(chosen[1:], drawn, 1.0, 1)
        chosen[0, : len(group)] = 1
        apart = np.square(chosen @ white).sum(1)
        # Exchanges that change nothing are as far apart but for rounding.
        return float((apart >= apart[0] * (1 - 1e-9)).mean())
