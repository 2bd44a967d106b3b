"""Artifacts -> a trained attributor, by Ray Train on streams of Ray Data."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, session, storage, tensors, training
from manifpt.attribution.attributor import Made, described, publish_attributor
from manifpt.attribution.loop import Settings, Standing, train_loop
from manifpt.attribution.network import Design
from manifpt.backbone import check_backbone
from manifpt.branches import Branch, artifact_column, artifacts_of, read_branches
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
    fusion: str = "late"
    augment: str = "mirror"


@dataclass
class _ReadPart:
    """The artifacts of some images in each space -> arrays with labels, in a Ray Data task."""

    classes: list[str]

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        read = ["id", "source", "artifact"]
        table = pa.concat_tables([read_branches(list(uris), read) for uris in batch["uris"]])
        labels = [self.classes.index(source) for source in table["source"].to_pylist()]
        names = [artifact_column(n) for n in range(len(batch["uris"][0]))]
        artifacts = {name: tensors.from_column(table[name]) for name in names}
        return {**artifacts, "label": np.array(labels, dtype=np.int64)}


def _dataset(branches: Sequence[Branch], split: str, classes: list[str]) -> "ray.data.Dataset":
    """Return the rows of one split as a dataset; in memory if it is small, else streamed."""
    import ray.data

    # Files hold one source each; in this order the shuffle buffer meets all of them.
    files = sorted(branches[0].files(split), key=lambda f: hashlib.sha256(f.encode()).digest())
    items = [{"uris": [storage.join(branch.uri, path) for branch in branches]} for path in files]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _ReadPart(classes), batch_size=1
    )
    size = sum(branches[0].manifest["classes"][split].values()) * _row_bytes(branches)
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    return dataset.materialize() if size < IN_MEMORY_SHARE * store else dataset


def _row_bytes(branches: Sequence[Branch]) -> int:
    """Return the bytes of an image's artifacts in all spaces, float32."""
    return 4 * sum(int(np.prod(branch.manifest["shape"])) for branch in branches)


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
    manifolds: Sequence[str] = (),
    images: bool = False,
    image_size: int | None = None,
    projection: Projection = NEAREST,
    num_workers: int | None = None,
    demand: session.Demand = session.ANY,
    report: training.EpochLog = print_epoch,
    overwrite: bool = False,
    die_at: int | None = None,
    until: int | None = None,
    start: str | None = None,
) -> dict[str, Any]:
    """Train on the artifacts of the splits train and validation; return the manifest.

    ``inputs`` are artifacts, in one space or several, or images; images are projected onto
    ``manifolds``, and with ``images`` taken as they are, too. Their artifacts stay in
    ``output``/artifacts. ``die_at`` kills a worker after that epoch, once: a drill for tests and
    operators.

    A training that reaches the epoch ``until`` before its end is not published: its ``history``
    and ``state`` are returned, and the same call with a later ``until`` goes on. ``start`` is the
    file of another's state to go on from, with these ``options``.
    """
    output = storage.absolute(output)
    check_backbone(options.backbone)
    made = storage.join(output, "artifacts")
    branches = artifacts_of(
        inputs,
        made,
        manifolds=manifolds,
        images=images,
        image_size=image_size,
        projection=projection,
        demand=demand,
    )
    artifacts = branches[0].manifest
    classes = _classes(artifacts)
    shapes = tuple(tuple(branch.manifest["shape"]) for branch in branches)
    design = Design(shapes, len(classes), options.backbone, options.stem, options.fusion)
    content = [[b.manifest["key"], b.manifest["manifold_sha256"]] for b in branches]
    key = storage.digest([content, classes, vars(options), *([start] if start else [])])
    workers = training.workers(num_workers, demand.num_gpus)
    finished = outputs.begin(output, "attributor", key, overwrite=overwrite)
    if finished:
        return finished
    print(
        f"train: {described([branch.name for branch in branches], design)}",
        file=sys.stderr,
        flush=True,
    )
    settings = _settings(options, design, branches, classes)
    leg = {"until": until or options.epochs, "start": start}
    state = _fit(settings, leg, branches, output, key, workers, report, die_at)
    best = state["history"][state["best_epoch"]]
    facts = {
        **vars(options),
        "history": state["history"],
        "precision": state["precision"],
        "best_epoch": state["best_epoch"],
        "validation_accuracy": best["validation_accuracy"],
        "validation_loss": best["validation_loss"],
    }
    if not Standing.of(state).stopped(settings):
        return facts | {"state": state}
    made_of = Made(branches, design, classes, state["best_weights"])
    manifest = publish_attributor(output, key, made_of, facts)
    training.clear(output)
    return manifest


def _settings(
    options: Options, design: Design, branches: Sequence[Branch], classes: list[str]
) -> Settings:
    found = [branch.manifest["moments"]["train"] for branch in branches]
    names = "epochs batch_size learning_rate weight_decay patience seed augment".split()
    return Settings(
        design,
        tuple(classes),
        tuple((tuple(m["mean"]), tuple(m["std"])) for m in found),
        sum(branches[0].manifest["classes"]["train"].values()),
        movable=tuple(branch.manifest["space"]["name"] != "freq" for branch in branches),
        **{name: getattr(options, name) for name in names},
    )


def _fit(
    settings: Settings,
    leg: dict[str, Any],
    branches: Sequence[Branch],
    output: str,
    key: str,
    placed: training.Placed,
    report: training.EpochLog,
    die_at: int | None,
) -> dict[str, Any]:
    """Train on the splits to the end and return the last checkpoint's state."""
    datasets = {
        split: _dataset(branches, split, list(settings.classes))
        for split in ("train", "validation")
    }
    shuffle_rows = min(settings.rows, SHUFFLE_BYTES // _row_bytes(branches))
    rows = max(settings.batch_size, shuffle_rows)
    config = {"settings": settings, "shuffle_rows": rows, **leg}
    # Every worker reads all of validation and takes its own rows: none is dropped.
    return training.fit(train_loop, config, datasets, output, key, placed, report, die_at)
