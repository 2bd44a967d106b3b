"""Closed-set metrics from a confusion matrix, with bootstrap intervals."""

from collections.abc import Callable, Sequence

import numpy as np

from manifpt.evaluation.evaluation_format import Accuracies, ClosedSetMetrics

RESAMPLES = 2000
CONFIDENCE = 0.95


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count rows of true class i (row) that were predicted as j (column), classes x classes."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share of all images on the diagonal; ``matrix`` may be a stack, ... x K x K."""
    right = np.trace(matrix, axis1=-2, axis2=-1)
    share: np.ndarray = right / np.maximum(matrix.sum((-2, -1)), 1)
    return share


def recall(matrix: np.ndarray) -> np.ndarray:
    """Share of each true class that was found, NaN where the class has no image."""
    support = matrix.sum(-1)
    found = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.where(support > 0, found / np.maximum(support, 1), np.nan)


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Mean recall of the classes that have images; ``matrix`` may be a stack."""
    mean: np.ndarray = np.nanmean(recall(matrix), axis=-1)
    return mean


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Mean of 2 TP / (2 TP + FP + FN) over the classes that have images; also of a stack."""
    found = np.diagonal(matrix, axis1=-2, axis2=-1)
    support, predicted = matrix.sum(-1), matrix.sum(-2)
    f1 = 2 * found / np.maximum(support + predicted, 1)
    mean: np.ndarray = np.nanmean(np.where(support > 0, f1, np.nan), axis=-1)
    return mean


# Metrics of a matrix or of a stack of them, each with an interval.
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def accuracies(matrix: np.ndarray, seed: int = 0) -> Accuracies:
    """Return METRICS of a K x K confusion matrix, with percentile bootstrap intervals.

    To resample images is to draw cells of the matrix with their shares (Efron & Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 13): the matrix is all that is needed.
    """
    total = int(matrix.sum())
    draws = np.random.default_rng(seed).multinomial(total, matrix.ravel() / total, RESAMPLES)
    stack, tail = draws.reshape(-1, *matrix.shape), (1 - CONFIDENCE) / 2
    ends = [np.quantile(metric(stack), [tail, 1 - tail]).tolist() for metric in METRICS.values()]
    return {
        "accuracy": float(accuracy(matrix)),
        "balanced_accuracy": float(balanced_accuracy(matrix)),
        "macro_f1": float(macro_f1(matrix)),
        "accuracy_low": ends[0][0],
        "accuracy_high": ends[0][1],
        "balanced_accuracy_low": ends[1][0],
        "balanced_accuracy_high": ends[1][1],
        "macro_f1_low": ends[2][0],
        "macro_f1_high": ends[2][1],
    }


def closed_set_metrics(matrix: np.ndarray, classes: Sequence[str]) -> ClosedSetMetrics:
    """Return the metrics of a K x K confusion matrix.

    ``chance`` is the accuracy of the best constant answer: the share of the largest class.
    """
    recalls, support = recall(matrix), matrix.sum(1)
    with np.errstate(invalid="ignore"):
        precision = np.diagonal(matrix) / np.maximum(matrix.sum(0), 1)
    return {
        **accuracies(matrix),
        "chance": float(support.max() / support.sum()),
        "images": int(matrix.sum()),
        "per_class": {
            name: {
                "images": int(support[i]),
                "recall": None if support[i] == 0 else float(recalls[i]),
                "precision": float(precision[i]),
            }
            for i, name in enumerate(classes)
        },
        "classes": list(classes),
        "confusion": matrix.tolist(),
    }
