"""Measurements for plans on this machine, in one to three minutes.

The steps of an image are timed in this process, each by itself: the shortest of some repetitions,
which other processes disturb least. Then ``attribute`` and ``build_manifold`` run as commands on a
sample of the images; their time beyond the steps is start, end and contention.
"""

import io
import itertools
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, storage
from manifpt.artifacts.projection import Projector, decoding_of
from manifpt.attribution.crawl.duplicates import find_duplicates
from manifpt.attribution.crawl.settings import AttributionSettings
from manifpt.engine.pools import ANY_SEARCH
from manifpt.engine.unique import check_ids
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule
from manifpt.images.decode import decoded_or_error
from manifpt.images.perceptual import DISTANCE
from manifpt.images.raw import Raw, raw_images
from manifpt.images.read import as_space_sees, images_table, pixels_of, row_of
from manifpt.images.units import units
from manifpt.manifold.embed import write_rows
from manifpt.manifold.placement import plan_for
from manifpt.manifold.prepare import HELD_OUT, PAUSE, REPEATS, SAMPLE_BYTES
from manifpt.manifold.search import SearchPlan, nearest
from manifpt.manifold.shard import ROWS, Shard
from manifpt.manifold.stored import StoredManifold
from manifpt.nets.device import device_and_precision, threads_of
from manifpt.outputs.verified import entries, wrong
from manifpt.planning.measured import RealSeconds
from manifpt.storage import tensors

LIMIT_SECONDS = 900
TIMES = 3
ROWS_TIMED = 256
FEWEST, MOST = 512, 4096  # images of the runs
RUN_SECONDS = 15.0
FILES = 8
FIRST_UNITS = 1024


def shortest(
    run: Callable[[], object],
    times: int = TIMES,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Return the shortest seconds of some repetitions, after one that does not count.

    They are processor time, which other processes hardly change, or those of another clock.
    """
    run()
    taken = []
    for _ in range(times):
        began = clock()
        run()
        taken.append(clock() - began)
    return min(taken)


@dataclass(frozen=True)
class InputSample:
    """Images as the input has them, the seconds to fetch one, and the images of a file."""

    raws: list[Raw]
    fetch: float
    unit: float

    @property
    def bytes(self) -> float:
        """Mean number of bytes of an image."""
        return float(np.mean([len(raw.data or b"") for raw in self.raws]))

    def tars(self, folder: str, count: int) -> float:
        """Write FILES tars of ``count`` images in all; return the bytes of an image in them."""
        Path(folder).mkdir()
        some = self.raws[:count]
        for number in range(FILES):
            path = Path(folder, f"{number:02d}.tar")
            with tarfile.open(path, "w") as tar:
                for place, raw in enumerate(some[number::FILES]):
                    ending = Path(raw.uri).suffix or ".png"
                    info = tarfile.TarInfo(f"{place:06d}{ending}")
                    info.size = len(raw.data or b"")
                    tar.addfile(info, io.BytesIO(raw.data or b""))
        return sum(path.stat().st_size for path in Path(folder).iterdir()) / len(some)


def input_sample(inputs: Sequence[str], rule: DecodeRule, most: int = MOST) -> InputSample:
    """Fetch the first images of an input, up to ``most`` or for a while."""
    raws: list[Raw] = []
    counts: list[int] = []  # of the units that were read to their ends
    began = time.perf_counter()
    before = 0
    for unit in itertools.islice(units(inputs), FIRST_UNITS):
        for raw in raw_images(unit, rule):
            raws.append(raw)
            if len(raws) >= most or time.perf_counter() - began > RUN_SECONDS:
                break
        else:
            counts.append(len(raws) - before)
            before = len(raws)
            continue
        # The unit may end there, or have more images.
        size = sum(len(raw.data or b"") for raw in raws[before:])
        counts += [] if counts else [round((len(raws) - before) * max(1.0, unit.bytes / size))]
        break
    fetch = (time.perf_counter() - began) / max(1, len(raws))
    good = [raw for raw in raws if raw.data]
    if len(good) < FILES:
        raise ManifptError(f"--input: {len(good)} images are too few to measure; give more")
    return InputSample(good, fetch, max(1.0, float(np.mean(counts))))


@dataclass
class Steps:
    """The steps of an image, as a reader and an actor of ``attribute`` take them."""

    model: str
    projectors: list[Projector]

    def __post_init__(self) -> None:
        self.rule, self.sizes = decoding_of(self.projectors)
        self.stage = AttributionSettings().stage(self.model, self.projectors)

    def read(self, raws: Sequence[Raw]) -> tuple[dict[str, float], pa.Table]:
        """Return the seconds of decoding an image and of making its row; and the table."""

        def decoded() -> list[Any]:
            return [decoded_or_error(raw.data or b"", self.rule, self.sizes) for raw in raws]

        def table() -> pa.Table:
            rows = [row_of(r, f, self.rule, self.sizes) for r, f in zip(raws, seen, strict=True)]
            made = images_table([r for r, _ in rows], [p for _, p in rows], self.sizes)
            storage.encode_table(made)
            return made

        seen, count = decoded(), len(raws)
        taken = {"decode": shortest(decoded) / count, "table": shortest(table) / count}
        made = table()
        good = made.filter(made["error"].is_null())
        if not good.num_rows:
            raise ManifptError("--input: none of the first images could be decoded; give others")
        return taken, good.drop_columns(["error", "message"])

    def work(self, table: pa.Table, cores: int) -> dict[str, float]:
        """Return the seconds of an image in an actor's steps, and the part that threads divide."""
        count = table.num_rows
        embed = search = floor = 0.0
        wall = time.perf_counter
        clock = wall if device_and_precision()[0] == "cuda" else time.process_time
        with threads_of(1):
            alone = shortest(lambda: self.stage(table), clock=clock)
            slow = shortest(lambda: self.stage(table), clock=wall)
            for projector in self.projectors:
                seen = as_space_sees(table, projector.rule)
                pixels = pixels_of(seen)
                embed += shortest(partial(projector.space.embed, pixels), clock=clock)
                if projector.manifold is not None:
                    flat = projector.space.embed(pixels).reshape(len(pixels), -1)
                    whole, least = _searched(projector, flat, clock)
                    search, floor = search + whole, floor + least
            parts = self.stage(table).tables
            write = shortest(lambda: [storage.parquet_bytes(part) for part in parts.values()])
        with threads_of(cores):
            fast = shortest(lambda: self.stage(table), clock=wall)
        share = (1 - fast / slow) / (1 - 1 / cores) if cores > 1 else 0.0
        return {
            "embed": embed / count,
            "search": search / count,
            "search_floor": floor / count,
            "classify": max(0.0, alone - embed - search) / count,
            "write": write / count,
            "threads": min(1.0, max(0.0, share)),
        }


def _searched(
    projector: Projector, flat: np.ndarray, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the seconds of a search among all reals, and the part that does not depend on them."""
    manifold = projector.manifold
    if manifold is None:
        raise ValueError("a space without a manifold is not searched")
    plan, nobody = plan_for(manifold, ANY_SEARCH), np.full(len(flat), "", dtype=object)
    k = projector.projection.neighbours
    counts = [entry["reals"] for entry in manifold.manifest["shards"]]

    def seconds(numbers: range) -> float:
        shard = manifold.read(plan, numbers)
        return shortest(lambda: nearest([shard], flat, k, nobody, plan), clock=clock)

    whole = seconds(range(len(counts)))
    if len(counts) == 1:
        return whole, 0.0
    part, share = seconds(range(1)), counts[0] / sum(counts)
    return whole, min(whole, max(0.0, (part - share * whole) / (1 - share)))


def processor_seconds(code: str, *args: str) -> float:
    """Return the processor time of a new Python process that runs some code."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    subprocess.run([sys.executable, "-c", code, *args], check=True, timeout=LIMIT_SECONDS)
    return used() - before


ACTOR = """
import sys, ray.data, torch
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.model.targets import trained_targets
from manifpt.manifold.placement import plan_for
from manifpt.engine.pools import ANY_SEARCH
attributor = TrainedAttributor.open(sys.argv[1])
attributor.network()
for target in trained_targets(attributor, sys.argv[2:]).values():
    if target.manifold:
        target.manifold.read(plan_for(target.manifold, ANY_SEARCH))
"""
READER = "import ray.data, manifpt.images.read"


@dataclass(frozen=True)
class CommandRun:
    """A run of a command: its start, the times and bytes of its parts, and its end."""

    began: float
    parts: list[float]
    bytes: int
    ended: float


def command(job: str, output: str, *flags: str, environment: dict[str, str]) -> CommandRun:
    """Run a job as a command."""
    began = time.time()
    given = [sys.executable, "-m", "manifpt", job, "--output", output, *flags]
    ran = subprocess.run(
        given,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env={**os.environ, **environment},
        check=False,
    )
    ended = time.time()
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise ManifptError(f"--measure: {job} ended with {ran.returncode}: {last}")
    files = [path.stat() for path in Path(output, "attributions").glob("*.parquet")]
    times = sorted(file.st_mtime for file in files)
    return CommandRun(began, times, sum(file.st_size for file in files), ended)


def serial(output: str) -> dict[str, float]:
    """Return the times of serial work on a whole output of ``attribute``."""
    manifest = outputs.require(output, "attributions", "--measure")
    parts = [file for file in manifest["files"] if file["folder"] == "attributions"]
    rows, paths = sum(part["rows"] for part in parts), [part["path"] for part in parts]
    listed = list(entries(parts))
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            storage.copy(storage.join(output, path), storage.join(folder, path))
        copies = shortest(lambda: find_duplicates(folder, parts, DISTANCE)) / rows
    return {
        "ids": shortest(lambda: check_ids(output, parts)) / rows,
        "check": shortest(lambda: wrong(output, listed)) / len(parts),
        "copies": copies,
    }


def reals_of(manifold: StoredManifold) -> RealSeconds:
    """Return the times of a real when a manifold is built."""
    shard: Shard = manifold.read(SearchPlan(), range(1))
    count = len(shard.ids)
    names = list(map(str, shard.ids))
    columns = {name: names for name in ROWS if name != "perceptual_hash"}
    rows = pa.table(columns)
    with tempfile.TemporaryDirectory() as folder, threads_of(1):

        def gather() -> None:
            tensors.from_column(pa.chunked_array([tensors.to_column(shard.vectors)]))
            write_rows(folder, "shard", rows, shard.vectors)

        gathered = shortest(gather)
        hashes = np.full(HELD_OUT, "", dtype=object)
        queries = np.resize(shard.vectors, (HELD_OUT, shard.vectors.shape[1])) + 0.01
        held = shortest(lambda: nearest([shard], queries, 1, hashes, SearchPlan()), 1)
    timed = manifold.manifest["search"]["measured"]
    seconds = [s + PAUSE for row in timed for s in row["seconds"].values()]
    reals = manifold.manifest["reals"]
    sample = max(1, SAMPLE_BYTES // (manifold.dimension * 4))
    return RealSeconds(
        gather=gathered / count,
        calibrate=(REPEATS + 1) * sum(seconds) / min(sample, reals),
        sample=sample,
        held_out=held / count,
    )
