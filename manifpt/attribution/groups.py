"""Many images, one verdict: the evidence of a group's images pooled.

A group (a site, an account, an album) is taken to have one source c. Each of its images is of that
source with probability 1 - eps, else it could be anything, so that

    p(images | c) / p(images)  =  prod over images of  (1 - eps) p(c | image) / p(c) + eps

with p(c) the share of c in training, which a classifier's probabilities have in them. No image can
weigh more than log(((1 - eps) / p(c) + eps) / eps), so a few foreign ones don't decide. A group's
source is as likely to be any class as any other, before its images are seen.

Images count as independent, given the source. Near-duplicates are not, and make a verdict surer
than it should be; exact copies, by the hash of their bytes, count once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from manifpt.attribution.decision import REAL, USUAL

EPS = 0.1
CONFIDENCE = 0.95
RESAMPLES = 400
# Resampling fewer images than these says nothing of how far others would lie.
FEWEST = 5
# Of more distinct images than these, the first by their hash stand for all.
MOST = 10_000


def log_evidence(probabilities: np.ndarray, priors: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Return each image's evidence for each class, N x K, from N x K probabilities."""
    found: np.ndarray = np.log((1 - eps) * probabilities / priors + eps)
    return found


def pooled(evidence: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classes from summed evidence, ... x K."""
    shifted = np.exp(evidence - evidence.max(-1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(-1, keepdims=True)
    return found


def interval(evidence: np.ndarray, best: int, seed: int) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the probability of a class.

    It resamples the images, N x K evidence (Efron & Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13); None for fewer than FEWEST.
    """
    count = len(evidence)
    if count < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    found = pooled(draws @ evidence)[:, best]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Pooling:
    """How groups are judged.

    By the classes, their shares in training, the share of foreign images, and the least that the
    probability must be, or the low end of its interval, for an answer.
    """

    classes: tuple[str, ...]
    priors: tuple[float, ...]
    eps: float = EPS
    sure: float = USUAL.sure

    @classmethod
    def of(cls, manifest: dict[str, Any], eps: float = EPS, sure: float = USUAL.sure) -> "Pooling":
        """Return the pooling of an attributor's probabilities, from its manifest."""
        return cls(tuple(manifest["classes"]), priors_of(manifest), eps, sure)

    def judge(
        self,
        group: str,
        hashes: Sequence[str],
        probabilities: np.ndarray,
        decisions: Sequence[str],
        images: int | None = None,
    ) -> dict[str, Any]:
        """Return a group's row of the table ``groups``.

        ``hashes`` are those of its images' bytes, ``probabilities`` N x K, ``decisions`` each
        image's own. The order of the images changes nothing. ``images`` is how many there were,
        if copies have been left out already.
        """
        _, order = np.unique(np.array(hashes, dtype=object).astype(str), return_index=True)
        order = order[:MOST]
        evidence = log_evidence(probabilities[order], np.array(self.priors), self.eps)
        total = pooled(evidence.sum(0))
        best = int(total.argmax())
        seed = int.from_bytes(sha256(group.encode()).digest()[:8], "big")
        low, high = interval(evidence, best, seed) or (None, None)
        agreeing = float((probabilities[order].argmax(1) == best).mean())
        unknown = float(np.mean([decisions[i] == "unknown" for i in order]))
        surely = float(total[best]) if low is None else low
        return {
            "group": group,
            "images": len(hashes) if images is None else images,
            "counted": len(order),
            "prediction": self.classes[best],
            "probability": float(total[best]),
            "probability_low": low,
            "probability_high": high,
            "agreeing": agreeing,
            "unknown": unknown,
            "decision": self._decision(best, surely, unknown),
        }

    def _decision(self, best: int, surely: float, unknown: float) -> str:
        """Return ``unknown`` if most images are, ``unsure``, ``real`` or ``generator``."""
        if unknown > 0.5:
            return "unknown"
        if surely < self.sure:
            return "unsure"
        return REAL if self.classes[best] == REAL else "generator"


def priors_of(manifest: dict[str, Any]) -> tuple[float, ...]:
    """Return the shares of the classes that an attributor's probabilities have in them.

    They are those of its training images; last layers that were fitted by ``extend`` weigh all
    classes alike.
    """
    classes = manifest["classes"]
    if manifest.get("extensions"):
        return (1 / len(classes),) * len(classes)
    counts = np.array([manifest["rows"]["train"][name] for name in classes], dtype=np.float64)
    return tuple((counts / counts.sum()).tolist())
