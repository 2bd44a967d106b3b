"""Robustness of verdicts to degradations of the web: accuracy against kind and strength.

The images are those that ``evaluate`` would count. Each is decoded once and then degraded in every
way in turn: all levels have the same images, so their differences are not due to sampling.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.artifacts.branches import are_artifacts
from manifpt.artifacts.projection import Projector, project_images, projectors_of, run_projection
from manifpt.attribution.crawl.registered import model_places, opened_model
from manifpt.attribution.model.near import NEAR
from manifpt.attribution.model.targets import manifold_places, trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.engine import chunk_work, pipeline, pools
from manifpt.engine.columns import ColumnTypes
from manifpt.errors import ManifptError
from manifpt.evaluation.closed_set import METRICS, accuracies, closed_set_metrics, confusion_matrix
from manifpt.evaluation.evaluation_format import (
    LevelCounts,
    RobustnessCurves,
    RobustnessFacts,
    RobustnessLevel,
    RobustnessLevels,
    RobustnessManifest,
)
from manifpt.evaluation.unseen import Unseen
from manifpt.images import IMAGES, Selection, plan
from manifpt.images.degrade import IDENTITY, Degradation
from manifpt.images.degraded_copies import view
from manifpt.images.perceptual import DISTANCE
from manifpt.images.places import input_places
from manifpt.images.read import ImageReader, pixel_columns
from manifpt.images.sources import content_key, describe
from manifpt.images.stacks import image_starts
from manifpt.outputs import claims
from manifpt.outputs.records import Records

RESULT = "robustness.json"
LEVELS = (
    *(f"jpeg:{quality}" for quality in (95, 90, 75, 60, 50)),
    *(f"blur:{sigma}" for sigma in (1, 2, 3, 4, 5)),
    *(f"resize:{scale}" for scale in (0.5, 0.75, 1.5, 2)),
    *(f"crop:{share}" for share in (0.9, 0.7, 0.5)),
    *(f"noise:{std}" for std in (0.05, 0.1, 0.15, 0.2, 0.25)),
)

LEVEL_SCORES = {
    "id": pa.string(),
    "source": pa.string(),
    "sha256": pa.string(),
    "degradation": pa.string(),
    "prediction": pa.string(),
    "probability": pa.float64(),
}


@dataclass
class RobustnessStage(Unseen):
    """Images -> scores of those that are neither seen nor of an unknown source, at every level."""

    projectors: list[Projector]
    levels: tuple[Degradation, ...]

    @property
    def takes(self) -> ColumnTypes:
        """The columns of an images table."""
        names = ("id", "source", "sha256", "pixel_sha256", "perceptual_hash")
        types = {name: IMAGES[name] for name in names}
        return types | pixel_columns([projector.rule for projector in self.projectors])

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """The columns of scores, a row an image and level."""
        return {"scores": LEVEL_SCORES}

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Score rows at each level; the record counts the rows left out by reason."""
        classes = self.attributor.classes
        seen, other = self.unusable(table, np.zeros(table.num_rows, bool))
        marks = self.marked(table)[NEAR].fill_null(False).to_numpy().astype(bool)
        near = ~(seen | other) & marks & (not self.keep_near)
        kept = table.filter(pa.array(~(seen | other | near)))
        in_manifold = np.zeros(kept.num_rows, bool)
        if kept.num_rows:
            made = project_images(self.projectors, kept)
            in_manifold = np.any([m.columns["in_manifold"] for m in made], axis=0)
            in_manifold = in_manifold[image_starts(made[0].rows)]
            kept = kept.filter(pa.array(~in_manifold))
        facts: RobustnessFacts = {
            "seen": int(seen.sum() + in_manifold.sum()),
            "other_source": int(other.sum()),
            "near_training": int(near.sum()),
        }
        if kept.num_rows == 0:
            return chunk_work.Result({}, facts)
        truth = np.array([classes.index(source) for source in kept["source"].to_pylist()])
        levels: dict[str, LevelCounts] = {}
        scores = []
        for level in self.levels:
            damaged = view(kept, level, self.projectors[0].rule.filter)
            made = project_images(self.projectors, damaged)
            artifacts, begins = [m.artifacts for m in made], image_starts(made[0].rows)
            probabilities = self.attributor.probabilities(artifacts, begins)
            predicted = probabilities.argmax(1)
            levels[str(level)] = {
                "confusion": confusion_matrix(truth, predicted, len(classes)).tolist(),
                "confidence": float(probabilities.max(1).sum()),
            }
            columns = {
                "degradation": pa.array([str(level)] * kept.num_rows),
                "prediction": pa.array([classes[i] for i in predicted]),
                "probability": pa.array(probabilities.max(1)),
            }
            both = {name: kept[name] for name in ("id", "source", "sha256")} | columns
            scores.append(pa.table(both))
        return chunk_work.Result({"scores": pa.concat_tables(scores)}, {**facts, "levels": levels})


def evaluate_robustness(
    inputs: Sequence[str],
    model: str,
    output: str,
    *,
    levels: Sequence[str] = (),
    manifolds: Sequence[str] = (),
    keep_near: bool = False,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> RobustnessCurves:
    """Evaluate on images at each level of degradation; write and return the curves.

    ``levels`` are notations of ``images.degrade``, LEVELS by default; the images as they are come
    first in any case. Otherwise as ``evaluate``: images that declare no split all count as test,
    and images of the manifold or of training, or that look like these, are left out and counted.
    """
    if are_artifacts(inputs):
        raise ManifptError("--input: --robustness degrades images; give these, not artifacts")
    output = storage.absolute(output)
    read = [*input_places(inputs, output), *model_places(model, manifolds)]
    claims.check_place(output, "robustness", read, terms)
    parsed = dict.fromkeys(map(Degradation.parse, (IDENTITY, *(levels or LEVELS))))
    names = [str(level) for level in parsed]
    selection = Selection(("test",), None)
    units = plan(inputs, selection, labelled=True)
    with opened_model(model, manifolds) as found:
        attributor = TrainedAttributor.open(found.attributor)
        read += manifold_places(attributor, found.manifolds)
        looks = {"keep_near": keep_near, "distance": DISTANCE}
        key = storage.digest([content_key(units), names, attributor.manifest["key"], looks])
        pool = pools.pool(demand, uses_gpu=True)
        source = found.kept(output)
    keep = ("model",)
    with claims.claim(output, "robustness", key, apart=read, terms=terms, keep=keep) as claim:
        if claim.finished:
            return storage.read_json(storage.join(output, RESULT))
        targets = trained_targets(attributor, source.manifolds)
        placed = projectors_of(targets, pools.ANY_SEARCH, pool)
        projectors = placed.projectors
        build = partial(RobustnessStage, source.attributor, keep_near, projectors, tuple(parsed))
        read_images = partial(ImageReader, selection=selection)
        records = run_projection("robustness", units, read_images, build, placed, output)
        with claim.abandoned_if_refused():
            result = _curves(records, names, attributor.classes)
        claim.check()
        _write(output, result)
        body: RobustnessManifest = {
            **source.facts(),
            "attributor": attributor.manifest["key"],
            "inputs": describe(inputs, units),
            "files": pipeline.parts(records),
            **result,
        }
        claim.publish(body)
        pipeline.clear_records(output)
        return result


def _curves(records: Records, levels: Sequence[str], classes: Sequence[str]) -> RobustnessCurves:
    """Return each level's metrics, and the counts left out; raise if no image counts."""
    facts: list[RobustnessFacts] = [record["facts"] for record in records]
    left_out = {
        "seen": sum(f.get("seen", 0) for f in facts),
        "other_source": sum(f.get("other_source", 0) for f in facts),
        "near_training": sum(f.get("near_training", 0) for f in facts),
    }
    scored = [f["levels"] for f in facts if "levels" in f]
    if not scored:
        raise ManifptError(f"--input: no unseen image of the attributor's classes ({left_out})")
    metrics = metrics_by_level(scored, levels, classes)
    return {**pipeline.totals(records), "left_out": left_out, **metrics}


def metrics_by_level(
    scored: Sequence[Mapping[str, LevelCounts]], levels: Sequence[str], classes: Sequence[str]
) -> RobustnessLevels:
    """Add up the confusions and confidences of parts; return each level's metrics, in order.

    ``confidence`` is the mean probability of the answers: if it is far above the accuracy, the
    probabilities do not hold at that level.
    """
    found: list[RobustnessLevel] = []
    for level in levels:
        matrix = np.sum([part[level]["confusion"] for part in scored], axis=0)
        confidence = sum(part[level]["confidence"] for part in scored) / int(matrix.sum())
        row: RobustnessLevel = {
            "degradation": level,
            **accuracies(matrix),
            "confidence": confidence,
            "confusion": matrix.tolist(),
        }
        found.append(row)
    # All levels have the same images.
    common = closed_set_metrics(matrix, classes)
    return {
        "images": common["images"],
        "chance": common["chance"],
        "classes": common["classes"],
        "levels": found,
    }


def _write(output: str, result: RobustnessCurves) -> None:
    """Write the curves as JSON, as a table, and as a picture."""
    from manifpt.evaluation.figures import robustness_picture

    table = io.StringIO()
    metrics = (f"{name}{end}" for name in METRICS for end in ("", "_low", "_high"))
    columns = ["degradation", *metrics, "confidence"]
    writer = csv.DictWriter(table, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(result["levels"])
    storage.write_bytes(storage.join(output, "robustness.csv"), table.getvalue().encode())
    storage.write_bytes(storage.join(output, "robustness.png"), robustness_picture(result))
    storage.write_json(storage.join(output, RESULT), result)
