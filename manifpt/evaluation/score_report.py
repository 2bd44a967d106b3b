"""Metrics from the scores of an evaluation: calibration before and after, and the unknown."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.attribution.unknown.decision import Rule
from manifpt.attribution.unknown.open_set import auroc, rejected_by_class
from manifpt.evaluation.calibration import calibration_metrics
from manifpt.evaluation.evaluation_format import ConfidenceReport, OpenSetReport, ScoreMetrics
from manifpt.evaluation.open_set_metrics import fpr_at_tpr, open_set_metrics, oscr

# The folders of scores: those of images of the attributor's classes, those of others, and those of
# images that look like one of training and do not count.
SCORES, UNKNOWN, NEAR_SCORES = "scores", "unknown", "near_training"
COMBINED = "unknown_score"


def confidence_report(
    paths: Mapping[str, Sequence[str]], classes: Sequence[str], names: Sequence[str], rule: Rule
) -> ConfidenceReport:
    """Return the metrics of score files, by folder; run it in a task, which reads them all.

    ``names`` are those of the single scores of the unknown. Without images of unknown sources there
    is no ``open_set``.
    """
    known = _rows(paths[SCORES], ["source", "prediction", "probabilities", "uncalibrated"], names)
    truth = np.array([classes.index(name) for name in known["source"].to_pylist()])
    metrics: ConfidenceReport = {
        "calibration": {
            "before": calibration_metrics(_array(known["uncalibrated"]), truth),
            "after": calibration_metrics(_array(known["probabilities"]), truth),
        }
    }
    if names:
        sources, decisions = (np.array(known[name]) for name in ("source", "decision"))
        rejected = rejected_by_class(sources, decisions == "unknown", classes)
        metrics["false_rejection_by_class"] = rejected
    if paths[UNKNOWN] and names:
        unknown = _rows(paths[UNKNOWN], ["source"], names)
        metrics["open_set"] = _open_set(known, unknown, names, rule)
    return metrics


def _rows(paths: Sequence[str], columns: list[str], names: Sequence[str]) -> pa.Table:
    beside = [COMBINED, "unknown_scores", "decision"] if names else []
    return pa.concat_tables([storage.read_parquet(path, columns + beside) for path in paths])


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of N lists of one length as N x length."""
    return np.asarray(column.combine_chunks().flatten()).reshape(len(column), -1)


def _open_set(
    known: pa.Table, unknown: pa.Table, names: Sequence[str], rule: Rule
) -> OpenSetReport:
    """Return the metrics of the combined score, and of each score, by unknown source, too."""
    right = np.array(known["source"]) == np.array(known["prediction"])
    rejected = [np.array(table["decision"]) == "unknown" for table in (known, unknown)]
    combined = [np.array(table[COMBINED]) for table in (known, unknown)]
    scores = [np.column_stack([_array(t["unknown_scores"]), t[COMBINED]]) for t in (known, unknown)]
    sources = np.array(unknown["source"])
    return {
        **open_set_metrics(combined[0], right, combined[1], (rejected[0], rejected[1])),
        "rule": vars(rule),
        "decisions": {
            name: _shares(table["decision"].to_pylist())
            for name, table in (("known", known), ("unknown", unknown))
        },
        "scores": _each(scores[0], right, scores[1], names),
        "sources": {
            str(source): {
                "images": int((sources == source).sum()),
                "unknown_found": float(rejected[1][sources == source].mean()),
                "scores": _each(scores[0], right, scores[1][sources == source], names),
            }
            for source in np.unique(sources)
        },
    }


def _shares(decisions: Sequence[str]) -> dict[str, float]:
    names, counts = np.unique(np.array(decisions), return_counts=True)
    return {str(n): float(c / len(decisions)) for n, c in zip(names, counts, strict=True)}


def _each(
    known: np.ndarray, right: np.ndarray, unknown: np.ndarray, names: Sequence[str]
) -> dict[str, ScoreMetrics]:
    """Return the metrics of each of the scores, the columns, and of the combined, the last."""
    return {
        name: {
            "auroc": auroc(known[:, n], unknown[:, n]),
            "fpr_at_95_tpr": fpr_at_tpr(known[:, n], unknown[:, n]),
            "oscr": oscr(known[:, n], right, unknown[:, n]),
        }
        for n, name in enumerate([*names, "combined"])
    }
