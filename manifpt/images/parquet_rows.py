"""The rows of an open Parquet file as bytes and texts, in the child process that reads it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifpt.images import footer
from manifpt.images.text import text_of

# The image of a row, and the texts of its other columns.
ParquetValues = tuple[pa.Buffer | None, list[str | None]]


def parquet_rows(
    parquet: pq.ParquetFile,
    image: str | None,
    texts: Sequence[str],
    strings: Sequence[str],
    rows: tuple[int, int],
    *,
    one: bool,
) -> Iterator[ParquetValues]:
    """Yield rows: ``rows`` are the number of the first, and the one after the last.

    A row has the bytes of the column ``image``, if one is named, and the texts of the columns
    ``texts``. A value that is no string becomes JSON, or None in the columns ``strings``. ``one``
    asks for the least memory, not speed.
    """
    paths = list(texts)
    if image is not None:
        kind = parquet.schema_arrow.field(image).type
        paths.append(".".join([image, *(footer.bytes_path(kind) or [])]))
    count = 1 if one else footer.batch_rows(parquet, paths)
    for batch in _batches(parquet, paths, count, *rows):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        found = [_texts(columns[name], strings=name in strings) for name in texts]
        images = [None] * len(batch) if image is None else _images(columns[image])
        for number, data in enumerate(images):
            yield data, [column[number] for column in found]


def _batches(
    parquet: pq.ParquetFile, columns: Sequence[str], rows: int, start: int, stop: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows from ``start`` to ``stop``, at most ``rows`` of them at a time."""
    at, groups, first = 0, list[int](), start
    for group, count in enumerate(footer.row_group_sizes(parquet)):
        after = at + count
        if at < stop and after > start:
            first = first if groups else at
            groups.append(group)
        at = after
    batches = parquet.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False)
    while first < stop and (batch := next(batches, None)) is not None:
        yield batch.slice(max(0, start - first), max(0, stop - max(first, start)))
        first += batch.num_rows


def _images(column: pa.Array) -> list[pa.Buffer | None]:
    while pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return [value.as_buffer() if value.is_valid else None for value in column]


def _texts(column: pa.Array, *, strings: bool) -> list[str | None]:
    """Return values as text; with ``strings``, those that are no strings as None."""
    try:
        values = column.to_pylist()
    except MemoryError:
        raise
    except Exception:  # a value that Python does not have, or that is not UTF-8
        values = [_value(cell) for cell in column]
    return [text_of(v) if isinstance(v, str) or not strings else None for v in values]


def _value(cell: pa.Scalar) -> Any:
    """Return a value, or Arrow's text of it if Python has no such value, or None."""
    with contextlib.suppress(Exception):
        return cell.as_py()
    with contextlib.suppress(Exception):
        return cell.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")
    with contextlib.suppress(Exception):
        return cell.cast(pa.string()).as_py()
    return None
