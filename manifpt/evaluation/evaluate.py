"""An attributor on artifacts that it has not seen: scores a row, metrics, pictures."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.artifacts.branches import (
    ArtifactBranch,
    are_artifacts,
    artifact_column,
    check_unchanged,
    of_classes,
    open_artifacts,
    read_branches,
)
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.attribution.crawl.registered import AttributorSource, model_places, opened_model
from manifpt.attribution.model.near import NEAR
from manifpt.attribution.model.targets import manifold_places, trained_targets
from manifpt.attribution.model.tiled import mean_or_none
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import USUAL, Rule, decide
from manifpt.engine import pipeline, session
from manifpt.engine.tasks import result
from manifpt.errors import ManifptError
from manifpt.evaluation.closed_set import accuracy, closed_set_metrics, confusion_matrix
from manifpt.evaluation.score_report import NEAR_SCORES, SCORES, UNKNOWN, confidence_report
from manifpt.evaluation.unseen import Unseen
from manifpt.images.perceptual import DISTANCE
from manifpt.images.places import input_places
from manifpt.images.stacks import image_starts
from manifpt.outputs import claims
from manifpt.storage import tensors

METRICS = "metrics.json"


@dataclass
class ScoreStage(Unseen):
    """Artifacts -> scores of the rows that are not seen; those of other sources are the unknown."""

    rule: Rule = USUAL

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Score rows; the record counts what was left out and why."""
        classes = self.attributor.classes
        seen, other = self.unusable(table, np.array(table["in_manifold"]))
        images = image_starts(table)
        facts: dict[str, Any] = {
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
        for name, mask in (("news", ~looks), ("near", looks)):
            if mask.any():
                scores = self._scores(counted.filter(pa.array(mask)))
                tables.setdefault(self._folder(name), []).append(scores)
                truth, predicted = (
                    np.array([classes.index(name) for name in scores[column].to_pylist()])
                    for column in ("source", "prediction")
                )
                facts[name] = confusion_matrix(truth, predicted, len(classes)).tolist()
        both = {folder: pa.concat_tables(parts) for folder, parts in tables.items()}
        return pipeline.Result(both, facts)

    def _folder(self, name: str) -> str:
        """Return where the scores go of rows that are ``news``, or ``near`` training."""
        return SCORES if self.keep_near or name == "news" else NEAR_SCORES

    def _scores(self, table: pa.Table) -> pa.Table:
        """Return the scores table of an artifacts table: all that metrics are computed from.

        It has a row an image; distances are means of its tiles, the neighbour is its first tile's.
        ``uncalibrated`` are the probabilities before the heads were weighed.
        """
        classes, heads = self.attributor.classes, len(self.attributor.manifest["weights"])
        names = [artifact_column(n) for n in range(len(self.attributor.branches))]
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
        columns: dict[str, Any] = {
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


def _read(text: str, sources: Sequence[str]) -> Iterator[pa.Table]:
    table = read_branches(json.loads(text))
    yield of_classes(table, sources) if sources else table


def _check(
    attributor: TrainedAttributor,
    branches: Sequence[ArtifactBranch],
    *,
    other_manifold: bool = False,
) -> None:
    """Raise unless artifacts are what the attributor was trained on, in the same spaces.

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
        for name, word in (("space", "space"), ("projection", "projector")):
            if branch.manifest[name] != expected[name]:
                raise ManifptError(
                    f"--input: artifacts of another {word} than the attributor's; "
                    "give images, which are projected as in training, or train on such artifacts"
                )


def _branches(
    inputs: Sequence[str],
    attributor: TrainedAttributor,
    source: AttributorSource,
    output: str,
    demand: session.Demand,
    terms: claims.Terms,
) -> list[ArtifactBranch]:
    """Return the artifacts that ``inputs`` are, or that are made of them as in training."""
    if not are_artifacts(inputs):
        folder = storage.join(output, "artifacts")
        targets = trained_targets(attributor, source.manifolds)
        recipe = ArtifactRecipe(undeclared="test")
        compute_artifacts(inputs, folder, recipe, targets=targets, demand=demand, terms=terms)
        inputs = [folder]
    branches = open_artifacts(inputs)
    _check(attributor, branches)
    return branches


def evaluate(
    inputs: Sequence[str],
    model: str,
    output: str,
    *,
    sources: Sequence[str] = (),
    manifolds: Sequence[str] = (),
    rule: Rule = USUAL,
    keep_near: bool = False,
    other_manifold: bool = False,
    demand: session.Demand = session.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> dict[str, Any]:
    """Evaluate on the test split of artifacts, or on images; return the metrics.

    Images that declare no split all count as test. Whatever was in the manifold, in training or
    in validation is left out by its pixel hash, and counted. ``model`` is an attributor's folder,
    or MLflow's name of one (see ``registered``). With ``sources`` only their images are taken.
    Images of sources that are none of the attributor's classes are the unknown, which ``rule``
    and scores are to find; they do not count for the closed set.

    Images that look like one of training or validation count with ``keep_near`` alone. In any case
    ``near_training`` of the metrics has their number and the accuracies with and without them.

    With ``other_manifold`` the artifacts may be of other manifolds than in training, such as those
    of another data set's reals; ``other_manifold`` of the metrics has the hashes of both.
    """
    if other_manifold and not are_artifacts(inputs):
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
        if other_manifold:
            branches = open_artifacts(inputs)
            _check(attributor, branches, other_manifold=True)
        else:
            branches = _branches(
                inputs, attributor, model_source.kept(output), output, demand, terms
            )
        content = [b.manifest["key"] for b in branches]
        looks = {"keep_near": keep_near, "distance": DISTANCE}
        looks |= {"other_manifold": True} if other_manifold else {}
        made_of = [content, attributor.manifest["key"], list(sources), vars(rule), looks]
        key = storage.digest(made_of)
        files = branches[0].files("test")
        if not files:
            raise ManifptError("--input: holds no image of the split test; see its manifest.json")
        pool = session.pool(demand, uses_gpu=True)
        source = model_source.kept(output)
    keep = ("artifacts", "model")
    with claims.claim(output, "evaluation", key, apart=read, terms=terms, keep=keep) as claim:
        if claim.finished:
            return storage.read_json(storage.join(output, METRICS))
        records = pipeline.run(
            "evaluate",
            [json.dumps([storage.join(branch.uri, path) for branch in branches]) for path in files],
            partial(_read, sources=sources),
            partial(ScoreStage, source.attributor, keep_near, rule),
            output,
            pool,
        )
        facts = [record["facts"] for record in records]
        parts = pipeline.parts(records)
        left_out = {name: sum(f.get(name, 0) for f in facts) for name in ("seen", "other_source")}
        news, near = (_total(facts, name, len(attributor.classes)) for name in ("news", "near"))
        left_out["near_training"] = 0 if keep_near else int(near.sum())
        counted = news + near if keep_near else news
        if not counted.sum():
            claim.abandon()
            hint = "; --keep-near counts those near training" if near.sum() else ""
            raise ManifptError(
                f"--input: no unseen image of the attributor's classes ({left_out}){hint}"
            )
        metrics = closed_set_metrics(counted, attributor.classes)
        without_hash = sum(f["without_hash"] for f in facts)
        metrics["near_training"] = near_report(news, near, without_hash, keep_near=keep_near)
        open_set = TrainedAttributor.open(source.attributor).open_set
        names = open_set.score_names if open_set else []
        paths = {
            folder: [storage.join(output, p["path"]) for p in parts if p["folder"] == folder]
            for folder in (SCORES, UNKNOWN)
        }
        metrics |= result(pool, confidence_report, paths, attributor.classes, names, rule)
        metrics["left_out"] = left_out
        if other_manifold:
            metrics["other_manifold"] = {
                name: [branch["manifold_sha256"] for branch in given]
                for name, given in (
                    ("training", attributor.branches),
                    ("test", [branch.manifest for branch in branches]),
                )
            }
        check_unchanged(branches)
        claim.check()
        _write(output, metrics)
        claim.publish(
            {
                **source.facts(),
                "attributor": attributor.manifest["key"],
                "artifacts": [b.uri for b in branches],
                "files": parts,
                **metrics,
            },
        )
        pipeline.clear_records(output)
        return metrics


def _total(facts: Sequence[dict[str, Any]], name: str, classes: int) -> np.ndarray:
    """Return the sum of the confusion matrices of that name, classes x classes."""
    matrices = [np.array(fact[name]) for fact in facts if name in fact]
    total: np.ndarray = np.sum([np.zeros((classes, classes), np.int64), *matrices], axis=0)
    return total


def near_report(
    news: np.ndarray, near: np.ndarray, without_hash: int, *, keep_near: bool
) -> dict[str, Any]:
    """Return how many images are ``near`` training, and the accuracies with and without them.

    Both are confusion matrices. Of ``without_hash`` images it is unknown, and they count.
    """
    return {
        "images": int(near.sum()),
        "without_hash": without_hash,
        "distance": DISTANCE,
        "counted": keep_near,
        "accuracy_with": float(accuracy(news + near)),
        "accuracy_without": float(accuracy(news)) if news.sum() else None,
    }


def near_line(near: dict[str, Any]) -> str:
    """Return what ``near_report`` gave as a line of text."""
    without, known = near["accuracy_without"], near["without_hash"]
    text = (
        f"near_training: {near['images']} test images look like one of training or validation and "
        f"{'count' if near['counted'] else 'do not count'}; accuracy with them "
        f"{near['accuracy_with']:.3f}, without "
        f"{'-' if without is None else format(without, '.3f')}"
    )
    return text + (f"; {known} have no perceptual hash, and count" if known else "")


def _write(output: str, metrics: dict[str, Any]) -> None:
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
