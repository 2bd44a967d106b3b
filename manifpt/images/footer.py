"""The columns, rows and sizes that the footer of a Parquet file announces, which may be false."""

import json
from collections.abc import Iterator, Sequence
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

MOST_COLUMNS = 2**14
# The number of rows that a file may announce, besides one for each of its bytes.
MOST_ROWS = 2**20
BATCH_ROWS, BATCH_BYTES = 64, 32 * 2**20
MOST_FEATURES = 2**22  # bytes of Hugging Face's description of columns


class FooterFacts(TypedDict):
    """The columns of a Parquet file, those of bytes, the names of classes, and the rows."""

    names: list[str]
    binary: list[str]
    labels: dict[str, list[str]]
    rows: int


def footer_facts(parquet: pq.ParquetFile, size: int) -> FooterFacts:
    """Return a file's columns, those of bytes and of class labels, and its number of rows.

    Raises ValueError if a file of ``size`` bytes announces more columns or rows than plausible.
    """
    if max(len(parquet.schema), len(parquet.schema_arrow)) > MOST_COLUMNS:
        raise ValueError(f"it has more than {MOST_COLUMNS} columns")
    counts = row_group_sizes(parquet)
    if min(counts, default=0) < 0 or sum(counts) > MOST_ROWS + size:
        raise ValueError(f"it announces {sum(counts)} rows in {size} bytes")
    schema = parquet.schema_arrow
    binary = [field.name for field in schema if bytes_path(field.type) is not None]
    labels = class_labels(schema)
    return {"names": schema.names, "binary": binary, "labels": labels, "rows": sum(counts)}


def class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the classes' names of each column of class labels, as Hugging Face writes them."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    if len(text) > MOST_FEATURES:
        return {}
    try:
        features = json.loads(text)["info"]["features"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        column: feature["names"]
        for column, feature in features
        if column in schema.names
        and isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and all(isinstance(name, str) for name in feature["names"])
    }


def row_group_sizes(parquet: pq.ParquetFile) -> list[int]:
    """Return the number of rows of each row group."""
    return [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]


def bytes_path(kind: pa.DataType) -> list[str] | None:
    """Return the path to the bytes of a type: [] for bytes, ["bytes"] for a struct of them."""
    path = []
    while pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        if place < 0:
            return None
        path.append("bytes")
        kind = kind.field(place).type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return path if binary or pa.types.is_binary_view(kind) else None


def largest_group(parquet: pq.ParquetFile) -> int:
    """Return the bytes of the largest row group in the file."""
    numbers = range(parquet.num_row_groups)
    sizes = [sum(c.total_compressed_size for c in _chunks(parquet, n)) for n in numbers]
    return int(max([0, *sizes]))


def batch_rows(parquet: pq.ParquetFile, columns: Sequence[str]) -> int:
    """Return the number of rows of some columns that have at most about BATCH_BYTES together."""
    numbers = range(parquet.num_row_groups)
    rows = (sum(map(_value_bytes, _chunks(parquet, n, columns))) for n in numbers)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max([1, *rows])))


def _chunks(
    parquet: pq.ParquetFile, group: int, columns: Sequence[str] | None = None
) -> Iterator[pq.ColumnChunkMetaData]:
    """Yield a row group's chunk of each column, or of those whose paths begin with ``columns``."""
    found = parquet.metadata.row_group(group)
    for number in range(found.num_columns):
        chunk = found.column(number)
        path = f"{chunk.path_in_schema}."
        if columns is None or any(path.startswith(f"{name}.") for name in columns):
            yield chunk


def _value_bytes(chunk: pq.ColumnChunkMetaData) -> int:
    """Return the size of a chunk's values: their mean, or all of a dictionary if there is one.

    Each row may repeat the largest value of a dictionary. The size of a dictionary is that of the
    decompressed chunk less the other pages, which have at least their compressed size.
    """
    whole = int(chunk.total_uncompressed_size)
    if not chunk.has_dictionary_page:
        return int(whole // max(1, chunk.num_values))
    before = int(chunk.data_page_offset - (chunk.dictionary_page_offset or 0))
    others = int(chunk.total_compressed_size) - max(0, before)
    return int(max(0, whole - max(0, others)))
