"""Real images -> an encoder trained without labels, by Ray Train on streams of Ray Data."""

import hashlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from manifpt import storage
from manifpt.engine import chunk_work, pipeline, pools
from manifpt.engine.columns import ColumnTypes
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, plan
from manifpt.images.decode import DecodeCard
from manifpt.images.places import input_places
from manifpt.images.probe import natural_size
from manifpt.images.read import ImageReader, chunk_rows, pixels_of, unit_to_json
from manifpt.images.sources import MANIFOLD_REALS, InputsCard, content_key, describe
from manifpt.nets import training
from manifpt.nets.backbone import build_backbone, check_backbone, choose_stem
from manifpt.outputs import claims
from manifpt.outputs.formats import ChunkRecord, Manifest, PartEntry, RowCounts
from manifpt.spaces.barlow import (
    MEAN,
    NOW,
    STD,
    PretrainingSettings,
    PretrainingState,
    pretrain_loop,
)
from manifpt.spaces.views import Views
from manifpt.storage import Written, tensors

if TYPE_CHECKING:
    import ray.data

IMAGES = "_images"
WEIGHTS = "weights.pt"
HELD_OUT = 20  # one real in this number
PART_ROWS = 256
SHUFFLE_BYTES = 256 * 2**20
IN_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class PretrainingRecipe:
    """The options of a pretraining; see the job's help for the meaning of each."""

    backbone: str = "resnet50"
    stem: str = "auto"
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    projector_width: int = 2048
    seed: int = 0

    def card(self) -> "PretrainingCard":
        """Return the recipe for a manifest."""
        card: Any = asdict(self)
        return card


class PretrainingCard(TypedDict):
    """A ``PretrainingRecipe`` in a manifest."""

    backbone: str
    stem: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    projector_width: int
    seed: int


class SplitStage:
    """Images -> pixels to train on and pixels held out; copies of an image stay together."""

    takes: ClassVar[ColumnTypes] = {"id": pa.string(), "pixel_sha256": pa.string(), "image": None}
    gives: ClassVar[Mapping[str, ColumnTypes]] = {
        f"{IMAGES}/{split}": {"id": pa.string(), "pixels": None}
        for split in ("train", "validation")
    }

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Return the tables of both; the hash of an image decides between them."""
        held_out = pa.array(
            [int(h[:15], 16) % HELD_OUT == 0 for h in table["pixel_sha256"].to_pylist()]
        )
        pixels = tensors.to_column(pixels_of(table))
        rows = table.select(["id"]).append_column("pixels", pixels)
        split = {"train": rows.filter(pc.invert(held_out)), "validation": rows.filter(held_out)}
        return chunk_work.Result({f"{IMAGES}/{n}": t for n, t in split.items() if t.num_rows})


def _read_part(batch: dict[str, Any], size: int) -> dict[str, np.ndarray]:
    """One part -> its ids and its images, N x size x size x 3, in a Ray Data task."""
    table = pa.concat_tables([storage.read_parquet(uri) for uri in batch["uri"]])
    images = tensors.from_column(table["pixels"]).reshape(-1, size, size, 3)
    return {"id": np.array(table["id"].to_pylist(), dtype=object), "image": images}


@dataclass
class _DrawViews:
    """Images -> views, in a Ray Data task; ``now`` names the file with the number of the epoch."""

    size: int
    seed: int
    now: str | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        epoch = storage.read_json(self.now)["epoch"] if self.now else -1
        return Views(self.size)(batch["image"], list(batch["id"]), self.seed, epoch)


def _dataset(
    uris: Sequence[str], rows: int, draw: _DrawViews, num_cpus: float
) -> "ray.data.Dataset":
    """Return the views of the images in some parts; images in memory if few, else streamed."""
    import ray.data

    # By hash, so that the shuffle buffer meets all sources.
    ordered = sorted(uris, key=lambda uri: hashlib.sha256(uri.encode()).digest())
    items = [{"uri": uri} for uri in ordered]
    images = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        partial(_read_part, size=draw.size), batch_size=1, num_cpus=num_cpus
    )
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    small = 3 * draw.size**2 * rows < IN_MEMORY_SHARE * store
    images = images.materialize() if small else images
    views = images.map_batches(draw, batch_size=None, num_cpus=num_cpus)
    return views.materialize() if small and draw.now is None else views


def dimension_of(backbone: str, stem: str, size: int) -> int:
    """Return the number of features of a backbone for size x size images."""
    network = build_backbone(backbone, None, 3, stem)
    try:
        with torch.no_grad():
            features = network(torch.zeros(2, 3, size, size))
        _, dimension = features.shape
    except (AssertionError, AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ManifptError(
            f"--backbone {backbone}: does not make features of {size} px images ({reason}); "
            "take another, such as resnet50"
        ) from None
    return int(dimension)


def _check_share(batch_size: int, workers: int) -> None:
    """Raise if a worker would have a single image, which has no variance."""
    if batch_size < 2 * workers:
        raise ManifptError(
            f"--batch-size {batch_size}: {workers} workers need two images each; give at least "
            f"{2 * workers}"
        )


def _check_reals(batch_size: int, rows: dict[str, int], counts: RowCounts) -> None:
    """Raise if there is not one whole batch of reals, or none of them is held out."""
    if counts["ok"] == 0:
        raise ManifptError(
            f"--input: none of {counts['rows_in']} images could be used "
            f"({counts['by_error'] or 'no image of source real'}); check the input"
        )
    if rows["train"] < batch_size:
        raise ManifptError(
            f"--batch-size {batch_size}: more than the {rows['train']} reals to train on; take a "
            "smaller one or give more images"
        )
    if rows["validation"] < 2:
        raise ManifptError(
            f"--input: of {counts['ok']} reals, {rows['validation']} are held out to measure the "
            "loss, and two are needed; give more images"
        )


def print_epoch(row: dict[str, float], epoch: int) -> None:
    """Print one line of an epoch."""
    losses = f"train loss {row['train_loss']:.2f}, validation loss {row['validation_loss']:.2f}"
    print(f"epoch {epoch + 1}: {losses}", file=sys.stderr, flush=True)


class EncoderFacts(PretrainingCard, RowCounts):
    """The recipe of a training, its inputs, and the numbers of images to train on and held out."""

    decode: DecodeCard
    inputs: InputsCard
    rows: dict[str, int]
    quarantine: list[PartEntry]


class EncoderManifest(Manifest, EncoderFacts):
    """The manifest of an encoder.

    ``files`` are keyed by their path. ``network_size`` is the side of the images that it takes,
    ``mean`` and ``std`` are those of its input, ``history`` has a row an epoch.
    """

    method: str
    network_size: int
    mean: list[float]
    std: list[float]
    dimension: int
    history: list[dict[str, float]]
    precision: str
    files: dict[str, Written]


def pretrain_encoder(
    inputs: Sequence[str],
    output: str,
    options: PretrainingRecipe,
    *,
    image_size: int | None = None,
    filter_name: str = "bicubic",
    control: training.TrainingControl = training.TrainingControl(report=print_epoch),
) -> EncoderManifest:
    """Train on the real images of ``inputs``; return the manifest of the encoder in ``output``.

    If an input is a benchmark, its reals of the split ``manifold`` are taken; other inputs are
    taken whole. One real in twenty is held out. The weights are those after the last epoch, in
    torchvision's naming, without a last layer.
    """
    output = storage.absolute(output)
    check_backbone(options.backbone)
    units = plan(inputs, MANIFOLD_REALS, source="real")
    size = image_size or natural_size(units, MANIFOLD_REALS)
    rule = DecodeRule(size, filter_name)
    options = replace(options, stem=choose_stem(options.stem, size))
    dimension = dimension_of(options.backbone, options.stem, size)
    key = storage.digest([content_key(units), rule.card(), vars(options)])
    placed = control.workers(options.batch_size)
    _check_share(options.batch_size, placed[0])
    pool = pools.pool(replace(control.demand, num_gpus=None), uses_gpu=False)
    read = input_places(inputs, output)
    with claims.claim(output, "encoder", key, apart=read, terms=control.terms) as claim:
        if claim.finished:
            return claim.finished
        specs = [unit_to_json(unit) for unit in units]
        chunk = min(PART_ROWS, chunk_rows(size))
        decode = ImageReader([rule], MANIFOLD_REALS, chunk=chunk)
        records = pipeline.run("decode", specs, decode, SplitStage, output, pool)
        counts = pipeline.totals(records)
        parts = _parts(records)
        rows = {split: sum(part["rows"] for part in parts[split]) for split in parts}
        with claim.abandoned_if_refused():
            _check_reals(options.batch_size, rows, counts)
        settings = PretrainingSettings(
            size=size, dimension=dimension, rows=rows["train"], **vars(options)
        )
        uris = {n: [storage.join(output, p["path"]) for p in parts[n]] for n in rows}
        state = _fit(settings, uris, rows, output, key, placed, pool.num_cpus, control)
        quarantine = [p for p in pipeline.parts(records) if p["folder"] == "quarantine"]
        facts: EncoderFacts = {
            **options.card(),
            "decode": rule.card(),
            "inputs": describe(inputs, units),
            **counts,
            "rows": rows,
            "quarantine": quarantine,
        }
        manifest = _publish(claim, settings, state, facts)
        storage.remove_files(storage.join(output, IMAGES), r"(train|validation)/[\d-]+\.parquet")
        pipeline.clear_records(output)
        training.clear(output)
        return manifest


def _publish(
    claim: claims.Claim,
    settings: PretrainingSettings,
    state: PretrainingState,
    facts: EncoderFacts,
) -> EncoderManifest:
    """Write the weights of a training's last state; publish the encoder, return its manifest."""
    weights = io.BytesIO()
    torch.save(state["trunk"], weights)
    uri = storage.join(claim.folder, WEIGHTS)
    body: EncoderManifest = {
        "method": "barlow-twins",
        **facts,
        "network_size": settings.size,
        "mean": list(MEAN),
        "std": list(STD),
        "dimension": settings.dimension,
        "history": state["history"],
        "precision": state["precision"],
        "files": {WEIGHTS: storage.write_bytes(uri, weights.getvalue())},
    }
    return claim.publish(body)


def _parts(records: Sequence[ChunkRecord]) -> dict[str, list[PartEntry]]:
    """Return the parts to train on and those held out."""
    found = pipeline.parts(records)
    return {
        split: [part for part in found if part["folder"] == f"{IMAGES}/{split}"]
        for split in ("train", "validation")
    }


def _fit(
    settings: PretrainingSettings,
    uris: dict[str, list[str]],
    rows: dict[str, int],
    output: str,
    key: str,
    placed: training.Placed,
    num_cpus: float,
    control: training.TrainingControl,
) -> PretrainingState:
    """Train to the end and return the last checkpoint's state."""
    now = {"train": storage.join(output, training.EPOCHS, NOW), "validation": None}
    datasets = {
        split: _dataset(
            uris[split], rows[split], _DrawViews(settings.size, settings.seed, now[split]), num_cpus
        )
        for split in uris
    }
    shuffle_rows = min(settings.rows, SHUFFLE_BYTES // (6 * settings.size**2))
    config = {
        "settings": settings,
        "shuffle_rows": max(settings.batch_size, shuffle_rows),
        "validation_batch": min(settings.batch_size, rows["validation"]),
    }
    state: PretrainingState = training.fit(
        pretrain_loop, config, datasets, output, key, placed, control
    )
    return state
