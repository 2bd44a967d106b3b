"""One answer from several slightly degraded views of an image; disagreement lowers its probability.

The views' probabilities are averaged (a linear opinion pool; Genest & Zidek, Statistical Science
1986). If two views are sure of different generators, each generator gets about one half; a product,
as of the heads of several spaces, would follow the surer view. The mean of calibrated probabilities
is underconfident (Ranjan & Gneiting, JRSS B 2010), which is the purpose of views: its largest value
is never above the mean of their own largest values.
"""

from collections.abc import Sequence

import numpy as np

from manifpt.images.degrade import IDENTITY, Degradation

VIEWS = ("jpeg:75", "jpeg:90", "resize:0.75")


def views_of(texts: Sequence[str]) -> tuple[Degradation, ...]:
    """Return the image itself and then the views that an option names, VIEWS if it names none."""
    return tuple(dict.fromkeys(map(Degradation.parse, (IDENTITY, *(texts or VIEWS)))))


def pooled_views(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return N x classes means of views x N x classes probabilities, and counts of agreement.

    A view agrees if its first answer is that of the mean. It may be that no view does, if the
    answer of the mean is the second one of all views.
    """
    mean = probabilities.mean(0)
    agreement: np.ndarray = (probabilities.argmax(2) == mean.argmax(1)).sum(0)
    return mean, agreement
