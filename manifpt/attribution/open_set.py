"""How strange an image is to an attributor, and how strange the images that it knows are.

Several scores are read from the logits, from the features before the heads' last layers, and from
the distance to the manifold; see ``scores``. The features of all heads are one vector: what is
usual in each space may be strange together. What must be fitted is fitted on validation images:

- Class means and their shared covariance, on half of the images; those that new images will be
  compared with. No known image is compared with a mean that it is part of, as no new image will be:
  the scores of each half are by means of the other, and all else is fitted on these.
- What each score is worth. Each generator is left out in turn: its logits and its mean are taken
  away, and its images are the unknown (leave-one-out, as in Neal et al., ECCV 2018, and Vaze et
  al., "Open-Set Recognition: A Good Closed-Set Classifier is All You Need?", ICLR 2022). The
  trunk was trained on them, and has learned to keep their logits low: this flatters logits, and
  promises more than truly unseen generators hold. So features have half of the say in any case;
  they, and not logits, also find images that are far from all that training has seen.
- The strangeness of known images, as a list. An image's p-value is the share of them at least as
  strange (split conformal prediction: Vovk et al., 2005; Angelopoulos & Bates, 2023, section 1),
  so that of new images of the known classes at most a share of a is rejected at p <= a, wherever
  they are like validation. Validation also chose the epoch, so it may be a little more.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from manifpt import integrity
from manifpt.attribution.gaussian import ClassGaussian
from manifpt.attribution.network import Outputs
from manifpt.errors import DamageError
from manifpt.images.sources import REAL

FEATURES_SHARE = 0.5
# So many generators at most are left out in turn.
LEFT_OUT = 20
# By one score alone no image is more familiar than so many deviations below the median: a large
# logit is no excuse for features that no known image has.
MOST_FAMILIAR = 3.0
RIDGE = 0.01
# Of each class, so many validation images are kept, which groups of images are compared with.
KEPT = 200
REMEDY = "copy the attributor again, or train it anew"
ARRAYS = ("weights", "centre", "scale", "worth", "known", "labels", "probabilities", "strangeness")
LOGITS, FEATURES, MANIFOLD = ("max_probability", "max_logit", "energy"), "features", "manifold"


class Evidence(NamedTuple):
    """Of N images against C classes, all that scores are read from, float64.

    ``pooled`` are N x C, the heads' logits times their weights, added up; ``squared`` N x C,
    squared Mahalanobis distances of the features to the class means; ``manifold`` the same, or
    None, of the distance to the nearest real.
    """

    pooled: np.ndarray
    squared: np.ndarray
    manifold: np.ndarray | None

    def without(self, number: int) -> "Evidence":
        """Return what it would be without a class: a column less."""
        pooled, squared = (np.delete(of, number, 1) for of in (self.pooled, self.squared))
        manifold = None if self.manifold is None else np.delete(self.manifold, number, 1)
        return Evidence(pooled, squared, manifold)


def pooled_logits(logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return N x C of N x heads x C logits: their softmax is the fused probability."""
    found: np.ndarray = np.einsum("nhc,h->nc", logits.astype(np.float64), weights)
    return found


def joined(outputs: Outputs) -> np.ndarray:
    """Return the features of all heads side by side, N x the sum of their widths."""
    return np.concatenate(outputs.features, axis=1)


def evidence_of(
    outputs: Outputs,
    distance: np.ndarray,
    weights: np.ndarray,
    features: ClassGaussian,
    manifold: ClassGaussian | None,
) -> Evidence:
    """Return the evidence of a network's outputs, and of N distances to the nearest reals."""
    squared = features.squared(joined(outputs))
    beside = None if manifold is None else manifold.squared(distance[:, None])
    return Evidence(pooled_logits(outputs.logits, weights), squared, beside)


def scores(evidence: Evidence) -> dict[str, np.ndarray]:
    """Return N values of each score, larger is stranger.

    ``max_probability`` is -log of the greatest (Hendrycks & Gimpel, ICLR 2017), ``max_logit`` minus
    the greatest logit (Hendrycks et al., ICML 2022), ``energy`` minus their log-sum-exp (Liu et
    al., NeurIPS 2020), ``features`` the Mahalanobis distance to the nearest class mean (Lee et al.,
    NeurIPS 2018), ``manifold`` that of the distance to the nearest real, from what it is in the
    predicted class.
    """
    top = evidence.pooled.max(1)
    energy = top + np.log(np.exp(evidence.pooled - top[:, None]).sum(1))
    found = dict(zip(LOGITS, (energy - top, -top, -energy), strict=True))
    found[FEATURES] = np.sqrt(evidence.squared.min(1))
    if evidence.manifold is not None:
        predicted = evidence.pooled.argmax(1)
        found[MANIFOLD] = np.sqrt(evidence.manifold[np.arange(len(predicted)), predicted])
    return found


@dataclass(frozen=True)
class OpenSet:
    """What tells the known from the unknown; ``known`` are the sorted scores of validation images.

    ``weights`` are those of the heads, ``centre``, ``scale`` and ``worth`` of the scores. Of some
    validation images, R, there are ``labels``, R x C fused ``probabilities``, float32, and the
    combined score, ``strangeness``.
    """

    weights: np.ndarray
    features: ClassGaussian
    manifold: ClassGaussian | None
    centre: np.ndarray
    scale: np.ndarray
    worth: np.ndarray
    known: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    strangeness: np.ndarray

    @property
    def score_names(self) -> list[str]:
        """The scores, in order."""
        return [*LOGITS, FEATURES, *([] if self.manifold is None else [MANIFOLD])]

    def scores(self, outputs: Outputs, distance: np.ndarray) -> np.ndarray:
        """Return N x scores; ``distance`` is N to the nearest reals, NaN without a manifold."""
        evidence = evidence_of(outputs, distance, self.weights, self.features, self.manifold)
        return np.stack(list(scores(evidence).values()), 1)

    def unknown_score(self, scores: np.ndarray) -> np.ndarray:
        """Return N combined scores of N x scores, float64, higher is less known.

        It is their mean in deviations of known images, weighted by their worth.
        """
        found: np.ndarray = standard(scores, self.centre, self.scale) @ self.worth
        return found

    def p_value(self, unknown_score: np.ndarray) -> np.ndarray:
        """Return the share of known images, the image itself among them, at least as strange."""
        stranger = len(self.known) - np.searchsorted(self.known, unknown_score, side="left")
        found: np.ndarray = (stranger + 1) / (len(self.known) + 1)
        return found

    def to_bytes(self) -> bytes:
        """Return it as an .npz without pickled objects."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        for name, gaussian in ((FEATURES, self.features), (MANIFOLD, self.manifold)):
            if gaussian is not None:
                arrays |= {f"means-{name}": gaussian.means, f"whitening-{name}": gaussian.whitening}
        sink = io.BytesIO()
        np.savez(sink, **arrays)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, uri: str = "open set") -> "OpenSet":
        """Return what ``to_bytes`` wrote; anything else raises DamageError, which names ``uri``."""
        arrays = integrity.arrays(data, uri, REMEDY)
        wanted = {*ARRAYS, f"means-{FEATURES}", f"whitening-{FEATURES}"}
        if wanted - arrays.keys():
            raise DamageError(f"{uri}: lacks {min(wanted - arrays.keys())}; {REMEDY}")

        def gaussian(name: str) -> ClassGaussian:
            return ClassGaussian(arrays[f"means-{name}"], arrays[f"whitening-{name}"])

        manifold = gaussian(MANIFOLD) if f"means-{MANIFOLD}" in arrays else None
        rest = {name: arrays[name] for name in ARRAYS}
        return cls(features=gaussian(FEATURES), manifold=manifold, **rest)


def standard(scores: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return N x scores in deviations of known images, none below -MOST_FAMILIAR."""
    found: np.ndarray = np.maximum((scores - centre) / scale, -MOST_FAMILIAR)
    return found


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the share of pairs in which the unknown has the higher score; ties count half."""
    ordered = np.sort(known)
    below = np.searchsorted(ordered, unknown, "left") + np.searchsorted(ordered, unknown, "right")
    return float(below.mean() / 2 / len(known))


class Known(NamedTuple):
    """What a network says of N images, the numbers of their classes, and N ``distance``.

    That is to the nearest real in the first space with a manifold, NaN without one.
    """

    outputs: Outputs
    labels: np.ndarray
    distance: np.ndarray


class Fitted(NamedTuple):
    """An open set, and the AUROC of each score and of ``combined`` for each generator left out."""

    open_set: OpenSet
    left_out: dict[str, dict[str, float]]


def fit_open_set(known: Known, classes: Sequence[str], weights: np.ndarray) -> Fitted | None:
    """Fit on validation images; None if a class has fewer than two of them.

    ``weights`` are those of the heads.
    """
    labels = known.labels
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        return None
    half = _every_other(labels)
    folds = [_judged(known, classes, weights, by, ~by) for by in (half, ~half)]
    found = np.concatenate([fold.scores for fold in folds])
    left_out = {
        name: tuple(map(np.concatenate, zip(*(f.left_out[name] for f in folds), strict=True)))
        for name in folds[0].left_out
    }
    sides = (np.concatenate(side) for side in zip(*left_out.values(), strict=True))
    worth = (1 - FEATURES_SHARE) * fit_worth(*sides)
    worth[len(LOGITS)] += FEATURES_SHARE
    of = np.concatenate([labels[~half], labels[half]])
    kept = np.concatenate([np.flatnonzero(of == n)[:KEPT] for n in range(len(classes))])
    pooled = np.concatenate([fold.pooled for fold in folds])[kept]
    open_set = OpenSet(
        weights,
        *folds[0].by,
        worth=worth,
        known=np.sort(found @ worth),
        labels=of[kept],
        probabilities=_softmax(pooled).astype(np.float32),
        strangeness=found[kept] @ worth,
    )
    names = open_set.score_names
    return Fitted(open_set, {n: _aurocs(names, worth, *pair) for n, pair in left_out.items()})


class By(NamedTuple):
    """What judges images: the Gaussians of the classes, and where and how wide usual scores lie."""

    features: ClassGaussian
    manifold: ClassGaussian | None
    centre: np.ndarray
    scale: np.ndarray


class Judged(NamedTuple):
    """Images, judged by what others were fitted on: N x scores and N x C pooled logits.

    Scores are standard, as are those of each generator left out: of the others' images and of its.
    """

    by: By
    scores: np.ndarray
    pooled: np.ndarray
    left_out: dict[str, tuple[np.ndarray, np.ndarray]]


def _judged(
    known: Known, classes: Sequence[str], weights: np.ndarray, fitted: np.ndarray, rows: np.ndarray
) -> Judged:
    """Fit Gaussians on some images, the mask ``fitted``, and judge others by them.

    Two such halves have Gaussians of their own, and so scores of another level; in deviations from
    what is usual by each, they are alike.
    """
    outputs, labels, distance = known
    manifold = None
    features = ClassGaussian.fit(joined(outputs)[fitted], labels[fitted], len(classes))
    if not np.isnan(distance).any():
        manifold = ClassGaussian.fit(distance[fitted, None], labels[fitted], len(classes))
    some = Outputs(outputs.logits[rows], [one[rows] for one in outputs.features])
    evidence = evidence_of(some, distance[rows], weights, features, manifold)
    found = np.stack(list(scores(evidence).values()), 1)
    by = By(features, manifold, *_location(found))
    left_out = {
        name: (standard(others, by.centre, by.scale), standard(own, by.centre, by.scale))
        for name, (others, own) in _left_out(evidence, labels[rows], classes).items()
    }
    return Judged(by, standard(found, by.centre, by.scale), evidence.pooled, left_out)


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = odds / odds.sum(1, keepdims=True)
    return found


def _every_other(labels: np.ndarray) -> np.ndarray:
    """Return a mask of every other image of each class, the first among them."""
    mask = np.zeros(len(labels), dtype=bool)
    for number in np.unique(labels):
        mask[np.flatnonzero(labels == number)[::2]] = True
    return mask


def _location(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the median of each score, and the deviation of a normal one with its quartiles."""
    low, centre, high = np.quantile(scores, [0.25, 0.5, 0.75], axis=0)
    scale = (high - low) / 1.349
    return centre, np.where(scale > 0, scale, np.maximum(scores.std(0), 1e-12))


def _left_out(
    evidence: Evidence, labels: np.ndarray, classes: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each generator left out the scores of the others' images, and of its own."""
    generators = [n for n, name in enumerate(classes) if name != REAL]
    step = -(-len(generators) // LEFT_OUT)
    found = {}
    for number in generators[::step]:
        made = np.stack(list(scores(evidence.without(number)).values()), 1)
        mine = labels == number
        found[classes[number]] = (made[~mine], made[mine])
    return found


def _aurocs(
    names: Sequence[str], worth: np.ndarray, known: np.ndarray, unknown: np.ndarray
) -> dict[str, float]:
    """Return the AUROC of each of the standard scores, the columns, and of the combined."""
    found = dict(zip(names, map(auroc, known.T, unknown.T), strict=True))
    return found | {"combined": auroc(known @ worth, unknown @ worth)}


def fit_worth(known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return what each score is worth, not negative and of sum 1: a logistic regression.

    ``known`` and ``unknown`` are rows x scores; both sides count alike, however many they are.
    """
    sides = [torch.from_numpy(known), torch.from_numpy(unknown)]
    raw = torch.zeros(known.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw], max_iter=100, line_search_fn="strong_wolfe")
    softplus = torch.nn.functional.softplus

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        worth = softplus(raw[:-1])
        margins = [sides[0] @ worth + raw[-1], -(sides[1] @ worth + raw[-1])]
        wrong = torch.stack([softplus(margin).mean() for margin in margins]).mean()
        value = wrong + RIDGE / 2 * worth.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    worth = softplus(raw.detach()[:-1])
    shares: np.ndarray = (worth / worth.sum()).numpy()
    return shares
