"""The stage of the pipeline that scores unseen artifacts, a row an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from manifpt.artifacts.artifact_stage import ARTIFACTS
from manifpt.artifacts.branches import artifact_column
from manifpt.attribution.model.near import NEAR
from manifpt.attribution.model.tiled import mean_or_none
from manifpt.attribution.unknown.decision import USUAL, Rule, decide
from manifpt.engine import chunk_work
from manifpt.engine.columns import ColumnTypes
from manifpt.evaluation.closed_set import confusion_matrix
from manifpt.evaluation.evaluation_format import ScoreFacts
from manifpt.evaluation.score_report import NEAR_SCORES, SCORES, UNKNOWN
from manifpt.evaluation.unseen import Unseen
from manifpt.images.stacks import image_starts
from manifpt.storage import tensors

# The columns of scores; an attributor that knows the unknown has more.
SCORE_ROWS: ColumnTypes = {
    "id": pa.string(),
    "source": pa.string(),
    "sha256": pa.string(),
    "neighbor_id": pa.string(),
    NEAR: pa.bool_(),
    "distance": pa.float64(),
    "prediction": pa.string(),
    "probability": pa.float64(),
    "probabilities": pa.list_(pa.float64()),
    "uncalibrated": pa.list_(pa.float64()),
    "decision": pa.string(),
}


@dataclass
class ScoreStage(Unseen):
    """Artifacts -> scores of the rows that are not seen; those of other sources are the unknown."""

    rule: Rule = USUAL
    spaces: int = 1

    @property
    def takes(self) -> ColumnTypes:
        """The columns of artifacts, in all ``spaces`` of the attributor."""
        names = "id source sha256 pixel_sha256 perceptual_hash neighbor_id distance in_manifold"
        types = {name: ARTIFACTS[name] for name in names.split()}
        return types | dict.fromkeys(map(artifact_column, range(self.spaces)))

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """The columns of scores, the same in all folders."""
        return dict.fromkeys((SCORES, NEAR_SCORES, UNKNOWN), SCORE_ROWS)

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Score rows; the record counts the rows left out by reason."""
        classes = self.attributor.classes
        seen, other = self.unusable(table, np.array(table["in_manifold"]))
        images = image_starts(table)
        facts: ScoreFacts = {
            "seen": int(seen[images].sum()),
            "other_source": int(other[images].sum()),
        }
        table = self.marked(table)
        tables: dict[str, list[pa.Table]] = {}
        unknown = other & np.array([name is not None for name in table["source"].to_pylist()])
        if unknown.any() and self.attributor.open_set is not None:
            tables[UNKNOWN] = [self._scores(table.filter(pa.array(unknown)))]
        counted = table.filter(pa.array(~(seen | other)))
        facts["without_hash"] = counted[NEAR].null_count
        looks = counted[NEAR].fill_null(False).to_numpy().astype(bool)
        masks: dict[Literal["news", "near"], np.ndarray] = {"news": ~looks, "near": looks}
        for name, mask in masks.items():
            if mask.any():
                scores = self._scores(counted.filter(pa.array(mask)))
                tables.setdefault(self._folder(name), []).append(scores)
                truth, predicted = (
                    np.array([classes.index(name) for name in scores[column].to_pylist()])
                    for column in ("source", "prediction")
                )
                facts[name] = confusion_matrix(truth, predicted, len(classes)).tolist()
        both = {folder: pa.concat_tables(parts) for folder, parts in tables.items()}
        return chunk_work.Result(both, facts)

    def _folder(self, name: str) -> str:
        """Return the folder of scores of rows that are ``news``, or ``near`` training."""
        return SCORES if self.keep_near or name == "news" else NEAR_SCORES

    def _scores(self, table: pa.Table) -> pa.Table:
        """Return the scores table of an artifacts table, from which all metrics are computed.

        It has a row an image; distances are means of its tiles, the neighbour is its first tile's.
        ``uncalibrated`` are the probabilities before the heads were weighed.
        """
        classes, heads = self.attributor.classes, len(self.attributor.manifest["weights"])
        names = [artifact_column(n) for n in range(self.spaces)]
        artifacts, begins = (
            [tensors.from_column(table[name]) for name in names],
            image_starts(table),
        )
        network_outputs = self.attributor.outputs(artifacts, begins)
        distance = mean_or_none(table["distance"].to_pylist(), begins)
        probabilities = self.attributor.fused(network_outputs.logits)
        before = self.attributor.fused(network_outputs.logits, [1 / heads] * heads)
        unknown = self.attributor.unknown(network_outputs)
        unknown_p = unknown.p_value if unknown else None
        columns: dict[str, object] = {
            "prediction": [classes[i] for i in probabilities.argmax(1)],
            "probability": probabilities.max(1),
            "probabilities": list(probabilities),
            "uncalibrated": list(before),
            "decision": decide(probabilities, classes, unknown_p, self.rule),
        }
        if unknown:
            columns |= {"unknown_score": unknown.score, "unknown_p": unknown.p_value}
            columns |= {"unknown_scores": list(unknown.scores)}
            columns |= {"coordinates": list(unknown.coordinates)}
        kept = ["id", "source", "sha256", "neighbor_id", NEAR]
        scores = table.select(kept).take(pa.array(begins))
        scores = scores.append_column("distance", pa.array(distance, pa.float64()))
        for name, values in columns.items():
            scores = scores.append_column(name, pa.array(values))
        return scores
