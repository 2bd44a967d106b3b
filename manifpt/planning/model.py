"""Sizes, a cluster and measurements -> the time of a job there, and its bottleneck.

Images flow through readers and actors side by side, so that the slowest of these decides how long
they take: the readers' slots, the actors, the cores of all nodes, the driver, or storage. Before
and after that, a job has times that do not depend on its size, and work in one process.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from manifpt.engine.pools import Pool
from manifpt.errors import ManifptError
from manifpt.manifold.placement import SHARE, block_bytes, placement_kind
from manifpt.manifold.prepare import HELD_OUT
from manifpt.planning.cluster import Cluster
from manifpt.planning.measured import Measurements

# Requests to S3, as counted: for each chunk, and for each file of the input.
CHUNK_WRITES, CHUNK_READS, UNIT_READS = 2, 12, 3
SHARDS = 4


@dataclass(frozen=True)
class PlannedStage:
    """A step of a job: seconds of cores and GPUs in all, and bytes of storage."""

    name: str
    where: str  # reader, actor, driver or task
    cpu: float = 0.0
    gpu: float = 0.0
    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True)
class JobPlan:
    """The resources and seconds of a job.

    ``parts`` are its successive seconds, ``limits`` the seconds of its images by each resource that
    may limit them.
    """

    job: str
    workers: int
    images: int
    placement: str
    stages: tuple[PlannedStage, ...]
    parts: dict[str, float]
    limits: dict[str, float]
    writes: float
    reads: float

    @property
    def seconds(self) -> float:
        """From the command's start to its end."""
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """The longest part; if that is the images, the resource that limits them."""
        longest = max(self.parts, key=lambda name: self.parts[name])
        return max(self.limits, key=lambda n: self.limits[n]) if longest == "images" else longest


def _started(measured: Measurements, cluster: Cluster, pool: Pool, units: int) -> float:
    """Return the seconds until the first image is read: processes of a node share its cores."""
    fixed = measured.fixed
    actors = math.ceil(pool.size / cluster.nodes)
    readers = math.ceil(min(cluster.readers(pool), units) / cluster.nodes)
    together = (actors * fixed.actor + readers * fixed.reader) / cluster.cores
    return fixed.start + max(fixed.actor, together)


def _flow(
    measured: Measurements,
    stages: Sequence[PlannedStage],
    images: int,
    chunk: int,
    cluster: Cluster,
    pool: Pool,
    holders: float = 0.0,
) -> dict[str, float]:
    """Return the seconds of images by each resource that may limit them.

    ``holders`` is the share of the actors' time of actors that hold shards of a manifold.
    """
    by = {stage.name: stage.cpu + stage.gpu for stage in stages}
    actor = sum(s.cpu + s.gpu for s in stages if s.where == "actor") - holders
    share = min(images, chunk, measured.sizes.unit) / images  # of a chunk
    chunks = math.ceil(1 / share)
    units = math.ceil(images / measured.sizes.unit)
    threads = min(pool.threads, cluster.cores)
    threads = min(threads, max(1, cluster.cores * cluster.nodes // pool.size))
    alike = measured.images.threads if not any(s.gpu for s in stages) else 0.0
    faster = 1 / (1 - alike + alike / threads)
    slots = min(cluster.readers(pool), units)
    limits = {
        "actors": math.ceil(chunks / pool.size) * share * actor / faster,
        "readers": math.ceil(units / slots) / units * max(by["fetch"] + by["table"], by["decode"]),
        "cores": sum(s.cpu for s in stages) / (cluster.cores * cluster.nodes),
        "driver": chunks * measured.serial.chunk,
    }
    if holders:
        limits["holders of shards"] = holders / (cluster.cores * cluster.nodes / 2)
    if cluster.bandwidth is not None:
        moved = sum(stage.read + stage.written for stage in stages)
        limits["storage"] = moved / (cluster.bandwidth * cluster.nodes)
    return limits


def _first(
    measured: Measurements, stages: Sequence[PlannedStage], images: int, chunk: int
) -> float:
    """Return the seconds until the first chunk of images is read, when actors may begin."""
    by = {stage.name: stage.cpu for stage in stages}
    share = min(images, chunk, measured.sizes.unit) / images
    return share * max(by["fetch"] + by["table"], by["decode"])


def _reading(measured: Measurements, images: int) -> list[PlannedStage]:
    slower = measured.fixed.contention * images
    one, size = measured.images, measured.sizes.image * images
    return [
        PlannedStage("fetch", "reader", one.fetch * slower, read=size),
        PlannedStage("decode", "reader", one.decode * slower),
        PlannedStage("table", "reader", one.table * slower),
    ]


def _on(
    measured: Measurements, pool: Pool, name: str, seconds: float, **more: float
) -> PlannedStage:
    """Return an actor's stage, on the GPU if the pool has one."""
    seconds *= measured.fixed.contention
    if pool.num_gpus:
        return PlannedStage(name, "actor", gpu=seconds, **more)
    return PlannedStage(name, "actor", cpu=seconds, **more)


def _check(images: int, reals: int) -> None:
    if images < 1 or reals < 1:
        raise ManifptError("--images, --real: give numbers of at least 1")


def plan_attribute(
    measured: Measurements, images: int, reals: int, cluster: Cluster, actors: int | None = None
) -> JobPlan:
    """Plan ``manifpt attribute`` for a number of images and of the manifold's reals."""
    _check(images, reals)
    one, sizes, serial = measured.images, measured.sizes, measured.serial
    pool = cluster.pool(actors, uses_gpu=measured.uses_gpu)
    workers, chunk = pool.size, sizes.chunk
    bytes_of_reals = int(reals * sizes.real)
    memory = int(SHARE * cluster.memory * cluster.nodes)
    placement = placement_kind(bytes_of_reals, pool.size, memory, exact=measured.exact)
    search = one.search_floor + (one.search - one.search_floor) * reals / one.reals
    read = float(bytes_of_reals * pool.size)
    if placement == "sharded":
        pool, read = replace(pool, size=max(1, pool.size // 2)), float(bytes_of_reals)
    elif placement == "scan":
        chunk = max(1, int(block_bytes(memory, pool.size) / sizes.real))
        read = float(bytes_of_reals * math.ceil(images / min(chunk, sizes.unit)))
    stages = [
        *_reading(measured, images),
        _on(measured, pool, "embed", one.embed * images),
        _on(measured, pool, "search", search * images, read=read),
        _on(measured, pool, "classify", one.classify * images),
        PlannedStage(
            "write",
            "actor",
            one.write * images * measured.fixed.contention,
            written=sizes.attribution * images,
        ),
    ]
    held = stages[4].cpu + stages[4].gpu if placement == "sharded" else 0.0
    limits = _flow(measured, stages, images, chunk, cluster, pool, held)
    units = math.ceil(images / sizes.unit)
    chunks = math.ceil(images / min(images, chunk, sizes.unit))
    tail = [
        PlannedStage("ids", "task", serial.ids * images),
        PlannedStage("copies", "task", serial.copies * images),
        PlannedStage("check", "driver", serial.check * chunks, read=sizes.attribution * images),
    ]
    # Tasks share the cores of all nodes; the driver is one process.
    cores = cluster.cores * cluster.nodes
    parts = {
        "start": _started(measured, cluster, pool, units) + _first(measured, stages, images, chunk),
        "images": max(limits.values()),
        **{s.name: s.cpu / (cores if s.where == "task" else 1) for s in tail},
        "end": measured.fixed.end,
    }
    writes = CHUNK_WRITES * chunks
    reads = CHUNK_READS * chunks + UNIT_READS * units
    made = (*stages, *tail)
    return JobPlan("attribute", workers, images, placement, made, parts, limits, writes, reads)


def plan_build_manifold(
    measured: Measurements, reals: int, cluster: Cluster, actors: int | None = None
) -> JobPlan:
    """Plan ``manifpt build_manifold`` for a number of reals."""
    _check(1, reals)
    one, sizes, real = measured.images, measured.sizes, measured.reals
    pool = cluster.pool(actors, uses_gpu=measured.uses_gpu)
    stages = [
        *_reading(measured, reals),
        _on(measured, pool, "embed", one.embed * reals, written=sizes.real_stored * reals),
    ]
    limits = _flow(measured, stages, reals, sizes.chunk, cluster, pool)
    units = math.ceil(reals / sizes.unit)
    chunks = math.ceil(reals / min(reals, sizes.chunk, sizes.unit))
    stored = sizes.real_stored * reals
    at_once = min(SHARDS, cluster.nodes * cluster.cores)
    tail = [
        PlannedStage("gather", "task", real.gather * reals, read=stored, written=stored),
        PlannedStage("calibrate", "task", real.calibrate * min(reals, real.sample)),
        PlannedStage(
            "held-out", "task", real.held_out * reals * min(1, reals / HELD_OUT), read=stored
        ),
    ]
    parts = {
        "start": _started(measured, cluster, pool, units)
        + _first(measured, stages, reals, sizes.chunk),
        "images": max(limits.values()),
        "gather": tail[0].cpu / at_once,
        "calibrate": tail[1].cpu,
        "held-out": tail[2].cpu / at_once,
        "end": measured.fixed.build_end,
    }
    return JobPlan(
        "build_manifold",
        pool.size,
        reals,
        "shards in storage",
        (*stages, *tail),
        parts,
        limits,
        CHUNK_WRITES * chunks,
        CHUNK_READS * chunks + UNIT_READS * units,
    )
