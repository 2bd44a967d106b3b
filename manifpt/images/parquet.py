"""Parquet files: which column holds images, and their rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images.sources import Reading, Unit

IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "image_data", "jpg", "jpeg", "png", "webp", "img")


def image_column(schema: pa.Schema, reading: Reading, uri: str) -> str:
    """Find the column of image bytes, plain or Hugging Face's struct; none is an error."""
    name = found_image_column(schema, reading)
    if name is None:
        shown = ", ".join(schema.names)[:200]
        raise ManifptError(
            f"{uri}: no column of image bytes among {shown}; name it by --image-column, or one of "
            "URIs by --uri-column"
        )
    return name


def found_image_column(schema: pa.Schema, reading: Reading) -> str | None:
    """Return the column of image bytes: the one asked for, a usual name, or the only binary one."""
    binary = [field.name for field in schema if _holds_bytes(field.type)]
    if reading.image_column is not None:
        return reading.image_column if reading.image_column in binary else None
    usual = next((name for name in IMAGE_COLUMNS if name in binary), None)
    return binary[0] if usual is None and len(binary) == 1 else usual


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def id_columns(reading: Reading) -> tuple[str, ...]:
    """Return the columns of which the first that has a value is a row's id."""
    return (reading.id_column,) if reading.id_column is not None else ("id", "key")


def images(unit: Unit) -> Iterator[tuple[bytes | None, dict[str, Any]]]:
    """Yield the image of each row of a Parquet file, and its other columns that are read."""
    reading = unit.reading
    fs, path = storage.filesystem(unit.uris[0])
    with fs.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        image = image_column(parquet.schema_arrow, reading, unit.uris[0])
        wanted = (image, *id_columns(reading), "source", "split", *reading.columns)
        columns = [name for name in dict.fromkeys(wanted) if name in names]
        for batch in parquet.iter_batches(batch_size=64, columns=columns):
            for values in batch.to_pylist():
                cell = values[image]
                yield cell.get("bytes") if isinstance(cell, dict) else cell, values


def rows(
    parquet: pq.ParquetFile, columns: Sequence[str], start: int, stop: int
) -> Iterator[dict[str, Any]]:
    """Yield some rows of a Parquet file."""
    at, groups, first = 0, list[int](), start
    for group in range(parquet.metadata.num_row_groups):
        after = at + parquet.metadata.row_group(group).num_rows
        if at < stop and after > start:
            first = first if groups else at
            groups.append(group)
        at = after
    for batch in parquet.iter_batches(1024, row_groups=groups, columns=columns):
        wanted = batch.slice(max(0, start - first), max(0, stop - max(first, start)))
        first += batch.num_rows
        yield from wanted.to_pylist()
