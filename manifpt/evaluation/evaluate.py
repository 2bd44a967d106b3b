"""An attributor on artifacts that it has not seen: scores a row, metrics, pictures."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, pipeline, session, storage, tensors
from manifpt.artifacts import compute_artifacts
from manifpt.attribution.attribute import trained_targets
from manifpt.attribution.attributor import Attributor
from manifpt.attribution.registered import Source, opened
from manifpt.branches import (
    Branch,
    are_artifacts,
    artifact_column,
    open_artifacts,
    read_branches,
)
from manifpt.device import device_and_precision
from manifpt.errors import ManifptError
from manifpt.evaluation.closed_set import closed_set_metrics, confusion_matrix

METRICS = "metrics.json"


@dataclass
class ScoreStage:
    """Artifacts -> scores of the rows that are neither seen nor of an unknown source."""

    model: str

    @cached_property
    def attributor(self) -> Attributor:
        """The attributor, read at first use."""
        return Attributor.open(self.model, device_and_precision()[0])

    @cached_property
    def seen(self) -> frozenset[str]:
        """The pixel hashes of training and validation."""
        return self.attributor.seen()

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Score rows; the record counts what was left out and why."""
        classes = self.attributor.classes
        hashes, sources = table["pixel_sha256"].to_pylist(), table["source"].to_pylist()
        seen = np.array([h in self.seen for h in hashes]) | np.array(table["in_manifold"])
        other = ~seen & np.array([source not in classes for source in sources])
        kept = table.filter(pa.array(~(seen | other)))
        facts = {"seen": int(seen.sum()), "other_source": int(other.sum())}
        if kept.num_rows == 0:
            return pipeline.Result({}, facts)
        names = [artifact_column(n) for n in range(len(self.attributor.branches))]
        artifacts = [tensors.from_column(kept[name]) for name in names]
        probabilities = self.attributor.probabilities(artifacts)
        predicted = probabilities.argmax(1)
        truth = np.array([classes.index(source) for source in kept["source"].to_pylist()])
        facts["confusion"] = confusion_matrix(truth, predicted, len(classes)).tolist()
        scores = kept.select(["id", "source", "sha256", "neighbor_id", "distance"])
        scores = scores.append_column("prediction", pa.array([classes[i] for i in predicted]))
        scores = scores.append_column("probability", pa.array(probabilities.max(1)))
        scores = scores.append_column("probabilities", pa.array(list(probabilities)))
        return pipeline.Result({"scores": scores}, facts)


def _read(text: str) -> Iterator[pa.Table]:
    yield read_branches(json.loads(text))


def _check(attributor: Attributor, branches: Sequence[Branch]) -> None:
    """Raise unless artifacts are what the attributor was trained on, in the same spaces."""
    trained = [branch["name"] for branch in attributor.branches]
    if len(branches) != len(trained):
        given = "+".join(branch.name for branch in branches)
        raise ManifptError(
            f"--input: artifacts of {given}; the attributor's are {'+'.join(trained)}"
        )
    hashes = [branch.manifest["manifold_sha256"] for branch in branches]
    attributor.check_manifolds(hashes, "--input")
    for branch, expected in zip(branches, attributor.branches, strict=True):
        for name, word in (("space", "space"), ("projection", "projector")):
            if branch.manifest[name] != expected[name]:
                raise ManifptError(f"--input: artifacts of another {word} than the attributor's")


def _branches(
    inputs: Sequence[str],
    attributor: Attributor,
    source: Source,
    output: str,
    demand: session.Demand,
) -> list[Branch]:
    """Return the artifacts that ``inputs`` are, or that are made of them as in training."""
    if not are_artifacts(inputs):
        made = storage.join(output, "artifacts")
        targets = trained_targets(attributor, source.manifolds)
        compute_artifacts(inputs, made, targets=targets, undeclared="test", demand=demand)
        inputs = [made]
    branches = open_artifacts(inputs)
    _check(attributor, branches)
    return branches


def evaluate(
    inputs: Sequence[str],
    model: str,
    output: str,
    *,
    manifolds: Sequence[str] = (),
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate on the test split of artifacts, or on images; return the metrics.

    Images that declare no split all count as test. Whatever was in the manifold, in training or
    in validation is left out by its pixel hash, and counted. ``model`` is an attributor's folder,
    or MLflow's name of one (see ``registered``).
    """
    output = storage.absolute(output)
    with opened(model, manifolds) as found:
        attributor = Attributor.open(found.attributor)
        branches = _branches(inputs, attributor, found.kept(output), output, demand)
        key = storage.digest([[b.manifest["key"] for b in branches], attributor.manifest["key"]])
        files = branches[0].files("test")
        if not files:
            raise ManifptError("--input: holds no image of the split test; see its manifest.json")
        pool = session.pool(demand, uses_gpu=True)
        if outputs.begin(output, "evaluation", key, overwrite=overwrite):
            return storage.read_json(storage.join(output, METRICS))
        source = found.kept(output)  # again, if --overwrite has just emptied the folder
    records = pipeline.run(
        "evaluate",
        [json.dumps([storage.join(branch.uri, path) for branch in branches]) for path in files],
        _read,
        partial(ScoreStage, source.attributor),
        output,
        pool,
    )
    facts = [record["facts"] for record in records]
    matrices = [np.array(f["confusion"]) for f in facts if "confusion" in f]
    left_out = {name: sum(f.get(name, 0) for f in facts) for name in ("seen", "other_source")}
    if not matrices:
        outputs.abandon(output)
        raise ManifptError(f"--input: no unseen image of the attributor's classes ({left_out})")
    metrics = closed_set_metrics(np.sum(matrices, axis=0), attributor.classes) | {
        "left_out": left_out
    }
    _write(output, metrics)
    outputs.publish(
        output,
        "evaluation",
        key,
        {
            **source.facts(),
            "attributor": attributor.manifest["key"],
            "artifacts": [b.uri for b in branches],
            "files": pipeline.parts(records),
            **metrics,
        },
    )
    pipeline.clear_records(output)
    return metrics


def _write(output: str, metrics: dict[str, Any]) -> None:
    """Write metrics.json, and the confusion matrix as a table and a picture."""
    from manifpt.evaluation.pictures import confusion_picture

    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["true \\ predicted", *metrics["classes"]])
    for name, row in zip(metrics["classes"], metrics["confusion"], strict=True):
        writer.writerow([name, *row])
    storage.write_bytes(storage.join(output, "confusion.csv"), table.getvalue().encode())
    storage.write_bytes(storage.join(output, "confusion.png"), confusion_picture(metrics))
    storage.write_json(storage.join(output, METRICS), metrics)
