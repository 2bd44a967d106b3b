"""Rows of a whole output brought together by a key, in bounded memory: an external shuffle.

A task for each run of the input writes one Arrow file, which has a batch for each partition; a task
for each partition then reads its batch of every file. A key's hash decides its partition, so each
has about ``PARTITION_ROWS`` rows, for any corpus. A file between tasks appears whole, and its
folder is named by a hash of all inputs: a job that was cut short makes only the files that are
missing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.engine import session
from manifpt.errors import ManifptError
from manifpt.outputs.formats import PartEntry

FOLDER = "_buckets"
PATTERN = r"([0-9a-f]{12}/)?([a-z]+-)?\d{6}\.(arrow|parquet|json)"
PARTITION_ROWS = 2**21
AT_ONCE = 16  # files that a task reads at once
WAITING = 1024  # calls that Ray has at once
STILL_SECONDS = 3600

T = TypeVar("T")


class Each(Protocol):
    """Calls a function many times, on a cluster or here, and yields its results, in order."""

    def __call__(self, function: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """Yield the results of ``function`` for each tuple of arguments."""


def call_here(function: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Call a function in this process; see ``Each``."""
    for call in calls:
        yield function(*call)


@dataclass(frozen=True)
class OnRay:
    """Calls as tasks of the cluster; see ``Each``."""

    num_cpus: float

    def __call__(self, function: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """Yield the results of a function; Ray calls it again if a worker or a node was lost."""
        import ray

        task, shared = ray.remote(num_cpus=self.num_cpus)(_called), ray.put(function)
        waiting: deque[Any] = deque()

        def first() -> T:
            try:
                found: T = ray.get(waiting.popleft(), timeout=STILL_SECONDS)
            except ray.exceptions.GetTimeoutError:
                raise ManifptError(
                    f"a task of the cluster has not ended in {STILL_SECONDS} s; look at "
                    "`ray status`, then the same command goes on from here"
                ) from None
            return found

        with session.lost():
            for call in calls:
                waiting.append(task.remote(shared, *call))
                if len(waiting) == WAITING:
                    yield first()
            while waiting:
                yield first()


def _called(function: Callable[..., T], *call: Any) -> T:
    return function(*call)


def runs(files: Sequence[PartEntry], rows: int) -> Iterator[list[PartEntry]]:
    """Yield the files of a manifest in runs of at least ``rows`` rows; the last may have fewer."""
    run: list[PartEntry] = []
    count = 0
    for file in files:
        run.append(file)
        count += file["rows"]
        if count >= rows:
            yield run
            run, count = [], 0
    if run:
        yield run


def partitions(rows: int) -> int:
    """Return the number of partitions for a number of rows."""
    return max(1, -(-rows // PARTITION_ROWS))


def mixed(keys: np.ndarray, count: int) -> np.ndarray:
    """Return the partition of each key, N uint64, which need not be a hash; int64."""
    spread = (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    found: np.ndarray = (spread % np.uint64(count)).astype(np.int64)
    return found


@dataclass(frozen=True)
class Scratch:
    """The files between the tasks of one shuffle; ``key`` is a hash of all their inputs."""

    output: str
    key: str

    @classmethod
    def of(cls, output: str, *decides: Any) -> "Scratch":
        """Return the place for files that JSON values decide."""
        return cls(output, storage.digest(decides)[:12])

    @property
    def folder(self) -> str:
        """The folder of the files."""
        return storage.join(self.output, FOLDER, self.key)

    def uri(self, stage: str, number: int, kind: str = "arrow") -> str:
        """Return the URI of the file that a task of a stage writes."""
        return storage.join(self.folder, f"{stage}-{number:06d}.{kind}")

    def run(self, each: Each, stage: str, function: Callable[[int], Any], count: int) -> None:
        """Make the missing files among the files 0 to ``count`` of a stage."""
        there = storage.exists(self.folder) and {u for u, _ in storage.all_files(self.folder)}
        calls = [(n,) for n in range(count) if self.uri(stage, n) not in (there or ())]
        for _ in each(function, calls):
            pass

    def write(
        self, stage: str, number: int, table: pa.Table, places: np.ndarray, count: int
    ) -> None:
        """Write rows as one file, those of each of ``count`` partitions beside each other.

        ``places`` are the rows' partitions; rows of one partition stay in order.
        """
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], np.arange(count + 1))
        table = table.take(pa.array(order))
        columns = [table[name].combine_chunks() for name in table.column_names]
        batch = pa.RecordBatch.from_arrays(columns, schema=table.schema)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            storage.writing(self.uri(stage, number)) as file,
            pa.ipc.new_file(file, batch.schema, options=options) as writer,
        ):
            for start, end in pairwise(ends.tolist()):
                writer.write_batch(batch.slice(start, end - start))

    def gather(self, stage: str, numbers: Iterable[int], partition: int) -> pa.Table:
        """Return a partition's rows of the files of a stage, in the order of the files."""
        uris = [self.uri(stage, number) for number in numbers]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            batches = list(threads.map(lambda uri: _batch(uri, partition), uris))
        return pa.Table.from_batches(batches).combine_chunks()

    def clear(self) -> None:
        """Remove the files."""
        storage.remove_files(self.folder, r"[a-z]+-\d{6}\.(arrow|json)")


def clear(output: str) -> None:
    """Remove the files of all shuffles of an output, those of earlier starts, too."""
    storage.remove_files(storage.join(output, FOLDER), PATTERN)


def _batch(uri: str, number: int) -> pa.RecordBatch:
    fs, path = storage.arrow_filesystem(uri)
    # Not by fsspec, which would read far ahead of a batch.
    with storage.explain_errors(uri), fs.open_input_file(path) as file:
        return pa.ipc.open_file(file).get_batch(number)
