"""The work on one chunk: the tables of a unit, a stage over a chunk, its parts, and its record.

Nothing here needs Ray; ``pipeline`` calls it in readers and actors.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from manifpt import storage
from manifpt.engine import prometheus
from manifpt.engine.columns import ColumnTypes, GivenColumns
from manifpt.images.read import metadata_of
from manifpt.outputs import claims
from manifpt.outputs import records as recorded
from manifpt.outputs.formats import ChunkRecord, ChunkRow, PartEntry

QUARANTINE = {
    "id": pa.string(),
    "uri": pa.string(),
    "error": pa.string(),
    "message": pa.string(),
}


class UnitReader(Protocol):
    """The reader of the tables of a unit, in a task."""

    @property
    def gives(self) -> GivenColumns:
        """The columns of these tables; it is asked for once, before the pipeline starts."""

    def __call__(self, spec: str) -> Iterator[pa.Table]:
        """Yield the tables of a unit, given as text."""


@dataclass
class Result:
    """The result of a stage for one chunk: tables by folder, and facts for the record.

    ``tars`` are archives by folder, each with the number of its rows.
    """

    tables: dict[str, pa.Table]
    facts: Any = field(default_factory=dict)
    tars: dict[str, tuple[bytes, int]] = field(default_factory=dict)


class Stage(Protocol):
    """Work on one chunk; built once in each actor, and once for its columns before the start."""

    @property
    def takes(self) -> ColumnTypes:
        """The columns of a table that it takes; others may be there, too."""

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """The columns of the tables that it may return, by folder."""

    def __call__(self, table: pa.Table) -> Result:
        """Return the results of a table's rows."""


def chunks(read: UnitReader, spec: str, unit: int, done: set[int]) -> Iterator[ChunkRow]:
    """Yield the chunks of one unit that have no record yet, each as one row of bytes.

    An empty unit has one chunk without rows, so that it has a record, too.
    """
    ready: tuple[int, pa.Table] | None = None
    index = -1
    for index, table in enumerate(read(spec)):
        if ready is not None:
            yield chunk_row(unit, *ready, last=False)
        ready = None if index in done else (index, table)
    if ready is not None:
        yield chunk_row(unit, *ready, last=True)
    elif index < 0:
        yield chunk_row(unit, 0, pa.table({}), last=True)


def chunk_row(unit: int, chunk: int, table: pa.Table, *, last: bool) -> ChunkRow:
    """Return a chunk as one row of bytes."""
    return {"unit": unit, "chunk": chunk, "last": last, "table": storage.encode_table(table)}


@dataclass(frozen=True)
class Place:
    """The place of a pipeline's files; ``generation`` is in their names, but for the first."""

    output: str
    started: float
    generation: str = ""
    token: str = ""  # of the run's claim on the output
    title: str = ""


def work(stage: Stage, row: ChunkRow, place: Place) -> ChunkRecord:
    """Run a stage over one chunk, write its parts and then its record; return the record."""
    started = time.monotonic()
    table = storage.decode_table(row["table"])
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
    with prometheus.timed("work"):
        result = stage(table) if table.num_rows else Result({})
    result.tables = tables | result.tables
    with prometheus.timed("write"):
        parts = _written(result, unit, chunk, place)
        record: ChunkRecord = {
            "unit": unit,
            "chunk": chunk,
            "last": bool(row["last"]),
            "rows_in": rows_in,
            "ok": table.num_rows,
            "by_error": by_error,
            "started": place.started,
            "seconds": time.monotonic() - started,
            "written": time.time(),
            "parts": parts,
            "facts": result.facts,
        }
        claims.check(place.output, place.token)
        storage.write_json(recorded.uri_of(place.output, unit, chunk, place.generation), record)
    return record


def _written(result: Result, unit: int, chunk: int, place: Place) -> list[PartEntry]:
    """Write the parts of a chunk; return their entries."""
    claims.check(place.output, place.token)
    parts: list[PartEntry] = []
    for folder, ending, data, rows in _files(result.tables, result.tars):
        path = f"{folder}/{unit:06d}-{chunk:06d}{place.generation}.{ending}"
        written = storage.write_bytes(storage.join(place.output, path), data)
        part: PartEntry = {"path": path, "folder": folder, "rows": rows, **written}
        parts.append(part)
    return parts


def _files(
    tables: dict[str, pa.Table], tars: dict[str, tuple[bytes, int]]
) -> Iterator[tuple[str, str, bytes, int]]:
    """Yield folder, ending, bytes and rows of each file of a chunk, one at a time."""
    for folder, part in tables.items():
        yield folder, "parquet", storage.parquet_bytes(part), part.num_rows
    for folder, (data, rows) in tars.items():
        yield folder, "tar", data, rows
