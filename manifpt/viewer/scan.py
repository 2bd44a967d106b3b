"""Rows of Parquet files by a filter and in an order, page by page, in bounded memory.

A page is asked for by the row that it comes after. Files are read batch by batch, only in the
columns that are needed and only in the row groups whose statistics allow a match. A file hands on
at most as many rows as a page has, so memory does not grow with the table. In the order of the
files, reading ends when the page is full; in another order, every file is read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
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

_CURSOR = re.compile(r"(-?inf|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)~(\d{1,9})\.(\d{1,12})")
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
            raise AddressError(f"at={text[:40]}: names no row; take it from a link of the table")
        return cls(int(match[1]), int(match[2]))


class Cursor(NamedTuple):
    """The last row of a page: its sort key, ascending, and its position."""

    key: float
    position: Position

    def __str__(self) -> str:
        return f"{self.key!r}~{self.position}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor that a text names; ``str`` of it is the text.

        >>> str(Cursor.parse("-0.25~3.17"))
        '-0.25~3.17'
        """
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise AddressError(f"after={text[:40]}: names no page; go to the first page")
        return cls(float(match[1]), Position(int(match[2]), int(match[3])))


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
    """A page: positions of its rows, the cursor of the next page, and the number of all matches.

    ``after`` is None on the last page. ``total`` is None where not all files were read.
    """

    positions: list[Position]
    after: Cursor | None
    total: int | None


class _First(NamedTuple):
    """The first matches of a file: keys and row numbers in order, and the number of its matches."""

    keys: np.ndarray
    rows: np.ndarray
    total: int


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

    def page(self, query: Query, after: Cursor | None = None, most: int = 50) -> Matches:
        """Return the first ``most`` matches behind ``after``."""
        start = after.position.file if after is not None and query.by is None else 0
        numbers = range(start, len(self.paths))
        work = partial(self._first, query=query, after=after, most=most + 1)
        found: list[tuple[float, Position]] = []
        total = 0
        parts = map_in_order(lambda number, _: work(number), numbers, THREADS)
        with _READING:
            for number, part in zip(numbers, parts, strict=True):
                pairs = zip(part.keys.tolist(), part.rows.tolist(), strict=True)
                found += [(key, Position(number, row)) for key, row in pairs]
                found = sorted(found)[: most + 1]
                total += part.total
                if query.by is None and len(found) > most:
                    break
        last = Cursor(*found[most - 1]) if len(found) > most else None
        whole = query.by is not None or (after is None and last is None)
        return Matches([place for _, place in found[:most]], last, total if whole else None)

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

    def _first(self, number: int, query: Query, after: Cursor | None, most: int) -> _First:
        """Return the first ``most`` matches of a file behind ``after``."""
        if query.where is None and query.by is None:
            begin = after.position.row + 1 if after and after.position.file == number else 0
            rows = np.arange(begin, min(begin + most, self.counts[number]))
            return _First(np.zeros(len(rows)), rows, self.counts[number])
        found, total = _First(np.empty(0), np.empty(0, np.int64), 0), 0
        with _explained(storage.join(self.output, self.paths[number])):
            for table in self._matching(number, query):
                total += table.num_rows
                keys, rows = query.keys(table), table[ROW].to_numpy()
                if after is not None:
                    later = keys > after.key
                    same = keys == after.key
                    if number == after.position.file:
                        later |= same & (rows > after.position.row)
                    elif number > after.position.file:
                        later |= same
                    keys, rows = keys[later], rows[later]
                found = _least(found, keys, rows, most)
                if query.by is None and len(found.rows) == most:
                    break
        return found._replace(total=total)


# Batches that are read ahead are memory; threads are those of THREADS.
_FRUGAL = {"batch_readahead": 1, "fragment_readahead": 1, "use_threads": False}


def _least(found: _First, keys: np.ndarray, rows: np.ndarray, most: int) -> _First:
    """Return the ``most`` rows with the least keys, those of equal keys in their order."""
    if len(keys) > most:  # few remain to be sorted
        near = keys <= np.partition(keys, most - 1)[most - 1]
        keys, rows = keys[near], rows[near]
    keys, rows = np.concatenate([found.keys, keys]), np.concatenate([found.rows, rows])
    order = np.lexsort((rows, keys))[:most]
    return _First(keys[order], rows[order], 0)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn errors of reading a file into one line."""
    with storage.explained(uri):
        try:
            yield
        except pa.ArrowInvalid as error:
            raise DamageError(f"{uri}: is damaged ({reason(error)}); make it again") from None
