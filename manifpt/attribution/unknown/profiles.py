"""A test whether a group of images is of a known source, by the mean of its images.

One image of an unknown generator is much like one of a known generator (see ``open_set``). A group
of them differs, because its mean is far from the mean of each class. Images are compared in
coordinates without bound: pooled logits, the coordinates of linear discriminants, and the score of
the unknown, all scaled so that the covariance within classes is the identity. Probabilities are
bounded, and hide the difference between a known generator and one that differs in the seed alone:
the images of the latter are attributed to the former, only more or less surely than its own.

A share of a group's images may be foreign. Therefore the mean is trimmed: the share of the images
that is farthest from the class is left out. The usual distance of a group's mean from a class is
calibrated on validation: groups are drawn from the images of the class and compared with the mean
of others of its images, and in each a share is replaced by images of other classes. The p-value is
the share of such groups that are as far; each class and each size has its own. A validation group
and the images that it is compared with are few; for groups that are larger than half of the images
this makes p-values larger than they need be.

A group is unknown if it is of no class, so its p-value is the largest of all classes' (an
intersection-union test; Berger, Technometrics 1982), and those with the nearest means are asked.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manifpt.attribution.unknown.gaussian import ClassGaussian

DRAWN = 399
# Classes, those with the nearest means, that may be a group's source.
NEAREST = 3
# A larger group is tested by its first 200 images: as many are kept of each class.
TESTED = 200
# Drawn distances are remembered for at most this many pairs of class and group size.
REMEMBERED = 4096


@dataclass(frozen=True, eq=False)
class Profiles:
    """Validation images: R x D ``coordinates`` and their classes, each with two at least.

    The class of each is in ``labels``, from 0.
    """

    coordinates: np.ndarray
    labels: np.ndarray

    @cached_property
    def scale(self) -> np.ndarray:
        """The matrix from coordinates to deviations within classes, D x D."""
        found = ClassGaussian.fit(self.coordinates, self.labels, int(self.labels.max()) + 1)
        return found.whitening.T.astype(np.float64)

    @cached_property
    def classes(self) -> list[np.ndarray]:
        """The images of each class, in deviations."""
        found = self.coordinates @ self.scale
        return [found[self.labels == n] for n in range(int(self.labels.max()) + 1)]

    @cached_property
    def means(self) -> np.ndarray:
        """The mean of each class, in deviations."""
        return np.stack([rows.mean(0) for rows in self.classes])

    @cached_property
    def _distances(self) -> dict[tuple[int, int, int], np.ndarray]:
        return {}

    def p_value(self, group: np.ndarray, foreign: float = 0.0) -> float:
        """Return the p-value of n x D coordinates, of which a share ``foreign`` at most is foreign.

        It depends on these arguments alone: validation groups are drawn with fixed seeds.
        """
        rows = group[:TESTED].astype(np.float64) @ self.scale
        most = foreign_of(len(rows), foreign)
        apart = np.array([trimmed_distance(rows, mean, most) for mean in self.means])
        nearest = apart.argsort(kind="stable")[:NEAREST].tolist()
        # Sums in another order are the same but for rounding.
        as_far = [
            (self.usual_distances(n, len(rows), most) >= apart[n] * (1 - 1e-9)).sum()
            for n in nearest
        ]
        return float((1 + max(as_far)) / (1 + DRAWN))

    def usual_distances(self, number: int, size: int, foreign: int) -> np.ndarray:
        """Return DRAWN squared distances of groups of a class with ``foreign`` of other classes."""
        key = (number, size, foreign)
        if key not in self._distances:
            if len(self._distances) >= REMEMBERED:
                self._distances.clear()
            self._distances[key] = self._drawn(*key)
        return self._distances[key]

    def _drawn(self, number: int, size: int, foreign: int) -> np.ndarray:
        rng = np.random.default_rng([number, size, foreign])
        own = self.classes[number]
        others = np.concatenate([rows for n, rows in enumerate(self.classes) if n != number])
        half = len(own) // 2
        found = np.empty(DRAWN)
        for n in range(DRAWN):
            order = rng.permutation(len(own))
            if size <= half:
                mine, rest = order[:size], order[size:]
            else:
                mine, rest = rng.choice(order[:half], size), order[half:]
            group = own[mine]
            group[:foreign] = others[rng.integers(0, len(others), foreign)]
            found[n] = trimmed_distance(group, own[rest].mean(0), foreign)
        return found


def foreign_of(size: int, share: float) -> int:
    """Return the largest number of foreign images in a group, rounded; one image never is."""
    return min(size - 1, int(share * size + 0.5))


def trimmed_distance(rows: np.ndarray, mean: np.ndarray, left_out: int) -> float:
    """Return the squared distance from D numbers of the mean of n x D rows.

    The ``left_out`` farthest rows are left out.
    """
    apart = rows - mean
    if left_out:
        near = np.square(apart).sum(1).argsort(kind="stable")[: len(rows) - left_out]
        apart = apart[near]
    return float(np.square(apart.mean(0)).sum())
