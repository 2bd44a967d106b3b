"""An attributor on artifacts that it has not seen: scores a row, metrics, pictures."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, pipeline, session, storage, tensors
from manifpt.artifacts import artifacts_of, read_artifacts
from manifpt.attribution.attributor import Attributor
from manifpt.device import device_and_precision
from manifpt.errors import ManifptError
from manifpt.evaluation.closed_set import closed_set_metrics, confusion_matrix
from manifpt.manifold.projector import NEAREST, Projection

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
        artifacts = tensors.from_column(kept["artifact"])
        shape = self.attributor.manifest["shape"]
        probabilities = self.attributor.probabilities(artifacts.reshape(-1, *shape))
        predicted = probabilities.argmax(1)
        truth = np.array([classes.index(source) for source in kept["source"].to_pylist()])
        facts["confusion"] = confusion_matrix(truth, predicted, len(classes)).tolist()
        scores = kept.select(["id", "source", "sha256", "neighbor_id", "distance"])
        scores = scores.append_column("prediction", pa.array([classes[i] for i in predicted]))
        scores = scores.append_column("probability", pa.array(probabilities.max(1)))
        scores = scores.append_column("probabilities", pa.array(list(probabilities)))
        return pipeline.Result({"scores": scores}, facts)


def _read(uri: str) -> Iterator[pa.Table]:
    yield read_artifacts(uri)


def evaluate(
    inputs: Sequence[str],
    model: str,
    output: str,
    *,
    manifold: str | None = None,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate on the test split of artifacts, or on images; return the metrics.

    Images that declare no split all count as test. Whatever was in the manifold, in training or
    in validation is left out by its pixel hash, and counted.
    """
    output, model = storage.absolute(output), storage.absolute(model)
    attributor = Attributor.open(model)
    raw = attributor.manifest["manifold_sha256"] is None
    folder, artifacts = artifacts_of(
        inputs,
        storage.join(output, "artifacts"),
        manifold=None if raw else manifold or attributor.manifest["manifold"],
        space="image" if raw else None,
        undeclared="test",
        image_size=attributor.manifest["decode"]["size"] if raw else None,
        projection=NEAREST if raw else Projection(**attributor.manifest["projection"]),
        demand=demand,
    )
    attributor.check_manifold(artifacts["manifold_sha256"], "--input")
    if artifacts["space"] != attributor.manifest["space"]:
        raise ManifptError("--input: artifacts of another space than the attributor's")
    if artifacts["projection"] != attributor.manifest["projection"]:
        raise ManifptError("--input: artifacts of another projector than the attributor's")
    key = storage.digest([artifacts["key"], attributor.manifest["key"]])
    files = [f for f in artifacts["files"] if f["folder"] == "test"]
    if not files:
        raise ManifptError("--input: holds no image of the split test; see its manifest.json")
    pool = session.pool(demand, uses_gpu=True)
    if outputs.begin(output, "evaluation", key, overwrite=overwrite):
        return storage.read_json(storage.join(output, METRICS))
    records = pipeline.run(
        "evaluate",
        [storage.join(folder, f["path"]) for f in files],
        _read,
        partial(ScoreStage, model),
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
        {"model": model, "artifacts": folder, "files": pipeline.parts(records), **metrics},
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
