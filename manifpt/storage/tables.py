"""Arrow tables as Parquet files, and as bytes that pass from one process to another."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from manifpt.errors import DamageError
from manifpt.storage.failures import explain_errors, reason
from manifpt.storage.files import filesystem, read_bytes


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file as a table, with those of ``columns`` that it has."""
    return parquet_table(uri, read_bytes(uri), columns)


def parquet_schema(uri: str) -> pa.Schema:
    """Return the columns of a Parquet file and their types, from the end of the file alone."""
    fs, path = filesystem(uri)
    with _damage(uri), explain_errors(uri), fs.open(path, "rb") as file:
        return pq.read_schema(file)


def parquet_table(uri: str, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table in the bytes of a Parquet file, ``uri``."""
    with _damage(uri):
        file = pq.ParquetFile(io.BytesIO(data))
        names = file.schema_arrow.names
        return file.read(names if columns is None else [n for n in columns if n in names])


@contextmanager
def _damage(uri: str) -> Iterator[None]:
    """Raise DamageError for a Parquet file that cannot be read."""
    try:
        yield
    # ValueError: names of columns that are not UTF-8.
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise DamageError(f"{uri}: is damaged ({reason(error)}); make it again") from None


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def encode_table(table: pa.Table) -> bytes:
    """Return a table as Arrow IPC bytes."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def decode_table(data: bytes) -> pa.Table:
    """Return the table that ``encode_table`` wrote."""
    return pa.ipc.open_stream(data).read_all()
