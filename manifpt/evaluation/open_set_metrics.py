"""Metrics of the detection of unknown images by a score; higher is less known.

Known images are the positive: a true positive is a known image that is accepted. With ties, an
image is accepted if its score is at most the threshold.
"""

import numpy as np

from manifpt.attribution.unknown.open_set import auroc
from manifpt.evaluation.evaluation_format import DetectionMetrics, OpenSetMetrics

TPR = 0.95
RESAMPLES = 500
CONFIDENCE = 0.95


def fpr_at_tpr(known: np.ndarray, unknown: np.ndarray, tpr: float = TPR) -> float:
    """Return the share of unknown images accepted where at least ``tpr`` of the known are.

    "FPR at 95 % TPR" of Liang et al. (ODIN, ICLR 2018), at the least such threshold.
    """
    rank = int(np.ceil(tpr * len(known) - 1e-9))
    threshold = np.partition(known, rank - 1)[rank - 1]
    return float((unknown <= threshold).mean())


def oscr(known: np.ndarray, right: np.ndarray, unknown: np.ndarray) -> float:
    """Return the area under the open-set classification rate curve.

    Over all thresholds, the share of known images that are accepted and rightly classified
    (``right``) against the share of unknown images that are accepted (Dhamija et al., "Reducing
    Network Agnostophobia", NeurIPS 2018, section 4). It is at most the accuracy, which it reaches
    where all unknown images are stranger than all known ones that are right.
    """
    if not right.any():
        return 0.0
    return float(right.mean()) * auroc(known[right], unknown)


def open_set_metrics(
    known: np.ndarray,
    right: np.ndarray,
    unknown: np.ndarray,
    rejected: tuple[np.ndarray, np.ndarray],
    seed: int = 0,
) -> OpenSetMetrics:
    """Return the metrics of the scores of known and unknown images, with bootstrap intervals.

    ``right`` says of known images whether they are rightly classified, ``rejected`` of known and of
    unknown ones whether they were called unknown. Known and unknown images are drawn apart; means
    over generators are not: intervals are for other images of the same generators.
    """

    def metrics(k: np.ndarray, u: np.ndarray) -> DetectionMetrics:
        return {
            "auroc": auroc(known[k], unknown[u]),
            "fpr_at_95_tpr": fpr_at_tpr(known[k], unknown[u]),
            "oscr": oscr(known[k], right[k], unknown[u]),
            "false_rejection": float(rejected[0][k].mean()),
            "unknown_found": float(rejected[1][u].mean()),
        }

    rng = np.random.default_rng(seed)
    sizes = (len(known), len(unknown))
    draws = [metrics(*(rng.integers(0, n, n) for n in sizes)) for _ in range(RESAMPLES)]
    found = metrics(*(np.arange(n) for n in sizes))
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    ends = {
        name: np.quantile([draw[name] for draw in draws], tails).tolist()
        for name in ("auroc", "fpr_at_95_tpr", "oscr", "false_rejection", "unknown_found")
    }
    return {
        **found,
        "auroc_low": ends["auroc"][0],
        "auroc_high": ends["auroc"][1],
        "fpr_at_95_tpr_low": ends["fpr_at_95_tpr"][0],
        "fpr_at_95_tpr_high": ends["fpr_at_95_tpr"][1],
        "oscr_low": ends["oscr"][0],
        "oscr_high": ends["oscr"][1],
        "false_rejection_low": ends["false_rejection"][0],
        "false_rejection_high": ends["false_rejection"][1],
        "unknown_found_low": ends["unknown_found"][0],
        "unknown_found_high": ends["unknown_found"][1],
        "known_images": sizes[0],
        "unknown_images": sizes[1],
    }
