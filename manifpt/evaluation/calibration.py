"""The calibration of N x classes probabilities, against the true classes, N."""

import numpy as np

from manifpt.evaluation.evaluation_format import CalibrationMetrics, ReliabilityBins

BINS = 15


def brier_score(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of sum_k (p_k - y_k)^2, 0 to 2 (Brier, Monthly Weather Review 1950)."""
    rows = np.arange(len(truth))
    square = np.square(probabilities).sum(1) - 2 * probabilities[rows, truth] + 1
    return float(square.mean())


def negative_log_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of -log of the true class's probability, nats."""
    found = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(found, np.finfo(np.float64).tiny)).mean())


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = BINS, *, adaptive: bool = False
) -> ReliabilityBins:
    """Return images, mean confidence and accuracy of the bins that are not empty.

    Bins are of one width in (0, 1], or ``adaptive``, of as many images each.
    """
    if adaptive:
        order = np.argsort(confidence, kind="stable")
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order)) * bins // len(order)
    else:
        place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, bins) for values in (confidence, right.astype(np.float64))]
    kept = images > 0
    mean, accuracy = (total[kept] / images[kept] for total in sums)
    return {
        "images": images[kept].tolist(),
        "confidence": mean.tolist(),
        "accuracy": accuracy.tolist(),
    }


def expected_calibration_error(bins: ReliabilityBins) -> float:
    """Return the mean |confidence - accuracy| of bins, by their images (Guo et al., ICML 2017).

    It is biased upwards where bins have few images (Nixon et al., CVPR workshops 2019).
    """
    images, confidence, accuracy = (np.array(bins[n]) for n in ("images", "confidence", "accuracy"))
    return float((images * np.abs(confidence - accuracy)).sum() / images.sum())


def calibration_metrics(probabilities: np.ndarray, truth: np.ndarray) -> CalibrationMetrics:
    """Return errors of N x classes probabilities of the true classes, and the reliability table."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = reliability(confidence, right)
    equal = reliability(confidence, right, adaptive=True)
    return {
        "expected_calibration_error": expected_calibration_error(bins),
        "adaptive_calibration_error": expected_calibration_error(equal),
        "brier_score": brier_score(probabilities, truth),
        "negative_log_likelihood": negative_log_likelihood(probabilities, truth),
        "mean_confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "reliability": bins,
    }
