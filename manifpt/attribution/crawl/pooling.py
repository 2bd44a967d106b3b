"""The verdict on a group of images, from the pooled evidence of its images.

A group (a site, an account, an album) is taken to have one source c. Each of its images is of that
source with probability 1 - eps, else of any source, so that

    p(images | c) / p(images)  =  prod over images of  (1 - eps) p(c | image) / p(c) + eps

with p(c) the share of c in training, which is a factor of a classifier's probabilities. No image
can weigh more than log(((1 - eps) / p(c) + eps) / eps), so a few foreign images don't decide. The
prior probabilities of a group's source are equal.

Images count as independent, given the source. Near-duplicates are not independent, and make a
verdict surer than it should be; exact copies, by the hash of their bytes, count once.

``profiles`` tests first whether the source is one of the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from manifpt.attribution.crawl.crawl_format import GroupRow
from manifpt.attribution.model.attributor_format import AttributorManifest
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import USUAL, Rule
from manifpt.attribution.unknown.profiles import Profiles
from manifpt.images.sources import REAL

EPS = 0.1
CONFIDENCE = 0.95
RESAMPLES = 400
# With fewer images neither an interval nor the p-value of an unknown source is computed.
FEWEST = 5
# A group with more distinct images is represented by the first of them, ordered by hash.
MOST = 10_000


def log_evidence(probabilities: np.ndarray, priors: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Return each image's evidence for each class, N x K, from N x K probabilities."""
    found: np.ndarray = np.log((1 - eps) * probabilities / priors + eps)
    return found


def group_probabilities(evidence: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classes from summed evidence, ... x K."""
    shifted = np.exp(evidence - evidence.max(-1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(-1, keepdims=True)
    return found


def bootstrap_interval(evidence: np.ndarray, best: int, seed: int) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the probability of a class.

    It resamples the images, N x K evidence (Efron & Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13); None for fewer than FEWEST.
    """
    count = len(evidence)
    if count < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    found = group_probabilities(draws @ evidence)[:, best]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


class ImageEvidence(NamedTuple):
    """The evidence of N images.

    It has the hashes of their bytes, N x K ``probabilities``, each image's own decision, and N x D
    ``coordinates`` of the image itself (see ``profiles``), None from an attributor without a score
    of the unknown.
    """

    hashes: Sequence[str]
    probabilities: np.ndarray
    decisions: Sequence[str]
    coordinates: np.ndarray | None = None


@dataclass(frozen=True)
class Pooling:
    """The rule by which groups are judged.

    It has the classes, their shares in training, the share of foreign images, and the rule of
    decisions. Here ``false_rejection`` is that of groups, and ``sure`` is a lower limit for the
    probability and for the low end of its interval. Without ``profiles`` a group is unknown if most
    of its images are.
    """

    classes: tuple[str, ...]
    priors: tuple[float, ...]
    eps: float = EPS
    rule: Rule = USUAL
    profiles: Profiles | None = None

    @classmethod
    def of(cls, attributor: TrainedAttributor, eps: float = EPS, rule: Rule = USUAL) -> "Pooling":
        """Return the pooling of an attributor's probabilities."""
        priors, open_set = priors_of(attributor.manifest), attributor.open_set
        profiles = None
        if open_set is not None:
            profiles = Profiles(open_set.coordinates, open_set.labels)
        return cls(tuple(attributor.classes), priors, eps, rule, profiles)

    def judge(self, group: str, images: ImageEvidence, count: int | None = None) -> GroupRow:
        """Return a group's row of the table ``groups``.

        The order of the images changes nothing. ``count`` is their number with copies, if copies
        have been left out already.
        """
        _, order = np.unique(np.array(images.hashes, dtype=object).astype(str), return_index=True)
        order = order[:MOST]
        probabilities = images.probabilities[order]
        evidence = log_evidence(probabilities, np.array(self.priors), self.eps)
        total = group_probabilities(evidence.sum(0))
        best = int(total.argmax())
        seed = int.from_bytes(sha256(group.encode()).digest()[:8], "big")
        low, high = bootstrap_interval(evidence, best, seed) or (None, None)
        unknown = float(np.mean([images.decisions[i] == "unknown" for i in order]))
        coordinates = images.coordinates
        unknown_p = None if coordinates is None else self.unknown_p(coordinates[order])
        strange = unknown > 0.5 if unknown_p is None else unknown_p <= self.rule.false_rejection
        surely = float(total[best]) if low is None else low
        return {
            "group": group,
            "images": len(images.hashes) if count is None else count,
            "counted": len(order),
            "prediction": self.classes[best],
            "probability": float(total[best]),
            "probability_low": low,
            "probability_high": high,
            "agreeing": float((probabilities.argmax(1) == best).mean()),
            "unknown": unknown,
            "unknown_p": unknown_p,
            "decision": "unknown" if strange else self._answer(best, surely),
        }

    def unknown_p(self, coordinates: np.ndarray) -> float | None:
        """Return the p-value of images of one source, N x D coordinates, to be of a known one.

        None for fewer than FEWEST, or where the attributor cannot tell.
        """
        if self.profiles is None or len(coordinates) < FEWEST:
            return None
        return self.profiles.p_value(coordinates, self.eps)

    def _answer(self, best: int, surely: float) -> str:
        """Return ``unsure``, ``real`` or ``generator``."""
        if surely < self.rule.sure:
            return "unsure"
        return REAL if self.classes[best] == REAL else "generator"


def priors_of(manifest: AttributorManifest) -> tuple[float, ...]:
    """Return the prior probabilities of the classes in an attributor's probabilities.

    They are those of its training images; last layers that were fitted by ``extend`` weigh all
    classes alike.
    """
    classes = manifest["classes"]
    if manifest.get("extensions"):
        return (1 / len(classes),) * len(classes)
    counts = np.array([manifest["rows"]["train"][name] for name in classes], dtype=np.float64)
    return tuple((counts / counts.sum()).tolist())
