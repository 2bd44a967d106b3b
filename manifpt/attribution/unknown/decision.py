"""From probabilities and strangeness to an answer: generator, real, unknown or unsure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manifpt.images.sources import REAL

DECISIONS = ("generator", REAL, "unknown", "unsure")


@dataclass(frozen=True)
class Rule:
    """The thresholds of a decision.

    ``sure`` is the least probability of an answer; at one half, none of the others is as likely as
    all of them together. ``false_rejection`` is the share a of images of known classes that may be
    called unknown; at 0, or with fewer than 1 / a - 1 validation images, nothing is.
    """

    sure: float = 0.5
    false_rejection: float = 0.05


USUAL = Rule()


def decide(
    probabilities: np.ndarray,
    classes: Sequence[str],
    unknown_p: np.ndarray | None = None,
    rule: Rule = USUAL,
) -> np.ndarray:
    """Return N of DECISIONS from N x classes calibrated probabilities and N p-values.

    An image is ``unknown`` if its p-value, calibrated on validation (see ``open_set``), is at most
    the rule's false rejection; else ``unsure`` if its greatest probability is below ``sure``.
    Without p-values none is unknown.
    """
    best = probabilities.argmax(1)
    is_real = np.array([name == REAL for name in classes])[best]
    found = np.where(is_real, REAL, "generator").astype(object)
    found[probabilities[np.arange(len(best)), best] < rule.sure] = "unsure"
    if unknown_p is not None:
        found[unknown_p <= rule.false_rejection] = "unknown"
    return found
