"""Scores of how unlike the known images an image is, and their p-values.

Different scores detect generators that are near to known ones and generators that are far from all
of them, so an image has three:

- ``max_probability``: near relatives of several classes are of none of them for sure.
- ``distance``, the Mahalanobis distance of the features to the nearest class mean: an image far
  from all training images may be taken for a class for sure.
- ``direction``, the same of features of unit length (Mueller and Hein, "Mahalanobis++", ICML 2025,
  arXiv 2505.18032): much of the distance is the length of the features, which says less of the
  source than their direction does.

Features are the coordinates of the heads that are linear discriminants, where there are such, else
the inputs of all heads' last layers. They are one vector: values that are usual in each space may
be strange together. The share of known images at least as strange by a score is a p-value, and the
three are combined by Fisher's sum of their logarithms (Fisher, Statistical Methods for Research
Workers, 1932, section 21.1). They depend on each other, so the sum is calibrated on validation: an
image's p-value is the share of known validation images with as large a sum.

No validation image is judged by a fit that includes it, as no new image will be: class means and
covariances are fitted on each half of the images, and judge the other half. About a share a of new
images of the known classes has p <= a, if they are like validation images. This holds for all
classes together; ``rejected_by_class`` has the share of each. The epoch was chosen on validation,
too, so the share may be a little more.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from manifpt.attribution.unknown.gaussian import ClassGaussian
from manifpt.attribution.unknown.known import Known, Outputs
from manifpt.errors import DamageError, ManifptError
from manifpt.outputs import integrity

# Validation images of each class that are kept: groups of images are compared with them.
KEPT = 200
REMEDY = "copy the attributor again, or train it anew"
SCORES = ("max_probability", "distance", "direction")
ARRAYS = ("weights", "discriminants", "usual", "known", "labels", "coordinates")
GAUSSIANS = ("features", "directions")
LEAST_LENGTH = 1e-12
# An array in files of earlier versions, which had no coordinates for groups.
EARLIER = "strangeness"


def pooled_logits(logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return N x C of N x heads x C logits: their softmax is the fused probability."""
    found: np.ndarray = np.einsum("nhc,h->nc", logits.astype(np.float64), weights)
    return found


def scored_features(outputs: Outputs, discriminants: np.ndarray) -> list[np.ndarray]:
    """Return the features that judge images: of the heads of those numbers, if any, else of all."""
    return [outputs.features[n] for n in discriminants] or outputs.features


def directions(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return each head's features, N x its width, divided by their length, float64."""
    lengths = [np.linalg.norm(one.astype(np.float64), axis=1, keepdims=True) for one in features]
    return [one / np.maximum(n, LEAST_LENGTH) for one, n in zip(features, lengths, strict=True)]


def coordinates_of(
    outputs: Outputs, weights: np.ndarray, discriminants: np.ndarray, unknown_score: np.ndarray
) -> np.ndarray:
    """Return the coordinates by which groups are compared, N x D float32 (see ``profiles``).

    They are the C pooled logits, centred, since a constant is no information; the coordinates of
    the heads that are discriminants; and N ``unknown_score``, which depends on all features.
    """
    pooled = pooled_logits(outputs.logits, weights)
    centred = pooled - pooled.mean(1, keepdims=True)
    beside = [outputs.features[n] for n in discriminants]
    parts = [centred, *beside, unknown_score[:, None]]
    return np.concatenate(parts, axis=1).astype(np.float32)


class Judge(NamedTuple):
    """Classes as Gaussians: of N x d features, and of their directions."""

    features: ClassGaussian
    directions: ClassGaussian

    @classmethod
    def fit(cls, features: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> "Judge":
        """Fit on the features of some heads; each class needs an image."""
        both = (np.concatenate(one, axis=1) for one in (features, directions(features)))
        return cls(*(ClassGaussian.fit(one, labels, classes) for one in both))

    def scores(self, pooled: np.ndarray, features: Sequence[np.ndarray]) -> np.ndarray:
        """Return N x SCORES, larger is stranger, of N x C pooled logits and features.

        The first is -log of the greatest probability (Hendrycks & Gimpel, ICLR 2017), the others
        are Mahalanobis distances to the nearest class mean (Lee et al., NeurIPS 2018).
        """
        below = pooled - pooled.max(1, keepdims=True)
        far, turned = (
            np.sqrt(gaussian.squared(np.concatenate(of, axis=1)).min(1))
            for gaussian, of in zip(self, (features, directions(features)), strict=True)
        )
        return np.stack([np.log(np.exp(below).sum(1)), far, turned], 1)


def count_as_unusual(usual: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the number of M known images as strange as each of N images, by score, N x S.

    ``usual`` are M x S scores of the known, each column sorted.
    """
    columns = zip(usual.T, scores.T, strict=True)
    found = [len(usual) - np.searchsorted(known, new, side="left") for known, new in columns]
    return np.stack(found, 1)


@dataclass(frozen=True)
class OpenSet:
    """The scores that separate the known from the unknown.

    ``weights`` are those of the heads, ``discriminants`` the numbers of such heads, ``usual`` the
    scores of some validation images, M x SCORES, and ``known`` the combined ones of all, sorted.
    ``labels`` and ``coordinates``, R x D float32, are those of R validation images, KEPT a class.
    """

    weights: np.ndarray
    discriminants: np.ndarray
    features: ClassGaussian
    directions: ClassGaussian
    usual: np.ndarray
    known: np.ndarray
    labels: np.ndarray
    coordinates: np.ndarray

    @property
    def score_names(self) -> list[str]:
        """The scores, in order."""
        return list(SCORES)

    def scores(self, outputs: Outputs) -> np.ndarray:
        """Return N x scores, float64."""
        judge = Judge(self.features, self.directions)
        pooled = pooled_logits(outputs.logits, self.weights)
        return judge.scores(pooled, scored_features(outputs, self.discriminants))

    def unknown_score(self, scores: np.ndarray) -> np.ndarray:
        """Return N combined scores of N x scores, float64, higher is less known."""
        shares = (count_as_unusual(self.usual, scores) + 1) / (len(self.usual) + 1)
        found: np.ndarray = -np.log(shares).sum(1)
        return found

    def p_value(self, unknown_score: np.ndarray) -> np.ndarray:
        """Return the share of known images, the image itself among them, at least as strange."""
        stranger = len(self.known) - np.searchsorted(self.known, unknown_score, side="left")
        found: np.ndarray = (stranger + 1) / (len(self.known) + 1)
        return found

    def coordinates_of(self, outputs: Outputs, unknown_score: np.ndarray) -> np.ndarray:
        """Return N x D coordinates, float32, by which groups of images are compared."""
        return coordinates_of(outputs, self.weights, self.discriminants, unknown_score)

    def to_bytes(self) -> bytes:
        """Return it as an .npz without pickled objects."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        for name in GAUSSIANS:
            gaussian = getattr(self, name)
            arrays |= {f"means-{name}": gaussian.means, f"whitening-{name}": gaussian.whitening}
        sink = io.BytesIO()
        np.savez(sink, **arrays)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, uri: str = "open set") -> "OpenSet":
        """Read the bytes of ``to_bytes``.

        A file of an earlier version raises ManifptError, and anything else DamageError; both name
        ``uri``.
        """
        arrays = integrity.arrays(data, uri, REMEDY)
        if EARLIER in arrays:
            raise ManifptError(
                f"{uri}: an earlier version told the unknown by other scores; train the attributor "
                "anew, from the same artifacts"
            )
        wanted = {*ARRAYS, *(f"{part}-{n}" for part in ("means", "whitening") for n in GAUSSIANS)}
        if wanted - arrays.keys():
            raise DamageError(f"{uri}: lacks {min(wanted - arrays.keys())}; {REMEDY}")
        features, directions = (
            ClassGaussian(arrays[f"means-{name}"], arrays[f"whitening-{name}"])
            for name in GAUSSIANS
        )
        rest = {name: arrays[name] for name in ARRAYS}
        return cls(features=features, directions=directions, **rest)


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the share of pairs in which the unknown has the higher score; ties count half."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, "left") + np.searchsorted(ordered, unknown, "right")
    return float(below.mean() / 2 / len(known))


class Fitted(NamedTuple):
    """An open set, and the p-values of the N images that it was fitted on, in their order."""

    open_set: OpenSet
    p_values: np.ndarray


def fit_open_set(
    known: Known, classes: int, weights: np.ndarray, discriminants: Sequence[int] = ()
) -> Fitted | None:
    """Fit on validation images; None if one of the ``classes`` has fewer than two of them.

    ``weights`` are those of the heads, ``discriminants`` the numbers of those that are such.
    Degraded images count as known like others, but groups are compared with images that are not
    degraded, since no group has a mean like that of both kinds together.
    """
    outputs, labels = known.outputs, known.labels
    if np.bincount(labels, minlength=classes).min() < 2:
        return None
    heads = np.array(discriminants, dtype=np.int64)
    pooled, features = pooled_logits(outputs.logits, weights), scored_features(outputs, heads)
    half = _every_other(labels)
    combined = np.empty(len(labels))
    for fitted in (~half, half):  # new images are judged by the features of the last judge
        judge = Judge.fit([one[fitted] for one in features], labels[fitted], classes)
        scores = judge.scores(pooled[~fitted], [one[~fitted] for one in features])
        usual = np.sort(scores, 0)
        # An image is among those that are as strange as itself.
        combined[~fitted] = -np.log(count_as_unusual(usual, scores) / len(usual)).sum(1)
    clean = known.degradations == ""
    kept = [np.flatnonzero(clean & (labels == n))[:KEPT] for n in range(classes)]
    shown = np.concatenate(kept)
    coordinates = coordinates_of(outputs, weights, heads, combined)
    open_set = OpenSet(
        weights, heads, *judge, usual, np.sort(combined), labels[shown], coordinates[shown]
    )
    strange = count_as_unusual(open_set.known[:, None], combined[:, None])[:, 0]
    return Fitted(open_set, strange / len(labels))


def rejected_by_class(
    names: np.ndarray, rejected: np.ndarray, classes: Sequence[str]
) -> dict[str, float]:
    """Return the share of each class's images that is rejected, of those classes that have any.

    ``names`` are the classes of N images, ``rejected`` a mask of them.
    """
    shares = ((name, rejected[names == name]) for name in classes)
    return {name: float(of.mean()) for name, of in shares if len(of)}


def _every_other(labels: np.ndarray) -> np.ndarray:
    """Return a mask of every other image of each class, the first among them."""
    mask = np.zeros(len(labels), dtype=bool)
    for number in np.unique(labels):
        mask[np.flatnonzero(labels == number)[::2]] = True
    return mask
