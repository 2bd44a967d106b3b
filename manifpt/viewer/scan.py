"""Rows of Parquet files by a filter and in an order, page by page, in bounded memory.

A page is asked for by the position of the row that it comes after. Files are read batch by batch,
only in the columns that are needed and only in the row groups whose statistics allow a match. A
file hands on at most as many rows as a page has, so memory does not grow with the table. In the
order of the files, reading ends when the page is full; in another order, every file is read.
"""

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Semaphore
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from manifpt import storage
from manifpt.errors import DamageError, ManifptError
from manifpt.images.contents import map_in_order
from manifpt.storage.failures import reason

BATCH_ROWS = 2**16
THREADS = 4  # files that are read at once, for one answer
_READING = Semaphore(2)  # answers that are read at once; others wait, as each takes memory
ROW = "~row"  # the column of row numbers; no column of a table has this name

_POSITION = re.compile(r"(\d{1,9})\.(\d{1,12})")


class AddressError(ManifptError):
    """An address of the viewer names something that does not exist."""


class Position(NamedTuple):
    """The place of a row: the number of its file, and its number in the file."""

    file: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}.{self.row}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Return the position that a text names.

        >>> Position.parse("3.17")
        Position(file=3, row=17)
        """
        match = _POSITION.fullmatch(text)
        if match is None:
            raise AddressError(f"{text[:40]}: names no row; take it from a link of the table")
        return cls(int(match[1]), int(match[2]))


# The sort key of a row, and its position.
Ranked = tuple[float, Position]


@dataclass(frozen=True)
class Query:
    """A filter and an order of rows.

    ``where`` is an expression over ``columns``; None takes all rows. ``by`` is the column of
    numbers to sort by, where nulls are last; None is the order of the files. Equal rows are in the
    order of the files.
    """

    where: pc.Expression | None = None
    columns: tuple[str, ...] = ()
    by: str | None = None
    descending: bool = False

    def keys(self, table: pa.Table) -> np.ndarray:
        """Return the sort key of each row, float64; the least comes first."""
        if self.by is None:
            return np.zeros(table.num_rows)
        values = table[self.by].cast(pa.float64()).to_numpy(zero_copy_only=False)
        keys: np.ndarray = -values if self.descending else values
        return np.where(np.isnan(keys), np.inf, keys)


class Matches(NamedTuple):
    """A page: positions of its rows, its last row if there is a next page, and the count of all.

    ``after`` is None on the last page. ``total`` is None where not all files were read.
    """

    positions: list[Position]
    after: Position | None
    total: int | None


class RowFiles:
    """The rows of the Parquet files in a folder of an output; ``files`` are manifest entries."""

    def __init__(self, output: str, files: Sequence[Mapping[str, Any]]) -> None:
        self.output, self.counts = output, [int(file["rows"]) for file in files]
        self.paths = [str(file["path"]) for file in files]

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(self.counts)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns, by the first file; none without files."""
        if not self.paths:
            return pa.schema([])
        with _explained(storage.join(self.output, self.paths[0])):
            return self._fragments[0].physical_schema

    @cached_property
    def _fragments(self) -> list[ds.Fragment]:
        """The files as pyarrow reads them; each keeps its footer once that was read."""
        system, root = storage.arrow_filesystem(self.output)
        format = ds.ParquetFileFormat()
        return [format.make_fragment(storage.join(root, path), system) for path in self.paths]

    def page(self, query: Query, after: Position | None = None, most: int = 50) -> Matches:
        """Return the first ``most`` matches behind the row at ``after``."""
        last = None if after is None else (self._key(query, after), after)
        start = after.file if after is not None and query.by is None else 0
        numbers = range(start, len(self.paths))
        parts = map_in_order(
            lambda number, _: self._first(number, query, last, most + 1), numbers, THREADS
        )
        found: list[Ranked] = []
        total = 0
        with _READING:
            for places, count in parts:
                found = heapq.nsmallest(most + 1, [*found, *places])
                total += count
                if query.by is None and len(found) > most:
                    break
        positions = [place for _, place in found[:most]]
        more = len(found) > most
        whole = query.by is not None or (after is None and not more)
        return Matches(positions, positions[-1] if more else None, total if whole else None)

    def _key(self, query: Query, place: Position) -> float:
        """Return the sort key of a row."""
        if query.by is None:
            return 0.0
        (row,) = self.rows([place], [query.by])
        table = pa.table({query.by: pa.array([row[query.by]], pa.float64())})
        return float(query.keys(table)[0])

    def matches(self, query: Query) -> int:
        """Return the number of rows that match; no row is held."""
        if query.where is None:
            return self.count

        def counted(number: int, _: object) -> int:
            with _explained(storage.join(self.output, self.paths[number])):
                options = {"schema": self.schema, "filter": query.where, "batch_size": BATCH_ROWS}
                return int(self._fragments[number].scanner(**options, **_FRUGAL).count_rows())

        with _READING:
            return sum(map_in_order(counted, range(len(self.paths)), THREADS))

    def rows(
        self, positions: Sequence[Position], columns: Sequence[str] | None = None
    ) -> list[Any]:
        """Return rows by position, in their order, with those of ``columns`` that there are.

        Each has its position as ``at``; the caller declares the type of the others. Raises
        AddressError where there is no such row.
        """
        names = [n for n in self.schema.names if columns is None or n in columns]
        by_file: dict[int, list[int]] = {}
        for file, row in positions:
            if file >= len(self.paths) or row >= self.counts[file]:
                raise AddressError(f"at={file}.{row}: there is no such row; go to the first page")
            by_file.setdefault(file, []).append(row)

        def taken(file: int, _: object) -> list[Any]:
            with _explained(storage.join(self.output, self.paths[file])):
                options = {"schema": self.schema, "columns": names, "batch_size": BATCH_ROWS}
                scanner = self._fragments[file].scanner(**options, **_FRUGAL)
                return list(scanner.take(pa.array(sorted(by_file[file]))).to_pylist())

        found: dict[Position, Any] = {}
        with _READING:
            parts = list(map_in_order(taken, by_file, THREADS))
        for file, rows in zip(by_file, parts, strict=True):
            for row, values in zip(sorted(by_file[file]), rows, strict=True):
                found[Position(file, row)] = values | {"at": Position(file, row)}
        return [found[place] for place in positions]

    def _matching(self, number: int, query: Query) -> Iterator[pa.Table]:
        """Yield the matches in a file: their columns of the query, and ROW, batch by batch."""
        fragment, where = self._fragments[number], query.where
        sizes = [group.num_rows for group in fragment.row_groups]
        starts = np.cumsum([0, *sizes])
        wanted = [*query.columns, *([query.by] if query.by else [])]
        for part in fragment.split_by_row_group(where, self.schema):
            start = int(starts[part.row_groups[0].id])
            options = {"schema": self.schema, "columns": list(dict.fromkeys(wanted))}
            for batch in part.to_batches(batch_size=BATCH_ROWS, **options, **_FRUGAL):
                numbers = pa.array(np.arange(start, start + batch.num_rows))
                start += batch.num_rows
                table = pa.Table.from_batches([batch]).append_column(ROW, numbers)
                yield table if where is None else table.filter(where)

    def _first(
        self, number: int, query: Query, last: Ranked | None, most: int
    ) -> tuple[list[Ranked], int]:
        """Return the first ``most`` matches of a file behind ``last``, and the count of all."""
        if query.where is None and query.by is None:
            begin = last[1].row + 1 if last is not None and last[1].file == number else 0
            rows = range(begin, min(begin + most, self.counts[number]))
            return [(0.0, Position(number, row)) for row in rows], self.counts[number]
        found: list[Ranked] = []
        total = 0
        with _explained(storage.join(self.output, self.paths[number])):
            for table in self._matching(number, query):
                total += table.num_rows
                keys, rows = query.keys(table), table[ROW].to_numpy()
                if last is not None:
                    key, place = last
                    behind = number > place.file or ((number == place.file) & (rows > place.row))
                    later = (keys > key) | ((keys == key) & behind)
                    keys, rows = keys[later], rows[later]
                if len(keys) > most:  # few remain to be sorted
                    near = keys <= np.partition(keys, most - 1)[most - 1]
                    keys, rows = keys[near], rows[near]
                order = np.argsort(keys, kind="stable")[:most]
                pairs = zip(keys[order].tolist(), rows[order].tolist(), strict=True)
                places = [(key, Position(number, row)) for key, row in pairs]
                found = heapq.nsmallest(most, [*found, *places])
                if query.by is None and len(found) == most:
                    break
        return found, total


# Batches that are read ahead are memory; threads are those of THREADS.
_FRUGAL = {"batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn errors of reading a file into one line."""
    with storage.explain_errors(uri):
        try:
            yield
        except pa.ArrowInvalid as error:
            raise DamageError(f"{uri}: is damaged ({reason(error)}); make it again") from None
