"""Evaluation of an attributor on artifacts that it has not seen: scores, metrics, pictures."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.artifacts.branches import (
    ArtifactBranch,
    are_artifacts,
    check_unchanged,
    of_classes,
    open_artifacts,
    read_branches,
    stored_columns,
)
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.artifacts.projection import Target
from manifpt.attribution.crawl.registered import AttributorSource, model_places, opened_model
from manifpt.attribution.model.targets import manifold_places, trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import USUAL, Rule
from manifpt.engine import pipeline, pools
from manifpt.engine.columns import GivenColumns
from manifpt.engine.tasks import result
from manifpt.errors import ManifptError
from manifpt.evaluation.closed_set import accuracy, closed_set_metrics
from manifpt.evaluation.evaluation_format import (
    ComparedManifolds,
    ConfidenceReport,
    CountedMetrics,
    EvaluationManifest,
    EvaluationMetrics,
    NearTraining,
    ScoreFacts,
)
from manifpt.evaluation.score_report import SCORES, UNKNOWN, confidence_report
from manifpt.evaluation.score_stage import ScoreStage
from manifpt.images.perceptual import DISTANCE
from manifpt.images.places import input_places
from manifpt.outputs import claims
from manifpt.outputs.formats import ChunkRecord, PartEntry
from manifpt.outputs.records import Records

METRICS = "metrics.json"


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation: the images that count, and the rule that judges them.

    With ``sources`` only their images are taken. ``rule`` decides which images are called unknown.
    Images that look like one of training or validation count only with ``keep_near``. With
    ``other_manifold`` the artifacts may be of other manifolds than in training, such as those of
    another data set's reals.
    """

    sources: Sequence[str] = ()
    rule: Rule = USUAL
    keep_near: bool = False
    other_manifold: bool = False

    def key(self, attributor: TrainedAttributor, branches: Sequence[ArtifactBranch]) -> str:
        """Return the hash of all settings that decide the metrics."""
        content = [branch.manifest["key"] for branch in branches]
        looks = {"keep_near": self.keep_near, "distance": DISTANCE}
        looks |= {"other_manifold": True} if self.other_manifold else {}
        made_of = [content, attributor.manifest["key"], list(self.sources), vars(self.rule), looks]
        return storage.digest(made_of)


@dataclass(frozen=True)
class _BranchReader:
    """A file of the same images in each space -> its rows; ``first`` are the first files."""

    first: Sequence[str]
    sources: Sequence[str]

    @property
    def gives(self) -> GivenColumns:
        """The columns of the first files."""
        return stored_columns(self.first)

    def __call__(self, spec: str) -> Iterator[pa.Table]:
        """Yield the rows of the requested sources."""
        table = read_branches(json.loads(spec))
        yield of_classes(table, self.sources) if self.sources else table


def _check(
    attributor: TrainedAttributor,
    branches: Sequence[ArtifactBranch],
    *,
    other_manifold: bool,
) -> None:
    """Raise unless artifacts are of the spaces and manifolds of the attributor's training.

    With ``other_manifold`` they may be deviations from other reals.
    """
    trained = [branch["name"] for branch in attributor.branches]
    if len(branches) != len(trained):
        given = "+".join(branch.name for branch in branches)
        raise ManifptError(
            f"--input: artifacts of {given}; the attributor's are {'+'.join(trained)}"
        )
    if not other_manifold:
        hashes = [branch.manifest["manifold_sha256"] for branch in branches]
        attributor.check_manifolds(hashes, "--input")
    for branch, expected in zip(branches, attributor.branches, strict=True):
        made = branch.manifest
        for word, same in (
            ("space", made["space"] == expected["space"]),
            ("projector", made["projection"] == expected["projection"]),
        ):
            if not same:
                raise ManifptError(
                    f"--input: artifacts of another {word} than the attributor's; "
                    "give images, which are projected as in training, or train on such artifacts"
                )
    if not branches[0].files("test"):
        raise ManifptError("--input: holds no image of the split test; see its manifest.json")


def _projected(
    inputs: Sequence[str],
    output: str,
    targets: dict[str, Target],
    demand: pools.Demand,
    terms: claims.Terms,
) -> str:
    """Make the artifacts of images as in training; return their folder."""
    folder, recipe = storage.join(output, "artifacts"), ArtifactRecipe(undeclared="test")
    compute_artifacts(inputs, folder, recipe, targets=targets, demand=demand, terms=terms)
    return folder


def evaluate(
    inputs: Sequence[str],
    model: str,
    output: str,
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    manifolds: Sequence[str] = (),
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> EvaluationMetrics:
    """Evaluate on the test split of artifacts, or on images; return the metrics.

    Images that declare no split all count as test. Images of the manifold, of training and of
    validation are left out by their pixel hashes, and counted. ``model`` is an attributor's folder,
    or MLflow's name of one (see ``registered``). Images of other sources than the attributor's
    classes are the unknown, which the rule and the scores should detect; they do not count for the
    closed set.
    """
    if settings.other_manifold and not are_artifacts(inputs):
        raise ManifptError(
            "--other-manifold: takes artifacts; compute them on that manifold, then give them"
        )
    output = storage.absolute(output)
    read = [*input_places(inputs, output), *model_places(model, manifolds)]
    claims.check_place(output, "evaluation", read, terms)
    with opened_model(model, manifolds) as model_source:
        attributor = TrainedAttributor.open(model_source.attributor)
        read += manifold_places(attributor, model_source.manifolds)
        claims.check_apart(output, read)
        if not are_artifacts(inputs):
            targets = trained_targets(attributor, model_source.kept(output).manifolds)
            inputs = [_projected(inputs, output, targets, demand, terms)]
        branches = open_artifacts(inputs)
        _check(attributor, branches, other_manifold=settings.other_manifold)
        key = settings.key(attributor, branches)
        pool = pools.pool(demand, uses_gpu=True)
        source = model_source.kept(output)
    keep = ("artifacts", "model")
    with claims.claim(output, "evaluation", key, apart=read, terms=terms, keep=keep) as claim:
        if claim.finished:
            return storage.read_json(storage.join(output, METRICS))
        records = _scored(branches, source.attributor, settings, output, pool)
        parts = pipeline.parts(records)
        with claim.abandoned_if_refused():
            counted, left_out = _closed_set(records, attributor.classes, settings)
        confidence = _confidence(parts, source.attributor, settings.rule, output, pool)
        metrics: EvaluationMetrics = {**counted, **confidence, "left_out": left_out}
        if settings.other_manifold:
            metrics["other_manifold"] = _manifolds(attributor, branches)
        check_unchanged(branches)
        claim.check()
        _write(output, metrics)
        claim.publish(_manifest(source, attributor, branches, parts, metrics))
        pipeline.clear_records(output)
        return metrics


def _scored(
    branches: Sequence[ArtifactBranch],
    attributor: str,
    settings: EvaluationSettings,
    output: str,
    pool: pools.Pool,
) -> Records:
    """Score the rows of the test split; return the pipeline's records."""
    files = branches[0].files("test")
    units = [[storage.join(branch.uri, path) for branch in branches] for path in files]
    return pipeline.run(
        "evaluate",
        map(json.dumps, units),
        _BranchReader(units[0], settings.sources),
        partial(ScoreStage, attributor, settings.keep_near, settings.rule, len(branches)),
        output,
        pool,
    )


def _closed_set(
    records: Iterable[ChunkRecord], classes: Sequence[str], settings: EvaluationSettings
) -> tuple[CountedMetrics, dict[str, int]]:
    """Return the closed set's metrics of scored rows, and the counts of images left out by reason.

    Raises where no image counts.
    """
    facts: list[ScoreFacts] = [record["facts"] for record in records]
    left_out = {
        "seen": sum(f.get("seen", 0) for f in facts),
        "other_source": sum(f.get("other_source", 0) for f in facts),
    }
    news, near = (_total(facts, name, len(classes)) for name in ("news", "near"))
    left_out["near_training"] = 0 if settings.keep_near else int(near.sum())
    counted = news + near if settings.keep_near else news
    if not counted.sum():
        hint = "; --keep-near counts those near training" if near.sum() else ""
        raise ManifptError(
            f"--input: no unseen image of the attributor's classes ({left_out}){hint}"
        )
    # A file without a row of the requested sources has no facts.
    without_hash = sum(f.get("without_hash", 0) for f in facts)
    report = near_report(news, near, without_hash, keep_near=settings.keep_near)
    return {**closed_set_metrics(counted, classes), "near_training": report}, left_out


def _confidence(
    parts: Sequence[PartEntry], model: str, rule: Rule, output: str, pool: pools.Pool
) -> ConfidenceReport:
    """Return the metrics of calibration and of the unknown, from the tables of scores."""
    attributor = TrainedAttributor.open(model)
    names = attributor.open_set.score_names if attributor.open_set else []
    paths = {
        folder: [storage.join(output, p["path"]) for p in parts if p["folder"] == folder]
        for folder in (SCORES, UNKNOWN)
    }
    report: ConfidenceReport = result(
        pool, confidence_report, paths, attributor.classes, names, rule
    )
    return report


def _manifest(
    source: AttributorSource,
    attributor: TrainedAttributor,
    branches: Sequence[ArtifactBranch],
    parts: list[PartEntry],
    metrics: EvaluationMetrics,
) -> EvaluationManifest:
    return {
        **source.facts(),
        "attributor": attributor.manifest["key"],
        "artifacts": [branch.uri for branch in branches],
        "files": parts,
        **metrics,
    }


def _manifolds(
    attributor: TrainedAttributor, branches: Sequence[ArtifactBranch]
) -> ComparedManifolds:
    """Return the hashes of the manifolds of training, and of test."""
    return {
        "training": [branch["manifold_sha256"] for branch in attributor.branches],
        "test": [branch.manifest["manifold_sha256"] for branch in branches],
    }


def _total(facts: Sequence[ScoreFacts], name: Literal["news", "near"], classes: int) -> np.ndarray:
    """Return the sum of the confusion matrices of that name, classes x classes."""
    matrices = [np.array(fact[name]) for fact in facts if name in fact]
    total: np.ndarray = np.sum([np.zeros((classes, classes), np.int64), *matrices], axis=0)
    return total


def near_report(
    news: np.ndarray, near: np.ndarray, without_hash: int, *, keep_near: bool
) -> NearTraining:
    """Return the number of images ``near`` training, and the accuracies with and without them.

    ``news`` and ``near`` are confusion matrices. It is unknown for ``without_hash`` images, which
    count.
    """
    return {
        "images": int(near.sum()),
        "without_hash": without_hash,
        "distance": DISTANCE,
        "counted": keep_near,
        "accuracy_with": float(accuracy(news + near)),
        "accuracy_without": float(accuracy(news)) if news.sum() else None,
    }


def near_line(near: NearTraining) -> str:
    """Return the result of ``near_report`` as a line of text."""
    without, known = near["accuracy_without"], near["without_hash"]
    text = (
        f"near_training: {near['images']} test images look like one of training or validation and "
        f"{'count' if near['counted'] else 'do not count'}; accuracy with them "
        f"{near['accuracy_with']:.3f}, without "
        f"{'-' if without is None else format(without, '.3f')}"
    )
    return text + (f"; {known} have no perceptual hash, and count" if known else "")


def _write(output: str, metrics: EvaluationMetrics) -> None:
    """Write metrics.json, the confusion matrix as a table and a picture, and reliability's."""
    from manifpt.evaluation.figures import confusion_picture, reliability_picture

    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["true \\ predicted", *metrics["classes"]])
    for name, row in zip(metrics["classes"], metrics["confusion"], strict=True):
        writer.writerow([name, *row])
    storage.write_bytes(storage.join(output, "confusion.csv"), table.getvalue().encode())
    storage.write_bytes(storage.join(output, "confusion.png"), confusion_picture(metrics))
    picture = reliability_picture(metrics["calibration"])
    storage.write_bytes(storage.join(output, "reliability.png"), picture)
    storage.write_json(storage.join(output, METRICS), metrics)
