"""The Ray layer: units -> tables read by tasks -> a stage in actors -> Parquet parts.

One chunk of rows is the unit of work that survives: its parts are written whole, then its record,
and a chunk with a record is never computed again. Nothing but records reaches the driver.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import threadpoolctl

from manifpt import storage
from manifpt.images.read import decode_table, encode_table, metadata_of
from manifpt.session import Pool

RECORDS = "_records"
READER_MEMORY = 64 * 2**20
QUARANTINE = {
    "id": pa.string(),
    "uri": pa.string(),
    "error": pa.string(),
    "message": pa.string(),
}

Read = Callable[[str], Iterator[pa.Table]]


@dataclass
class Result:
    """What a stage makes of one chunk: tables by folder, and facts for the record."""

    tables: dict[str, pa.Table]
    facts: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """Work on one chunk; built once in each actor."""

    def __call__(self, table: pa.Table) -> Result:
        """Return the results of a table's rows."""


def check_columns(table: pa.Table, schema: dict[str, pa.DataType], stage: str) -> None:
    """Raise if a stage's input lacks a column or has it with another type."""
    for name, kind in schema.items():
        if name not in table.column_names:
            raise TypeError(f"{stage}: the input has no column {name!r}")
        if table.schema.field(name).type != kind:
            found = table.schema.field(name).type
            raise TypeError(f"{stage}: column {name!r} is {found}, not {kind}")


def _record_uri(output: str, unit: int, chunk: int) -> str:
    return storage.join(output, RECORDS, f"{unit:06d}-{chunk:06d}.json")


def chunks(read: Read, item: dict[str, Any], done: dict[int, set[int]]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of one unit that have no record yet, each as one row of bytes."""
    number = int(item["unit"])
    ready: tuple[int, pa.Table] | None = None
    for index, table in enumerate(read(item["spec"])):
        if ready is not None:
            yield _row(number, *ready, last=False)
        ready = None if index in done.get(number, ()) else (index, table)
    if ready is not None:
        yield _row(number, *ready, last=True)


def _row(unit: int, chunk: int, table: pa.Table, *, last: bool) -> dict[str, Any]:
    return {"unit": unit, "chunk": chunk, "last": last, "table": encode_table(table)}


def work(stage: Stage, row: dict[str, Any], output: str) -> dict[str, Any]:
    """Run a stage over one chunk, write its parts and then its record; return the record."""
    started = time.monotonic()
    table = decode_table(row["table"])
    unit, chunk = int(row["unit"]), int(row["chunk"])
    rows_in, by_error = table.num_rows, dict[str, int]()
    tables: dict[str, pa.Table] = {}
    if "error" in table.column_names:
        bad = pc.is_valid(table["error"])
        rejected = table.filter(bad).select([*QUARANTINE, *metadata_of(table)])
        for code in rejected["error"].to_pylist():
            by_error[code] = by_error.get(code, 0) + 1
        if rejected.num_rows:
            tables["quarantine"] = rejected
        table = table.filter(pc.invert(bad)).drop_columns(["error", "message"])
    result = stage(table) if table.num_rows else Result({})
    parts = []
    for folder, part in (tables | result.tables).items():
        path = f"{folder}/{unit:06d}-{chunk:06d}.parquet"
        written = storage.write_bytes(storage.join(output, path), storage.parquet_bytes(part))
        parts.append({"path": path, "folder": folder, "rows": part.num_rows, **written})
    record = {
        "unit": unit,
        "chunk": chunk,
        "last": bool(row["last"]),
        "rows_in": rows_in,
        "ok": table.num_rows,
        "by_error": by_error,
        "seconds": time.monotonic() - started,
        "parts": parts,
        "facts": result.facts,
    }
    storage.write_json(_record_uri(output, unit, chunk), record)
    return record


def use_threads(count: int) -> None:
    """Let the libraries that compute use so many threads, when this thread calls them.

    Ray starts an actor with as many as it has CPUs by its logical count.
    """
    threadpoolctl.threadpool_limits(count)
    if "torch" in sys.modules:  # not imported for it
        sys.modules["torch"].set_num_threads(count)


class _Worker:
    """The stage in an actor; Ray Data calls it with batches of one chunk."""

    def __init__(self, build: Callable[[], Stage], output: str, threads: int) -> None:
        self.stage, self.output, self.threads = build(), output, threads
        self.limited: set[int] = set()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        # OpenMP counts threads for each thread that asks, and Ray calls from one or another.
        if threading.get_ident() not in self.limited:
            self.limited.add(threading.get_ident())
            use_threads(self.threads)
        rows = [{name: batch[name][i] for name in batch} for i in range(len(batch["unit"]))]
        return {"record": [json.dumps(work(self.stage, row, self.output)) for row in rows]}


class _Reader:
    """The reading side, as a callable that Ray can ship."""

    def __init__(self, read: Read, done: dict[int, set[int]]) -> None:
        self.read, self.done = read, done

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for unit, spec in zip(batch["unit"], batch["spec"], strict=True):
            for row in chunks(self.read, {"unit": unit, "spec": spec}, self.done):
                yield {name: [value] for name, value in row.items()}


class Progress:
    """Lines of units done, rows, rows/s and time left, to stderr, at most one in ``every`` s."""

    def __init__(self, title: str, units: int, every: float = 5.0) -> None:
        self.title, self.units, self.every = title, units, every
        self.started = self.printed = time.monotonic()
        self.rows = self.finished = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count a record, and print a line if it is time."""
        self.rows += record["rows_in"]
        self.finished += record["last"]
        now = time.monotonic()
        if now - self.printed >= self.every:
            self.printed = now
            seconds = now - self.started
            left = seconds / self.finished * (self.units - self.finished) if self.finished else None
            self.line(
                f"{self.rows / seconds:.0f} rows/s" + (f", {left:.0f} s left" if left else "")
            )

    def line(self, text: str) -> None:
        """Print the counts and ``text``."""
        done = f"{self.finished}/{self.units} units, {self.rows} rows"
        print(f"{self.title}: {done}, {text}", file=sys.stderr, flush=True)


def _finished(output: str) -> list[dict[str, Any]]:
    folder = storage.join(output, RECORDS)
    if not storage.exists(folder):
        return []
    return [storage.read_json(uri) for uri, _ in _record_files(folder)]


def _record_files(folder: str) -> list[tuple[str, int]]:
    return [(uri, size) for uri, size in storage.files_under(folder) if uri.endswith(".json")]


def run(
    title: str,
    specs: Sequence[str],
    read: Read,
    build: Callable[[], Stage],
    output: str,
    pool: Pool,
) -> list[dict[str, Any]]:
    """Work through all units and return the records of their chunks, in order.

    ``specs`` are the units as text, ``read`` yields a unit's tables in a task, ``build`` makes
    the stage in each actor. Chunks with a record from an earlier start are not repeated.
    """
    import ray.data

    records = {(r["unit"], r["chunk"]): r for r in _finished(output)}
    done: dict[int, set[int]] = {}
    for unit, chunk in records:
        done.setdefault(unit, set()).add(chunk)
    closed = {
        unit for (unit, chunk), r in records.items() if r["last"] and len(done[unit]) == chunk + 1
    }
    items = [{"unit": unit, "spec": spec} for unit, spec in enumerate(specs) if unit not in closed]
    progress = Progress(title, len(specs))
    progress.finished = len(closed)
    if items:
        # With arguments unlike the actors', Ray keeps reading apart from the stage: fused into
        # one, all of a large tar would be read and worked on by one process.
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Reader(read, done), batch_size=1, num_cpus=pool.num_cpus, memory=READER_MEMORY
        )
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(build, output, pool.threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=pool.size),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
        )
        for row in dataset.iter_rows():
            record = json.loads(row["record"])
            records[record["unit"], record["chunk"]] = record
            progress.add(record)
    return [records[key] for key in sorted(records)]


def totals(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up rows: ``rows_in`` = ``ok`` + ``quarantined``, and the quarantined by error."""
    by_error: dict[str, int] = {}
    for record in records:
        for code, count in record["by_error"].items():
            by_error[code] = by_error.get(code, 0) + count
    counts = {
        "rows_in": sum(r["rows_in"] for r in records),
        "ok": sum(r["ok"] for r in records),
        "quarantined": sum(by_error.values()),
        "by_error": dict(sorted(by_error.items())),
    }
    if counts["rows_in"] != counts["ok"] + counts["quarantined"]:
        raise AssertionError(f"rows are missing: {counts}")
    return counts


def parts(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of all records, in order."""
    return [part for record in records for part in record["parts"]]


def clear_records(output: str) -> None:
    """Remove the records once a manifest has taken over from them."""
    storage.remove(storage.join(output, RECORDS))
