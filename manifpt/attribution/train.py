"""Artifacts -> a trained attributor, by Ray Train on streams of Ray Data."""

import hashlib
import io
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from manifpt import outputs, session, storage, tensors
from manifpt.artifacts import artifacts_of, read_artifacts
from manifpt.attribution.attributor import SEEN, WEIGHTS
from manifpt.attribution.loop import Settings, load_state, train_loop
from manifpt.backbone import check_backbone, choose_stem
from manifpt.errors import ManifptError
from manifpt.manifold.projector import NEAREST, Projection

if TYPE_CHECKING:
    import ray.data

EPOCHS = "_epochs"
TRAINING = "_training"
SHUFFLE_BYTES = 256 * 2**20
IN_MEMORY_SHARE = 0.25

EpochLog = Callable[[dict[str, float], int], None]


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


def _workers(num_workers: int | None, num_gpus: float | None) -> tuple[int, dict[str, float], bool]:
    """Return the number of workers, what each holds, and whether that includes a GPU."""
    has = session.capacity()
    cpus, gpus = has.get("CPU", 1.0), has.get("GPU", 0.0)
    use_gpu = gpus >= 1 if num_gpus is None else num_gpus > 0
    each_gpu = (num_gpus or 1.0) if use_gpu else 0.0
    room = max(cpus - 1, 0.5)  # a reader needs the rest
    workers = num_workers or (int(gpus / each_gpu) if use_gpu else max(1, int(room)))
    each_cpu = 1.0 if workers <= room else 0.5
    if workers * each_cpu > room or workers * each_gpu > gpus:
        raise ManifptError(
            f"the cluster is too small: {workers} workers of {each_cpu:g} CPU and {each_gpu:g} GPU "
            f"beside a reader do not fit on its {cpus:g} CPU and {gpus:g} GPU; "
            f"ask for fewer --num-workers"
        )
    holds = {"CPU": each_cpu} | ({"GPU": each_gpu} if use_gpu else {})
    return workers, holds, use_gpu


@contextmanager
def _reported(epochs_uri: str, report: EpochLog) -> Any:
    """Report epochs as workers write them, from a thread, while the block waits for them."""
    done = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        found = storage.files_under(epochs_uri) if storage.exists(epochs_uri) else []
        for uri, _ in found:
            if uri.endswith(".json") and uri not in seen:
                seen.add(uri)
                report(storage.read_json(uri), int(storage.base_name(uri)[:5]))

    def watch() -> None:
        while not done.wait(2):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)
        look()


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
    report: EpochLog = print_epoch,
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
    workers = _workers(num_workers, demand.num_gpus)
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
    epochs_uri = storage.join(output, EPOCHS)
    with _reported(epochs_uri, report):
        state = _fit(settings, folder, artifacts, output, key, workers, die_at)
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
    for scratch in (EPOCHS, TRAINING):
        storage.remove(storage.join(output, scratch))
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
    placed: tuple[int, dict[str, float], bool],
    die_at: int | None,
) -> dict[str, Any]:
    """Run Ray Train to the end and return the last checkpoint's state."""
    from ray.train import (
        CheckpointConfig,
        DataConfig,
        FailureConfig,
        RunConfig,
        ScalingConfig,
    )
    from ray.train.torch import TorchTrainer

    workers, holds, use_gpu = placed
    filesystem, path = storage.arrow_filesystem(storage.join(output, TRAINING))
    datasets = {
        split: _dataset(folder, artifacts, split, list(settings.classes))
        for split in ("train", "validation")
    }
    per_row = 4 * int(np.prod(settings.shape))
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "settings": settings,
            "epochs_uri": storage.join(output, EPOCHS),
            "shuffle_rows": max(settings.batch_size, min(settings.rows, SHUFFLE_BYTES // per_row)),
            "die_at": die_at,
            "threads": max(1, int(session.capacity().get("CPU", 1) / workers)),
        },
        datasets=datasets,
        # Every worker reads all of validation and takes its own rows: none is dropped.
        dataset_config=DataConfig(datasets_to_split=["train"]),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker=holds
        ),
        run_config=RunConfig(
            name=key[:16],
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise ManifptError("training ended without a checkpoint; see the log above")
    with result.checkpoint.as_directory() as local:
        return load_state(local)
