"""Artifacts -> a trained attributor, by Ray Train on streams of Ray Data."""

import hashlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from manifpt import outputs, session, storage, tensors, training
from manifpt.artifacts import artifacts_of, read_artifacts
from manifpt.attribution.attributor import SEEN, WEIGHTS
from manifpt.attribution.loop import Settings, train_loop
from manifpt.backbone import check_backbone, choose_stem
from manifpt.errors import ManifptError
from manifpt.manifold.projector import NEAREST, Projection

if TYPE_CHECKING:
    import ray.data

SHUFFLE_BYTES = 256 * 2**20
IN_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Options:
    """How to train; see the job's help for the meaning of each."""

    backbone: str = "resnet50"
    stem: str = "auto"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    patience: int = 8
    seed: int = 0


@dataclass
class _ReadPart:
    """One artifacts file -> arrays with labels, in a Ray Data task."""

    classes: list[str]

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        tables = [read_artifacts(uri, ["source", "artifact"]) for uri in batch["uri"]]
        table = pa.concat_tables(tables)
        labels = [self.classes.index(source) for source in table["source"].to_pylist()]
        artifacts = tensors.from_column(table["artifact"])
        return {"artifact": artifacts, "label": np.array(labels, dtype=np.int64)}


def _dataset(
    folder: str, manifest: dict[str, Any], split: str, classes: list[str]
) -> "ray.data.Dataset":
    """Return the rows of one split as a dataset; in memory if it is small, else streamed."""
    import ray.data

    files = [f for f in manifest["files"] if f["folder"] == split]
    # Files hold one source each; in this order the shuffle buffer meets all of them.
    files.sort(key=lambda f: hashlib.sha256(f["path"].encode()).digest())
    items = [{"uri": storage.join(folder, f["path"])} for f in files]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _ReadPart(classes), batch_size=1
    )
    size = sum(manifest["classes"][split].values()) * int(np.prod(manifest["shape"])) * 4
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    return dataset.materialize() if size < IN_MEMORY_SHARE * store else dataset


def _classes(manifest: dict[str, Any]) -> list[str]:
    counts = manifest["classes"]
    if "None" in counts["train"]:
        raise ManifptError(
            f"--input: {counts['train']['None']} training images name no source; give NAME=URI"
        )
    classes = sorted(counts["train"])
    if len(classes) < 2:
        raise ManifptError(
            f"--input: training needs at least two sources and has {classes}; add --input NAME=URI"
        )
    missing = [name for name in classes if name not in counts["validation"]]
    if missing:
        raise ManifptError(f"--input: no validation image of {missing[0]}; give it more images")
    return classes


def print_epoch(row: dict[str, float], epoch: int) -> None:
    """Print one line of an epoch."""
    print(
        f"epoch {epoch + 1}: train loss {row['train_loss']:.3f}, validation loss "
        f"{row['validation_loss']:.3f}, accuracy {row['validation_accuracy']:.3f}",
        file=sys.stderr,
        flush=True,
    )


def train_attributor(
    inputs: Sequence[str],
    output: str,
    options: Options,
    *,
    manifold: str | None = None,
    space: str | None = None,
    image_size: int | None = None,
    projection: Projection = NEAREST,
    num_workers: int | None = None,
    demand: session.Demand = session.ANY,
    report: training.EpochLog = print_epoch,
    overwrite: bool = False,
    die_at: int | None = None,
) -> dict[str, Any]:
    """Train on the artifacts of the splits train and validation; return the manifest.

    ``inputs`` are an artifacts folder, or images; images are projected onto ``manifold``, or
    taken as they are where ``space`` is ``image``. Their artifacts stay in ``output``/artifacts.
    ``die_at`` kills a worker after that epoch, once: a drill for tests and operators.
    """
    output = storage.absolute(output)
    check_backbone(options.backbone)
    made = storage.join(output, "artifacts")
    folder, artifacts = artifacts_of(
        inputs,
        made,
        manifold=manifold,
        space=space,
        image_size=image_size,
        projection=projection,
        demand=demand,
    )
    classes = _classes(artifacts)
    shape = tuple(artifacts["shape"])
    options = replace(options, stem=choose_stem(options.stem, shape[-1]))
    content = [artifacts["key"], artifacts["manifold_sha256"], classes]
    key = storage.digest([content, vars(options)])
    workers = training.workers(num_workers, demand.num_gpus)
    finished = outputs.begin(output, "attributor", key, overwrite=overwrite)
    if finished:
        return finished
    moments = artifacts["moments"]["train"]
    settings = Settings(
        classes=tuple(classes),
        shape=shape,
        mean=tuple(moments["mean"]),
        std=tuple(moments["std"]),
        rows=sum(artifacts["classes"]["train"].values()),
        **vars(options),
    )
    state = _fit(settings, folder, artifacts, output, key, workers, report, die_at)
    best = state["history"][state["best_epoch"]]
    manifest = outputs.publish(
        output,
        "attributor",
        key,
        {
            **vars(options),
            "classes": classes,
            "shape": list(shape),
            **{
                name: artifacts[name]
                for name in ("space", "decode", "manifold", "manifold_sha256", "projection")
            },
            "artifacts": folder,
            "rows": {split: artifacts["classes"][split] for split in ("train", "validation")},
            "history": state["history"],
            "precision": state["precision"],
            "best_epoch": state["best_epoch"],
            "validation_accuracy": best["validation_accuracy"],
            "validation_loss": best["validation_loss"],
            "files": _write(output, folder, artifacts, state["best_weights"]),
        },
    )
    training.clear(output)
    return manifest


def _write(
    output: str, folder: str, artifacts: dict[str, Any], best_weights: dict[str, Any]
) -> dict[str, Any]:
    """Write the weights, and the pixel hashes of what training and validation have seen."""
    weights = io.BytesIO()
    torch.save(best_weights, weights)
    seen = pa.concat_tables(
        [
            read_artifacts(storage.join(folder, file["path"]), ["pixel_sha256"])
            for file in artifacts["files"]
            if file["folder"] in ("train", "validation")
        ]
    )
    return {
        WEIGHTS: storage.write_bytes(storage.join(output, WEIGHTS), weights.getvalue()),
        SEEN: storage.write_bytes(storage.join(output, SEEN), storage.parquet_bytes(seen)),
    }


def _fit(
    settings: Settings,
    folder: str,
    artifacts: dict[str, Any],
    output: str,
    key: str,
    placed: training.Placed,
    report: training.EpochLog,
    die_at: int | None,
) -> dict[str, Any]:
    """Train on the splits to the end and return the last checkpoint's state."""
    datasets = {
        split: _dataset(folder, artifacts, split, list(settings.classes))
        for split in ("train", "validation")
    }
    per_row = 4 * int(np.prod(settings.shape))
    shuffle_rows = max(settings.batch_size, min(settings.rows, SHUFFLE_BYTES // per_row))
    config = {"settings": settings, "shuffle_rows": shuffle_rows}
    # Every worker reads all of validation and takes its own rows: none is dropped.
    return training.fit(train_loop, config, datasets, output, key, placed, report, die_at)
