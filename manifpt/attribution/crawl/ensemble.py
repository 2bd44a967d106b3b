"""Several views of an image, slightly degraded, asked for one answer: disagreement lowers it.

The views' probabilities are averaged (a linear opinion pool; Genest & Zidek, Statistical Science
1986). Two views that are sure of different generators make both about one half, while a product,
as of the heads of several spaces, would follow whichever view is the surer. The mean of
calibrated probabilities errs to the side of doubt (Ranjan & Gneiting, JRSS B 2010), which is what
views are asked for: its largest is never above the mean of their own largest.
"""

from collections.abc import Sequence

import numpy as np

from manifpt.images.degrade import IDENTITY, Degradation

VIEWS = ("jpeg:75", "jpeg:90", "resize:0.75")


def views_of(texts: Sequence[str]) -> tuple[Degradation, ...]:
    """Return the views that an option names, VIEWS if none, after the image itself."""
    return tuple(dict.fromkeys(map(Degradation.parse, (IDENTITY, *(texts or VIEWS)))))


def pooled_views(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return N x classes means of views x N x classes probabilities, and how many views agree.

    A view agrees if its first answer is that of the mean; none may, where it is all's second.
    """
    mean = probabilities.mean(0)
    agreement: np.ndarray = (probabilities.argmax(2) == mean.argmax(1)).sum(0)
    return mean, agreement
