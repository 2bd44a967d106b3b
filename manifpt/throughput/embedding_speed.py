"""Speed of embedding, beside that of a plain loop and of plain Ray Data.

    manifpt     the pipeline of build_manifold: readers, then actors, vectors into Parquet parts
    DataLoader  a single process: PyTorch's DataLoader with workers -> the network
    ray.data    read_images -> map_batches with an actor -> iter_batches, as in Ray's examples

All embed the same files by the same network, alternating, on the same cores, and on a GPU, in the
same precision, if there is one. Each runs on a few and on many images; the difference is the steady
rate, what a longer run takes, and the rest start-up.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import models

from manifpt.engine import chunk_work, pipeline, pools, session
from manifpt.engine.columns import ColumnTypes
from manifpt.images import DecodeRule, plan
from manifpt.images.read import ImageReader, unit_to_json
from manifpt.manifold.embed import EmbedStage
from manifpt.nets.device import device_and_precision, precision_of
from manifpt.spaces import Space, SpaceSettings, make_space
from manifpt.throughput.photographs import crops, photographs
from manifpt.throughput.timing import in_a_process, own_mb, steady_rate

BATCH, GPU_BATCH = 64, 256
ENGINES = ("manifpt", "DataLoader", "ray.data")


@dataclass(frozen=True)
class EmbeddingWorkload:
    """The workload of embedding: ``few`` and ``many`` images of a folder, by one network.

    The folder holds ``few/`` and ``many/``, PNG files of size x size pixels.
    """

    folder: str
    few: int
    many: int
    size: int
    backbone: str

    @property
    def weights(self) -> str:
        """The file of weights."""
        return f"{self.folder}/weights.pt"

    def space(self) -> Space:
        """Return the space that the network makes."""
        network = {"sl_network": self.backbone, "sl_weights": self.weights}
        return make_space("sl", self.size, SpaceSettings(**network, network_size=self.size))  # type: ignore[arg-type]


def prepare(work: EmbeddingWorkload, inputs: Sequence[str]) -> None:
    """Write the images, crops of photographs, and the weights, which are random."""
    parts = []
    for name, count in (("few", work.few), ("many", work.many)):
        folder = Path(work.folder) / name
        folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, count, 1000)
        parts += [(folder, start, min(1000, count - start), work.size, inputs) for start in starts]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_write, *zip(*parts, strict=True)))
    torch.manual_seed(0)
    torch.save(models.get_model(work.backbone, weights=None).state_dict(), work.weights)


def _write(folder: Path, start: int, count: int, size: int, inputs: Sequence[str]) -> None:
    images = crops(photographs(inputs), size, count, start, seen=True)
    for n, image in enumerate(images, start=start):
        Image.fromarray(image).save(folder / f"{n:06d}.png")


class Files(Dataset[tuple[torch.Tensor, str]]):
    """The images of a folder, uint8 3 x H x W, with their names."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(map(str, Path(folder).iterdir()))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        image = np.array(Image.open(self.paths[index]).convert("RGB"))
        return torch.from_numpy(image).permute(2, 0, 1), self.paths[index]


def plain_network(work: EmbeddingWorkload) -> Callable[[torch.Tensor], np.ndarray]:
    """Return a plain function of images, B x 3 x H x W uint8 -> features."""
    device, _ = device_and_precision()
    network = models.get_model(work.backbone, weights=None)
    network.load_state_dict(torch.load(work.weights, weights_only=True))
    network.fc = torch.nn.Identity()
    network = network.eval().to(device, memory_format=torch.channels_last)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def features(images: torch.Tensor) -> np.ndarray:
        pixels = images.to(device, non_blocking=True).float() / 255
        x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            out: np.ndarray = network(x).float().cpu().numpy()
        return out

    return features


def batch_size() -> int:
    """Return the number of images that a loop embeds at once."""
    return BATCH if device_and_precision()[0] == "cpu" else GPU_BATCH


def by_dataloader(work: EmbeddingWorkload, name: str, threads: int) -> tuple[int, float]:
    """Embed a folder in this process; return the number of vectors, and peak memory, MB."""
    torch.set_num_threads(threads)
    features, gpu = plain_network(work), torch.cuda.is_available()
    files = Files(f"{work.folder}/{name}")
    found, peak = [], 0.0
    # Beside a GPU, the cores have nothing to do but to decode.
    for images, _ in DataLoader(files, batch_size(), num_workers=threads, pin_memory=gpu):
        found.append(features(images))
        peak = max(peak, own_mb())
    np.save(f"{work.folder}/{name}.npy", np.concatenate(found))
    return sum(map(len, found)), peak


class _Embedder:
    """The class for Ray Data's map_batches."""

    def __init__(self, work: EmbeddingWorkload, threads: int) -> None:
        torch.set_num_threads(threads)
        self.features = plain_network(work)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = torch.from_numpy(np.array(batch["image"])).permute(0, 3, 1, 2)
        rss = np.full(len(images), own_mb())
        return {"vector": self.features(images), "peak_mb": rss}


def by_ray_data(
    work: EmbeddingWorkload, name: str, threads: int, num_gpus: float
) -> tuple[int, float]:
    """Embed a folder by Ray Data alone; return vectors and an actor's peak memory, MB."""
    import ray.data

    dataset = ray.data.read_images(f"{work.folder}/{name}", mode="RGB").map_batches(
        _Embedder,
        fn_constructor_args=(work, threads),
        batch_size=GPU_BATCH if num_gpus else BATCH,
        num_gpus=num_gpus,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    count, peak = 0, 0.0
    for batch in dataset.iter_batches(batch_size=None):
        count += len(batch["vector"])
        peak = max(peak, float(batch["peak_mb"].max()))
    return count, peak


@dataclass
class _Watched:
    """A stage that notes its process's peak memory."""

    stage: EmbedStage

    @property
    def takes(self) -> ColumnTypes:
        return self.stage.takes

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        return self.stage.gives

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        result = self.stage(table)
        return chunk_work.Result(result.tables, {**result.facts, "peak_mb": own_mb()})


def by_manifpt(work: EmbeddingWorkload, name: str, run: int, pool: pools.Pool) -> tuple[int, float]:
    """Embed a folder as build_manifold does; return vectors and an actor's peak memory, MB."""
    space = replace(work.space(), precision=precision_of("auto", pool))  # type: ignore[type-var]
    rule = DecodeRule(work.size)
    output = f"{work.folder}/out-{name}-{run}"
    specs = [unit_to_json(unit) for unit in plan([f"{work.folder}/{name}"])]
    build = partial(_Watched, EmbedStage([space], [rule], 4, output))
    read = ImageReader([rule])
    records = pipeline.run("embed", specs, read, build, output, pool)
    peak = max(record["facts"]["peak_mb"] for record in records)
    return int(pipeline.totals(records)["ok"]), peak


class EmbeddingSpeed(TypedDict):
    """The rate of one engine; ``ratio`` is to DataLoader, peaks are of few and of all images."""

    engine: str
    images: int
    seconds: float
    start_up_seconds: float
    images_per_second: float
    ratio: float
    peak_mb_few: float
    peak_mb_many: float


def measure(work: EmbeddingWorkload, repeats: int, threads: int) -> Iterator[EmbeddingSpeed]:
    """Yield a row an engine: medians over ``repeats`` alternating runs."""
    session.start()
    pool = pools.pool(pools.ANY, uses_gpu=True)
    run_by: dict[str, Callable[[str, int], tuple[int, float]]] = {
        "manifpt": lambda name, run: by_manifpt(work, name, run, pool),
        "DataLoader": lambda name, run: in_a_process(
            "DataLoader", by_dataloader, work, name, threads
        ),
        "ray.data": lambda name, run: by_ray_data(work, name, threads, pool.num_gpus),
    }
    names = {"few": work.few, "many": work.many}
    seconds: dict[tuple[str, str], list[float]] = {}
    peaks: dict[tuple[str, str], float] = {}
    for run in range(repeats):
        for engine, embed in run_by.items():
            for name, count in names.items():
                started = time.monotonic()
                found, peak = embed(name, run)
                seconds.setdefault((engine, name), []).append(time.monotonic() - started)
                peaks[engine, name] = max(peak, peaks.get((engine, name), 0.0))
                if found != count:
                    raise AssertionError(f"{engine}: {found} vectors of {count} images")
    pairs = {e: zip(seconds[e, "few"], seconds[e, "many"], strict=True) for e in ENGINES}
    rates = {e: steady_rate(work.few, work.many, list(pairs[e])) for e in ENGINES}
    for engine in ENGINES:
        few = float(np.median(seconds[engine, "few"]))
        yield {
            "engine": engine,
            "images": work.many,
            "seconds": float(np.median(seconds[engine, "many"])),
            "start_up_seconds": few - work.few / rates[engine],
            "images_per_second": rates[engine],
            "ratio": rates[engine] / rates["DataLoader"],
            "peak_mb_few": peaks[engine, "few"],
            "peak_mb_many": peaks[engine, "many"],
        }


def table(rows: Sequence[EmbeddingSpeed]) -> str:
    """Return rows as text."""
    head = f"{'engine':<12}{'images':>8}{'seconds':>9}{'start-up s':>12}{'images/s':>10}"
    lines = [
        f"{r['engine']:<12}{r['images']:>8}{r['seconds']:>9.1f}{r['start_up_seconds']:>12.1f}"
        f"{r['images_per_second']:>10.0f}{r['ratio']:>7.2f}"
        f"{r['peak_mb_few']:>11.0f}{r['peak_mb_many']:>9.0f}"
        for r in rows
    ]
    return "\n".join([f"{head}{'ratio':>7}{'MB at few':>11}{'at many':>9}", *lines])
