"""The Ray layer: units -> tables read by tasks -> a stage in actors -> Parquet parts.

A chunk of rows is computed once: its parts are written whole under names that its input decides,
then its record, and a chunk with a record is never computed again. If processes are killed, the
same command goes on and makes the same files. Nothing but unit numbers leaves the driver, and
nothing but records reaches it.
"""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import threadpoolctl

from manifpt import errors, storage
from manifpt.engine import attempts, prometheus, scaling
from manifpt.engine.chunk_work import Place, Stage, UnitReader, chunk_row, chunks, work
from manifpt.engine.pools import Pool
from manifpt.engine.progress import Progress
from manifpt.engine.session import lost
from manifpt.engine.work import Work
from manifpt.errors import ManifptError
from manifpt.outputs import claims
from manifpt.outputs import records as recorded
from manifpt.outputs.formats import ChunkRecord, ChunkRow, FailedChunk, SentChunk
from manifpt.outputs.records import Records
from manifpt.outputs.records import parts as parts
from manifpt.outputs.records import totals as totals

# Files that are being read, the largest twice, a chunk of images and its copy, and the process that
# decodes.
READER_MEMORY = 512 * 2**20
# Reading tasks of one execution; with more units, each reads several, one after another.
TASKS = 4096


def use_threads(count: int) -> None:
    """Set the number of threads of the libraries that compute, when this thread calls them.

    Ray sets it to an actor's logical CPUs.
    """
    threadpoolctl.threadpool_limits(count)
    if "torch" in sys.modules:  # not imported for it
        sys.modules["torch"].set_num_threads(count)


class _Worker:
    """The stage in an actor; Ray Data calls it with batches of one chunk."""

    def __init__(self, build: Callable[[], Stage], place: Place, threads: int) -> None:
        prometheus.enter(place.title)
        self.stage, self.place, self.threads = build(), place, threads
        self.limited: set[int] = set()
        self.ended = time.perf_counter()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        # OpenMP counts threads for each thread that asks, and Ray calls from one or another.
        if threading.get_ident() not in self.limited:
            self.limited.add(threading.get_ident())
            use_threads(self.threads)
        prometheus.emit("manifpt_seconds_total", time.perf_counter() - self.ended, "wait")
        rows = (_row_of(batch, place) for place in range(len(batch["unit"])))
        records = {"record": [json.dumps(self.work(row)) for row in rows]}
        self.ended = time.perf_counter()
        return records

    def work(self, row: SentChunk) -> ChunkRecord | FailedChunk:
        """Work on one chunk; return its record, or the error that ends the job, see ``_failed``."""
        if row["failed"]:
            return {"failed": row["failed"]}
        name = f"{row['unit']:06d}-{row['chunk']:06d}"
        prometheus.emit("manifpt_queue_seconds_total", time.time() - row["read"])
        try:
            with attempts.limited(self.place.output, name, lambda: _rows_of(row)):
                record = work(self.stage, row, self.place)
            prometheus.done(record)
            return record
        except ManifptError as error:
            return {"failed": _failed(error)}


def _failed(error: ManifptError) -> str:
    """Return an error as text: Ray Data would bring its traceback to the driver, but not itself."""
    return json.dumps([type(error).__name__, str(error)])


def _raised(text: str) -> ManifptError:
    """Return the error that ``_failed`` wrote."""
    name, message = json.loads(text)
    kind: type[ManifptError] = getattr(errors, name, ManifptError)
    return kind(message)


def _rows_of(row: ChunkRow) -> str:
    table = storage.decode_table(row["table"])
    ids = table["id"].to_pylist() if "id" in table.column_names else []
    rows = f", rows {ids[0]} to {ids[-1]}" if ids else ""
    return f"unit {row['unit']}, chunk {row['chunk']}{rows}"


@dataclass
class _Reader:
    """The reading side, as a callable that Ray can ship."""

    read: UnitReader
    stored: Work
    done: dict[int, set[int]]
    place: Place

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        prometheus.enter(self.place.title)  # a process may read for one pipeline after another
        for unit in map(int, batch["unit"]):
            spec = self.stored.spec(unit)
            about = f"unit {unit}, {spec[:200]}"
            try:
                with attempts.limited(self.place.output, f"{unit:06d}-read", partial(str, about)):
                    left = chunks(self.read, spec, unit, self.done.get(unit, set()))
                    for row in prometheus.observed_chunks(left):
                        yield _batch(row, "")
            except ManifptError as error:
                yield _batch(chunk_row(unit, 0, pa.table({}), last=False), _failed(error))


def _batch(row: ChunkRow, failed: str) -> dict[str, list[Any]]:
    """Return a chunk for an actor, with the time at which it was read."""
    columns = row | {"failed": failed, "read": time.time()}
    return {name: [value] for name, value in columns.items()}


def _row_of(batch: dict[str, Any], place: int) -> SentChunk:
    """Return one chunk of a batch, as Ray Data gives it to an actor."""
    return cast("SentChunk", {name: values[place] for name, values in batch.items()})


def run(
    title: str,
    specs: Iterable[str] | Work,
    read: UnitReader,
    build: Callable[[], Stage],
    output: str,
    pool: Pool,
    *,
    only: Iterable[int] | None = None,
    generation: str = "",
) -> Records:
    """Work through all units and return the records of their chunks, in order.

    ``specs`` are the units, each a line of JSON, or the ``Work`` that stores them already; ``read``
    yields a unit's tables in a task, ``build`` makes the stage in each actor. If the stage takes a
    column that ``read`` does not give, nothing starts. Chunks with a record from an earlier start
    are not repeated. ``only`` names the units that another ``generation`` of the output works on
    again.
    """
    place = Place(output, time.time(), generation, claims.token_of(output), title)
    prometheus.enter(title)
    stored = specs if isinstance(specs, Work) else Work.store(output, specs)
    attempts.clear(output)
    records = Records(recorded.stored(output, generation))
    closed, done = recorded.by_unit(records)
    units = np.array(range(stored.units) if only is None else sorted(only), dtype=np.int64)
    left = units[~np.isin(units, list(closed))]
    progress = Progress(title, len(units), len(units) - len(left))
    if len(left):
        read.gives.check(title, build().takes)
        reader, gatherer = _Reader(read, stored, done, place), recorded.Gatherer(output, generation)
        whole = pool.wait()
        node = pool.threads if pool.here else scaling.node_cpus()
        threads = stored.pinned("threads", min(pool.threads, node))
        new_records = (
            _execute_here(left, reader, build)
            if pool.here
            else _execute(left, reader, build, threads, pool, whole=whole)
        )
        for record in new_records:
            records.add(record)
            gatherer.add(record)
            progress.add(record)
    attempts.clear(output)
    return records


def _reader_memory() -> float:
    """Return the bytes of memory that a reader asks Ray for.

    A node with less than it would never get one, and the job would wait for ever.
    """
    node = min((has.get("memory", math.inf) for has in scaling.nodes_up()), default=math.inf)
    return min(READER_MEMORY, node / 4)


def _execute(
    units: np.ndarray,
    reader: _Reader,
    build: Callable[[], Stage],
    threads: int,
    pool: Pool,
    *,
    whole: bool,
) -> Iterator[ChunkRecord]:
    """Yield the records of chunks as they are done.

    If the ``whole`` pool does not fit on the nodes that are up, it begins with one actor.
    """
    import ray.data

    blocks = np.array_split(units, min(TASKS, len(units)))
    # With arguments unlike the actors', Ray keeps reading apart from the stage: fused into
    # one, all of a large tar would be read and worked on by one process.
    dataset = ray.data.from_arrow([pa.table({"unit": block}) for block in blocks]).map_batches(
        reader, batch_size=1, num_cpus=pool.num_cpus, memory=_reader_memory()
    )
    size = {"size": pool.size} if whole else {"min_size": 1, "max_size": pool.size}
    dataset = dataset.map_batches(
        _Worker,
        fn_constructor_args=(build, reader.place, threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(**size),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    with lost():
        for row in dataset.iter_rows():
            yield _checked(json.loads(row["record"]))


def _execute_here(
    units: np.ndarray, reader: _Reader, build: Callable[[], Stage]
) -> Iterator[ChunkRecord]:
    """Yield the records of chunks as this process makes them."""
    worker = _Worker(build, reader.place, 0)
    for batch in reader({"unit": units}):
        yield _checked(worker.work(_row_of(batch, 0)))


def _checked(found: ChunkRecord | FailedChunk) -> ChunkRecord:
    """Return a record; raise the error that ended its chunk."""
    if "failed" in found:
        raise _raised(found["failed"])
    return found


def clear_records(output: str, *, work: bool = True) -> None:
    """Remove the records, and the stored units, once a manifest has taken over from them."""
    recorded.clear(output)
    if work:
        Work.clear(output)
