"""Paired differences of accuracy: two attributors on the same test images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.evaluation.closed_set import CONFIDENCE, RESAMPLES
from manifpt.evaluation.score_report import SCORES
from manifpt.outputs import manifests


class Difference(NamedTuple):
    """A difference of accuracies with the ends of its bootstrap interval.

    ``p_value`` is two-sided: twice the share of samples on the other side of 0, at most 1.
    """

    mean: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def hits(evaluations: Sequence[str]) -> np.ndarray:
    """Return which test images were classified correctly, seeds x images, sorted by id.

    ``evaluations`` are folders of finished evaluations on the same images, one for each seed.
    Raises ManifptError if their images differ.
    """
    rows: list[dict[str, bool]] = []
    for folder in evaluations:
        files = manifests.require(folder, "evaluation", "paired difference:")["files"]
        paths = [file["path"] for file in files if file["folder"] == SCORES]
        row: dict[str, bool] = {}
        for path in paths:
            columns = ["id", "source", "prediction"]
            table = storage.read_parquet(storage.join(folder, path), columns)
            ids, sources, predictions = (table[name].to_pylist() for name in columns)
            pairs = zip(sources, predictions, strict=True)
            row |= dict(zip(ids, (source == found for source, found in pairs), strict=True))
        if rows and row.keys() != rows[0].keys():
            raise ManifptError(
                f"{folder}: has other test images than {evaluations[0]}; compare evaluations of "
                "the same images"
            )
        rows.append(row)
    order = sorted(rows[0])
    return np.array([[row[name] for name in order] for row in rows])


def difference(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Difference:
    """Return the accuracy of ``ours`` less that of ``theirs``, with a bootstrap interval.

    Both are seeds x images, with the same images and the same number of seeds. Images and seeds
    are resampled independently of each other (the pigeonhole bootstrap of Owen, The pigeonhole
    bootstrap, Annals of Applied Statistics 1(2), 2007); one seed alone is not resampled, so the
    interval then holds for this training only.

    >>> right = np.array([[True, True, True, False]])
    >>> difference(right, right)
    Difference(mean=0.0, low=0.0, high=0.0, p_value=1.0)
    >>> difference(right, ~right).mean
    0.5
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{ours.shape} and {theirs.shape}: not the same seeds x images")
    gain = ours.astype(np.float32) - theirs
    seeds, images = gain.shape
    random = np.random.default_rng(seed)
    weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    means = np.empty(RESAMPLES)
    for number, of_seeds in enumerate(weights):
        means[number] = (of_seeds @ gain[:, random.integers(images, size=images)]).mean()
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(beyond)) / (1 + RESAMPLES))
    return Difference(float(gain.mean()), float(low), float(high), p_value)
