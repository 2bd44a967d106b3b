"""Speed of attribution, beside that of a plain loop; its memory; and reading from S3.

    manifpt     the call of manifpt attribute: readers, then actors, parts that survive a crash
    loop        a single process: DataLoader with workers -> faiss.IndexFlatL2 -> the network
    manifpt S3  as manifpt; the same tars come from a SeaweedFS server on the same cores

The attributor is that of the paper (a ResNet18 on artifacts of the nearest reals), or the usual
one, with heads on pixels, high-pass residuals, statistics, and what a denoiser removes. All
attribute the same tars with the same attributor, alternating, each run in a process of its own.
Each runs on a few and on many images; the difference is the steady rate, what a longer run takes,
and the rest start-up.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from manifpt import storage
from manifpt.artifacts.compute import ArtifactRecipe
from manifpt.artifacts.projection import Target
from manifpt.attribution.crawl.attribute import attribute
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.train import train_attributor
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.attribution.model.usual import train_usual
from manifpt.engine import session
from manifpt.manifold.build import ManifoldSettings, build_manifold
from manifpt.manifold.search import SearchPlan
from manifpt.throughput.photographs import crops, generated, photographs
from manifpt.throughput.seaweed import binary, s3_server
from manifpt.throughput.timing import Watch, in_a_process, steady_rate

TAR_IMAGES = 1000
# Sides in pixels: of the files, and of the images that the attributor of the paper sees.
STORED, SIDE = 64, 32
REALS, TRAINING = 4000, 600
BATCH, WORKERS = 256, 2
OURS, FROM_S3, LOOP = "manifpt", "manifpt S3", "loop"
# Parts of the names that Ray gives to the processes of a job.
ROLES = {"_Reader": "reader", "_Worker": "actor", "write_duplicates": "copies"}


@dataclass(frozen=True)
class AttributionWorkload:
    """The workload of attribution: tars of TAR_IMAGES images under ``folder``/crawl.

    ``usual`` says whether they are for the usual attributor.
    """

    folder: str
    usual: bool = False

    @property
    def model(self) -> str:
        """The attributor."""
        return f"{self.folder}/model"

    @property
    def side(self) -> int:
        """The side in pixels of the images that the attributor sees."""
        return STORED if self.usual else SIDE

    def tars(self, images: int, root: str = "") -> list[str]:
        """Return the tars that hold ``images`` images, here or under another root."""
        root = root or self.folder
        return [f"{root}/crawl/{n:05d}.tar" for n in range(-(-images // TAR_IMAGES))]


class EngineRun(NamedTuple):
    """A run: its start and its end on the machine's clock, and its results."""

    ready: float
    ended: float
    first: float | None
    images: int
    predictions: list[str]


def write_png_tar(path: str, images: np.ndarray) -> None:
    """Write images, N x H x W x 3 uint8, as a tar of PNG files."""
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            sink = io.BytesIO()
            Image.fromarray(image).save(sink, "PNG")
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(sink.getvalue())
            sink.seek(0)
            tar.addfile(member, sink)


def prepare(work: AttributionWorkload, images: int, inputs: Sequence[str]) -> None:
    """Write the tars, crops of photographs, and train an attributor on others for one epoch."""
    photos = photographs(inputs)
    Path(work.folder, "crawl").mkdir(parents=True)
    for number, path in enumerate(work.tars(images)):
        write_png_tar(path, crops(photos, STORED, TAR_IMAGES, number, seen=False))
    reals = crops(photos, work.side, REALS, 10**6, seen=True)
    others = crops(photos, work.side, TRAINING, 10**6 + 1, seen=True)
    for name, some in (("reals", reals), ("real", others), ("pca", generated(reals, TRAINING, 3))):
        write_png_tar(f"{work.folder}/{name}.tar", some)
    in_a_process("preparation", _train, work)


def _train(work: AttributionWorkload) -> None:
    import ray

    session.start()
    classes = [f"{name}={work.folder}/{name}.tar" for name in ("real", "pca")]
    if work.usual:
        train_usual(classes, work.model, TrainingRecipe(epochs=1), denoiser_steps=50)
    else:
        manifold = f"{work.folder}/manifold"
        reals = [f"real={work.folder}/reals.tar"]
        build_manifold(reals, manifold, settings=ManifoldSettings(image_size=SIDE))
        recipe = ArtifactRecipe(manifolds=[manifold])
        train_attributor(
            classes, work.model, TrainingRecipe("resnet18", "standard", epochs=1), recipe=recipe
        )
    ray.shutdown()


class Tars(IterableDataset[tuple[np.ndarray, str]]):
    """The images of tars, uint8 side x side x 3, with their names; each worker has its own tars."""

    def __init__(self, paths: list[str], side: int) -> None:
        self.paths, self.side = paths, side

    def __iter__(self) -> Iterator[tuple[np.ndarray, str]]:
        info = get_worker_info()
        mine = self.paths[info.id :: info.num_workers] if info else self.paths
        for path in mine:
            with tarfile.open(path, "r|") as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is not None:
                        image = Image.open(io.BytesIO(content.read())).convert("RGB")
                        if image.size != (self.side, self.side):
                            size = (self.side, self.side)
                            image = image.resize(size, Image.Resampling.BICUBIC)
                        yield np.array(image), f"{path}#{member.name}"


class LoopHead:
    """The artifacts of one head of an attributor, without any engine.

    The nearest real of each image is sought by faiss.IndexFlatL2, as evidence or as x*.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        if target.manifold:
            self.reals = target.manifold.read(SearchPlan()).vectors
            self.index = faiss.IndexFlatL2(self.reals.shape[1])
            self.index.add(self.reals)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the artifacts of N x H x W x 3 images, and columns of their nearest reals."""
        embedded = self.target.space.embed(images)
        manifold = self.target.manifold
        if manifold is None:
            return embedded, {}
        distance, nearest = self.index.search(embedded.reshape(len(images), -1), 1)
        columns = {"neighbor": nearest[:, 0], "distance": np.sqrt(distance[:, 0])}
        if manifold.denoiser:
            return manifold.denoiser.artifacts(embedded), columns
        return embedded - self.reals[nearest[:, 0]].reshape(embedded.shape), columns


def by_loop(work: AttributionWorkload, paths: list[str], output: str, threads: int) -> EngineRun:
    """Attribute tars in this process by a plain loop."""
    ready = time.monotonic()
    torch.set_num_threads(threads)
    attributor = TrainedAttributor.open(work.model)
    heads = [LoopHead(target) for target in trained_targets(attributor, ()).values()]
    parts = []
    tars = Tars(paths, work.side)
    for images, names in DataLoader(tars, batch_size=BATCH, num_workers=WORKERS):
        artifacts, evidence = zip(*(head(images.numpy()) for head in heads), strict=True)
        probabilities = attributor.fused(attributor.outputs(artifacts).logits)
        columns = {
            "id": names,
            "prediction": [attributor.classes[i] for i in probabilities.argmax(1).tolist()],
            "probability": probabilities.max(1),
        }
        parts.append(pa.table(columns | {k: v for c in evidence for k, v in c.items()}))
    found = pa.concat_tables(parts)
    pq.write_table(found, f"{output}.parquet")
    ended = time.monotonic()
    order = np.argsort(found["id"].to_pylist())
    return EngineRun(ready, ended, None, len(found), found["prediction"].take(order).to_pylist())


def by_manifpt(work: AttributionWorkload, uris: list[str], output: str) -> EngineRun:
    """Attribute tars as manifpt attribute does, on a Ray of its own."""
    import ray

    session.start()
    ready, wall = time.monotonic(), time.time()
    summary = attribute(uris, work.model, output)
    ended = time.monotonic()
    ray.shutdown()
    parts = sorted(Path(output, "attributions").iterdir())
    first = min(part.stat().st_mtime for part in parts) - wall
    found = [p for part in parts for p in pq.read_table(part)["prediction"].to_pylist()]
    if summary["rows_in"] != len(found):
        raise AssertionError(f"{len(found)} attributions of {summary['rows_in']} images")
    return EngineRun(ready, ended, first, len(found), found)


def upload(work: AttributionWorkload, images: int, bucket: str) -> None:
    """Copy the tars to a bucket."""
    for path, uri in zip(work.tars(images), work.tars(images, bucket), strict=True):
        storage.copy(path, uri)


class EngineSpeed(TypedDict):
    """Medians of an engine; ``first_result_seconds`` is None where no result was seen early."""

    engine: str
    images: int
    seconds: float
    start_up_seconds: float
    first_result_seconds: float | None
    images_per_second: float


@dataclass
class EngineRuns:
    """The runs of one engine by number of images: seconds, start-up, and time to a result."""

    seconds: dict[int, list[float]]
    start_up: list[float]
    first: list[float]
    predictions: dict[int, list[str]]

    def row(self, engine: str, few: int, many: int) -> EngineSpeed:
        """Return the medians."""
        pairs = list(zip(self.seconds[few], self.seconds[many], strict=True))
        rate = steady_rate(few, many, pairs)
        here = float(np.median(self.seconds[few])) - few / rate
        return {
            "engine": engine,
            "images": many,
            "seconds": float(np.median(self.seconds[many])),
            "start_up_seconds": float(np.median(self.start_up)) + here,
            "first_result_seconds": float(np.median(self.first)) if self.first else None,
            "images_per_second": rate,
        }


class AttributionSpeed(EngineSpeed):
    """An engine beside the loop: its rate over the loop's, and predictions that differ."""

    ratio: float
    other_predictions: int


class PeakMemory(TypedDict):
    """The peak memory of a job's processes by role, MB, for a number of images."""

    images: int
    peak_mb: dict[str, float]


def measure(
    work: AttributionWorkload, few: int, many: int, repeats: int, threads: int
) -> Iterator[AttributionSpeed]:
    """Yield a row an engine: medians over ``repeats`` alternating runs."""
    found: dict[str, EngineRuns] = {}
    with ExitStack() as stack:
        bucket = None
        if binary() is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            bucket = stack.enter_context(s3_server(Path(folder), "benchmark", "benchmark"))
            upload(work, many, bucket)
        for run in range(repeats):
            for images in (few, many):
                for engine in (OURS, LOOP, *([FROM_S3] if bucket else [])):
                    output = f"{work.folder}/{engine.replace(' ', '-')}-{images}-{run}"
                    root = bucket if engine == FROM_S3 else None
                    args = (work, work.tars(images, root or ""), output)
                    started = time.monotonic()
                    ran = (
                        in_a_process(engine, by_loop, *args, threads)
                        if engine == LOOP
                        else in_a_process(engine, by_manifpt, *args)
                    )
                    _note(
                        found.setdefault(engine, EngineRuns({}, [], [], {})), images, ran, started
                    )
    rows = [measured.row(engine, few, many) for engine, measured in found.items()]
    by_engine = {row["engine"]: row for row in rows}
    for row in rows:
        theirs = by_engine[LOOP]
        pairs = zip(
            found[row["engine"]].predictions[many], found[LOOP].predictions[many], strict=True
        )
        yield {
            **row,
            "ratio": row["images_per_second"] / theirs["images_per_second"],
            "other_predictions": sum(a != b for a, b in pairs),
        }


def _note(measured: EngineRuns, images: int, ran: EngineRun, started: float) -> None:
    if ran.images != images:
        raise AssertionError(f"{ran.images} attributions of {images} images")
    measured.seconds.setdefault(images, []).append(ran.ended - ran.ready)
    measured.start_up.append(ran.ready - started)
    measured.predictions[images] = ran.predictions
    if ran.first is not None:
        measured.first.append(ran.ready - started + ran.first)


def memory(work: AttributionWorkload, sizes: Sequence[int]) -> Iterator[PeakMemory]:
    """Yield the peak memory of the job's processes, MB a role, a row a number of images."""
    for images in sizes:
        watches: list[Watch] = []

        def watch(process: int, watches: list[Watch] = watches) -> Watch:
            watches.append(Watch(process, ROLES))
            return watches[0]

        args = (work, work.tars(images), f"{work.folder}/memory-{images}")
        ran = in_a_process(OURS, by_manifpt, *args, watch=watch)
        yield {"images": ran.images, "peak_mb": dict(sorted(watches[0].peaks.items()))}


def table(rows: Sequence[AttributionSpeed]) -> str:
    """Return the rows of ``measure`` as text."""
    head = f"{'engine':<12}{'images':>8}{'seconds':>9}{'start-up s':>12}{'first s':>9}"
    lines = [f"{head}{'images/s':>10}{'ratio':>7}{'other predictions':>19}"]
    for r in rows:
        first = r["first_result_seconds"]
        shown = "-" if first is None else f"{first:.1f}"
        lines.append(
            f"{r['engine']:<12}{r['images']:>8}{r['seconds']:>9.1f}{r['start_up_seconds']:>12.1f}"
            f"{shown:>9}{r['images_per_second']:>10.0f}{r['ratio']:>7.2f}"
            f"{r['other_predictions']:>19}"
        )
    return "\n".join(lines)


def memory_table(rows: Sequence[PeakMemory]) -> str:
    """Return the rows of ``memory`` as text."""
    roles = sorted({role for row in rows for role in row["peak_mb"]})
    lines = [f"{'peak MB at':<12}" + "".join(f"{role:>9}" for role in roles)]
    lines += [
        f"{row['images']:<12}" + "".join(f"{row['peak_mb'].get(role, 0):>9.0f}" for role in roles)
        for row in rows
    ]
    return "\n".join(lines)
