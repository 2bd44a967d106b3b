"""The row of file properties: a classifier that sees how images were stored, and no pixel.

On a benchmark whose images are stored alike it is at chance. If it is not, every other row may owe
a part of its accuracy to how files were stored (Grommelt et al., "Fake or JPEG? Revealing common
biases in generated image detection datasets", arXiv 2403.17608).
"""

from typing import TYPE_CHECKING

import numpy as np

from manifpt.evaluation.evaluation_format import ClosedSetMetrics

if TYPE_CHECKING:
    import pandas as pd

    from manifpt.jobs.reproduction.benchmark_study import Study

TITLE = "file properties alone"
# Images of each source and split, at most.
MOST = 1000
PERMUTATIONS = 5000


class FilePropertyMetrics(ClosedSetMetrics):
    """The metrics of a classifier of file properties, and its p-value against chance."""

    p_value: float


def file_properties(study: "Study") -> FilePropertyMetrics:
    """Return the metrics of a tree on the files of a study's benchmark, see ``held_out``."""
    from manifpt.audit.training_audit import read_sample
    from manifpt.images import Selection, plan

    config, found = study.config, []
    for split in ("train", "test"):
        selection = Selection((split,), tuple(config.sources) or None)
        units = plan([study.benchmark], selection, labelled=True, quiet=True)
        found.append(read_sample(units, selection, MOST, config.demand))
    return held_out(*found)


def held_out(train: "pd.DataFrame", test: "pd.DataFrame", seed: int = 0) -> FilePropertyMetrics:
    """Return the closed-set metrics of a decision tree, and a ``p_value`` against chance.

    Rows are of images, with ``source`` and the properties that no picture decides
    (``audit.properties.CARRIED``); the tree is the audit's. ``p_value`` is the share of shuffled
    labels of the test images that the same predictions meet as often.
    """
    import pandas as pd
    from sklearn.tree import DecisionTreeClassifier

    from manifpt.audit.properties import CARRIED
    from manifpt.audit.statistics import codes
    from manifpt.evaluation.closed_set import closed_set_metrics, confusion_matrix

    rows = pd.concat([train, test], ignore_index=True)
    labels, classes = pd.factorize(rows["source"], sort=True)
    columns = [
        codes([None if pd.isna(value) else value for value in rows[name]]) for name in CARRIED
    ]
    known, seen = np.arange(len(rows)) < len(train), np.column_stack(columns)
    tree = DecisionTreeClassifier(
        min_samples_leaf=5, max_leaf_nodes=256, class_weight="balanced", random_state=seed
    ).fit(seen[known], labels[known])
    predicted, truth = tree.predict(seen[~known]), labels[~known]
    matrix = confusion_matrix(truth, predicted, len(classes))
    rng, right = np.random.default_rng(seed), int((predicted == truth).sum())
    shuffled = [int((predicted == rng.permutation(truth)).sum()) for _ in range(PERMUTATIONS)]
    reached = sum(count >= right for count in shuffled)
    metrics = closed_set_metrics(matrix, [str(name) for name in classes])
    return {**metrics, "p_value": (1 + reached) / (1 + PERMUTATIONS)}


def told(metrics: FilePropertyMetrics) -> str:
    """Return the sentence that says whether file properties tell the sources apart."""
    p_value, chance = metrics["p_value"], metrics["chance"]
    verdict = "at chance" if p_value > 0.05 else "above chance: the files give sources away"
    return (
        f"A decision tree that sees file properties alone, and no pixel, is {verdict}: accuracy "
        f"{metrics['accuracy']:.3f} on {metrics['images']} test images, chance {chance:.3f}, "
        f"p = {p_value:.4f} by shuffled labels."
    )
