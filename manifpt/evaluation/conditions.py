"""Accuracy of vectors where training is harder: few images of each class, or other content.

The classifier is linear discriminant analysis, whose shrinkage validation images choose. It has no
random start, so what varies is the choice of training images. Content is a cluster of coarse
images: means over blocks keep shapes and brightness, and average the traces of generators away.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from manifpt import storage
from manifpt.artifacts.branches import (
    ArtifactBranch,
    artifact_column,
    of_classes,
    open_artifacts,
    read_branches,
)
from manifpt.attribution.model.discriminant import fit_discriminant
from manifpt.images.stacks import image_starts
from manifpt.storage import tensors

CLUSTERS, FOLDS = 12, 3
COARSE = 7  # blocks along each side
LEAST = 5  # training images of a class without which a fold leaves the class out


class Rows(NamedTuple):
    """Images of a split: vectors, N x d; numbers of their classes, N; ids, N, sorted."""

    vectors: np.ndarray
    numbers: np.ndarray
    ids: np.ndarray

    def at(self, places: np.ndarray) -> "Rows":
        """Return the rows at some places, or where a mask is true."""
        return Rows(*(values[places] for values in self))


class SplitRows(NamedTuple):
    """The images of each split."""

    train: Rows
    validation: Rows
    test: Rows


def split_rows(artifacts: str, classes: Sequence[str]) -> SplitRows:
    """Return the artifacts of one space as vectors; a large image has its first tile's."""
    branch = open_artifacts([artifacts])[0]
    return SplitRows(*(_rows(branch, split, classes) for split in SplitRows._fields))


def _rows(branch: ArtifactBranch, split: str, classes: Sequence[str]) -> Rows:
    vectors: list[np.ndarray] = []
    sources: list[str] = []
    ids: list[str] = []
    for path in branch.files(split):
        table = of_classes(read_branches([storage.join(branch.uri, path)]), classes)
        begins = image_starts(table)
        found = tensors.from_column(table[artifact_column(0)])[begins]
        vectors.append(found.reshape(len(found), -1))
        for name, kept in (("source", sources), ("id", ids)):
            texts = table[name].to_pylist()
            kept += [texts[row] for row in begins]
    order = np.argsort(np.array(ids), kind="stable")
    place = {name: number for number, name in enumerate(classes)}
    numbers = np.array([place[name] for name in sources])
    return Rows(np.concatenate(vectors)[order], numbers[order], np.array(ids)[order])


def classified(train: Rows, validation: Rows, test: Rows) -> np.ndarray:
    """Return which test images discriminant analysis classifies correctly, N bool.

    The numbers of classes are those in ``train``, which has all of them.
    """
    classes, train_numbers = np.unique(train.numbers, return_inverse=True)
    counts = np.bincount(train_numbers)
    numbers = np.searchsorted(classes, validation.numbers)
    parts = [(train.vectors, train_numbers)]
    found = fit_discriminant(parts, counts.tolist(), (validation.vectors, numbers))
    predicted: np.ndarray = found.logits(test.vectors).argmax(1).numpy()
    right: np.ndarray = classes[predicted] == test.numbers
    return right


def some_of_each(numbers: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return places of ``counts[c]`` images of each class c, or of all if it has fewer.

    >>> places = some_of_each(np.array([0, 0, 0, 1, 1]), np.array([2, 9]), np.random.default_rng(0))
    >>> np.array([0, 0, 0, 1, 1])[places]
    array([0, 0, 1, 1])
    """
    order = rng.permutation(len(numbers))
    ranks = np.empty(len(numbers), np.int64)
    for number in range(len(counts)):
        mine = order[numbers[order] == number]
        ranks[mine] = np.arange(len(mine))
    return np.flatnonzero(ranks < counts[numbers])


def few_images(data: SplitRows, count: int, draws: int) -> np.ndarray:
    """Return which test images are right with ``count`` training images a class, draws x N.

    As many validation images of each class choose the shrinkage.
    """
    limits = np.full(data.train.numbers.max() + 1, count)
    hits = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        train, validation = (rows.at(some_of_each(rows.numbers, limits, rng)) for rows in data[:2])
        hits.append(classified(train, validation, data.test))
    return np.array(hits)


def coarse(images: np.ndarray) -> np.ndarray:
    """Return N x C x H x W images as means over about 7 x 7 blocks, N x 49 C.

    >>> coarse(np.ones((2, 1, 28, 28))).shape
    (2, 49)
    """
    rows, columns = (np.linspace(0, side, COARSE + 1).astype(int)[:-1] for side in images.shape[2:])
    sums = np.add.reduceat(np.add.reduceat(images, rows, 2), columns, 3)
    areas = np.add.reduceat(np.add.reduceat(np.ones(images.shape[2:]), rows, 0), columns, 1)
    means: np.ndarray = sums / areas
    return means.reshape(len(images), -1)


def content_folds(images: SplitRows, shape: Sequence[int]) -> list[np.ndarray]:
    """Return the fold of each image, by split: 0, 1 or 2, N int each.

    ``images`` are images of ``shape`` as vectors. Clusters of the coarse training images are dealt
    to folds, the largest first, each to the fold that is smallest by then.
    """
    from sklearn.cluster import KMeans

    coarsened = [coarse(rows.vectors.reshape(-1, *shape)) for rows in images]
    means = KMeans(CLUSTERS, n_init=4, random_state=0).fit(coarsened[0])
    sizes = np.bincount(means.labels_, minlength=CLUSTERS)
    fold_of, totals = np.zeros(CLUSTERS, np.int64), np.zeros(FOLDS)
    for cluster in np.argsort(-sizes, kind="stable"):
        fold_of[cluster] = totals.argmin()
        totals[fold_of[cluster]] += sizes[cluster]
    return [fold_of[means.predict(rows)] for rows in coarsened]


class ContentShift(NamedTuple):
    """Which test images are right, N bool: trained on other content, and on any content.

    Both have the same number of training images of each class. ``left_out`` counts classes that a
    fold left out, over all folds.
    """

    other: np.ndarray
    same: np.ndarray
    left_out: int


def content_shift(data: SplitRows, folds: Sequence[np.ndarray]) -> ContentShift:
    """Classify each fold of the test images by a training on the other folds."""
    other, same, left_out = [], [], 0
    train_folds, validation_folds, test_folds = folds
    for fold in range(FOLDS):
        apart = [data.train.at(train_folds != fold), data.validation.at(validation_folds != fold)]
        classes = data.train.numbers.max() + 1
        counts = [np.bincount(rows.numbers, minlength=classes) for rows in apart]
        usable = (counts[0] >= LEAST) & (counts[1] >= 1)
        left_out += int((~usable).sum())
        apart = [rows.at(usable[rows.numbers]) for rows in apart]
        rng = np.random.default_rng(fold)
        drawn = [
            rows.at(some_of_each(rows.numbers, np.where(usable, count, 0), rng))
            for rows, count in zip(data[:2], counts, strict=True)
        ]
        test = data.test.at((test_folds == fold) & usable[data.test.numbers])
        other.append(classified(apart[0], apart[1], test))
        same.append(classified(drawn[0], drawn[1], test))
    return ContentShift(np.concatenate(other), np.concatenate(same), left_out)
