"""Artifacts -> a trained attributor, by Ray Train on streams of Ray Data."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from manifpt import claims, session, storage, tensors, training
from manifpt.artifacts import channel_moments, total_moments
from manifpt.attribution.attributor import described, publish_attributor
from manifpt.attribution.calibrate import calibrate, network_of
from manifpt.attribution.loop import Settings, Standing, train_loop
from manifpt.attribution.network import Design
from manifpt.backbone import check_backbone
from manifpt.branches import (
    Branch,
    artifact_column,
    artifacts_of,
    of_classes,
    read_branches,
    row_counts,
)
from manifpt.errors import ManifptError
from manifpt.images.places import places
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
        table = of_classes(table, self.classes)
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
    counts = row_counts(branches[0].manifest)[split]
    size = sum(counts[name] for name in classes) * _row_bytes(branches)
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    return dataset.materialize() if size < IN_MEMORY_SHARE * store else dataset


def _row_bytes(branches: Sequence[Branch]) -> int:
    """Return the bytes of an image's artifacts in all spaces, float32."""
    return 4 * sum(int(np.prod(branch.manifest["shape"])) for branch in branches)


def _classes(manifest: dict[str, Any], sources: Sequence[str]) -> list[str]:
    """Return what is to be told apart: ``sources``, or all that have training images."""
    counts = manifest["classes"]
    unknown = [name for name in sources if name not in counts["train"]]
    if unknown:
        raise ManifptError(
            f"--sources {unknown[0]}: no training image of it; there are {sorted(counts['train'])}"
        )
    classes = sorted(sources or counts["train"])
    if "None" in classes:
        raise ManifptError(
            f"--input: {counts['train']['None']} training images name no source; give NAME=URI"
        )
    if len(classes) < 2:
        raise ManifptError(
            f"--input: training needs at least two sources and has {classes}; add --input NAME=URI"
        )
    missing = [name for name in classes if name not in counts["validation"]]
    if missing:
        raise ManifptError(f"--input: no validation image of {missing[0]}; give it more images")
    return classes


@dataclass
class _Moments:
    """Arrays of some images -> the moments of each space's, in a Ray Data task."""

    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        found = [
            channel_moments(batch[artifact_column(n)].reshape(-1, *shape))
            for n, shape in enumerate(self.shapes)
        ]
        return {"moments": [json.dumps(found)]}


def _moments(
    branches: Sequence[Branch], design: Design, classes: list[str], train: "ray.data.Dataset"
) -> list[dict[str, Any]]:
    """Return the moments of each space's training artifacts: those of ``classes`` alone."""
    if len(classes) == len(branches[0].manifest["classes"]["train"]):
        return [branch.manifest["moments"]["train"] for branch in branches]
    rows = train.map_batches(_Moments(design.shapes), batch_size=512).take_all()
    found = zip(*(json.loads(row["moments"]) for row in rows), strict=True)
    return [total_moments(list(one)) for one in found]


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
    sources: Sequence[str] = (),
    manifolds: Sequence[str] = (),
    images: bool = False,
    image_size: int | None = None,
    tiles: int | None = None,
    projection: Projection = NEAREST,
    num_workers: int | None = None,
    demand: session.Demand = session.ANY,
    report: training.EpochLog = print_epoch,
    terms: claims.Terms = claims.AS_IS,
    die_at: int | None = None,
    until: int | None = None,
    start: str | None = None,
) -> dict[str, Any]:
    """Train on the artifacts of the splits train and validation; return the manifest.

    ``inputs`` are artifacts, in one space or several, or images; images are projected onto
    ``manifolds``, and with ``images`` taken as they are, too. Their artifacts stay in
    ``output``/artifacts. With ``sources`` all other images are left aside. ``die_at`` kills a
    worker after that epoch, once: a drill for tests and operators.

    A training that reaches the epoch ``until`` before its end is not published: its ``history``
    and ``state`` are returned, and the same call with a later ``until`` goes on. ``start`` is the
    file of another's state to go on from, with these ``options``.
    """
    output = storage.absolute(output)
    check_backbone(options.backbone)
    read = [*places(inputs, output), *(("--manifold", uri) for uri in manifolds)]
    claims.check_place(output, "attributor", read, terms)
    branches = artifacts_of(
        inputs,
        storage.join(output, "artifacts"),
        manifolds=manifolds,
        images=images,
        image_size=image_size,
        tiles=tiles,
        projection=projection,
        demand=demand,
        terms=terms,
    )
    classes = _classes(branches[0].manifest, sources)
    shapes = tuple(tuple(branch.manifest["shape"]) for branch in branches)
    design = Design(shapes, len(classes), options.backbone, options.stem, options.fusion)
    content = [[b.manifest["key"], b.manifest["manifold_sha256"]] for b in branches]
    key = storage.digest([content, classes, vars(options), *([start] if start else [])])
    workers = training.workers(num_workers, demand.num_gpus)
    keep = ("artifacts",)
    with claims.claim(output, "attributor", key, apart=read, terms=terms, keep=keep) as claim:
        if claim.finished:
            return claim.finished
        print(
            f"train: {described([branch.name for branch in branches], design)}",
            file=sys.stderr,
            flush=True,
        )
        datasets = {split: _dataset(branches, split, classes) for split in ("train", "validation")}
        moments = _moments(branches, design, classes, datasets["train"])
        settings = _settings(options, design, branches, classes, moments)
        shuffle_rows = min(settings.rows, SHUFFLE_BYTES // _row_bytes(branches))
        config = {
            "settings": settings,
            "shuffle_rows": max(settings.batch_size, shuffle_rows),
            "until": until or options.epochs,
            "start": start,
        }
        # Every worker reads all of validation and takes its own rows: none is dropped.
        state = training.fit(train_loop, config, datasets, output, key, workers, report, die_at)
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
        build = partial(network_of, design, state["best_weights"])
        made, found = calibrate(build, branches, classes, demand)
        manifest = publish_attributor(claim, made, found | facts)
        training.clear(output)
        return manifest


def _settings(
    options: Options,
    design: Design,
    branches: Sequence[Branch],
    classes: list[str],
    moments: Sequence[dict[str, Any]],
) -> Settings:
    names = "epochs batch_size learning_rate weight_decay patience seed augment".split()
    counts = row_counts(branches[0].manifest)["train"]
    return Settings(
        design,
        tuple(classes),
        tuple((tuple(m["mean"]), tuple(m["std"])) for m in moments),
        sum(counts[name] for name in classes),
        movable=tuple(branch.manifest["space"]["name"] != "freq" for branch in branches),
        **{name: getattr(options, name) for name in names},
    )
