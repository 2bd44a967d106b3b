"""Tables of URIs (CSV, TSV, JSON lines, Parquet): ranges of rows, and the rows of a range.

They are read row by row or batch by batch. A range of a text says where its first row begins, so
that a reader starts there.
"""

import csv
import io
import itertools
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import parquet
from manifpt.images.decode import DecodeError
from manifpt.images.sources import AS_FOUND, PARQUET, Reading, Unit
from manifpt.redaction import public_uri

ROWS_PER_UNIT = 1024
MOST_LINE = 2**20
# Letters as botocore allows them, or the ARN of an access point.
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:aws[A-Za-z0-9:._-]*:accesspoint")
# Columns that hold URIs, where the user names none; img2dataset, LAION and others use them.
URI_COLUMNS = (
    "url",
    "uri",
    "image_url",
    "image_uri",
    "path",
    "image_path",
    "file_path",
    "file_name",
    "filename",
)


class Range(NamedTuple):
    """Some rows of a table: the first and the one after the last, where they begin, their size."""

    rows: tuple[int, int]
    offset: int
    bytes: int


def uri_column(names: Sequence[str], reading: Reading) -> str | None:
    """Return the column of URIs among those of a table, in capitals or not."""
    if reading.uri_column is not None:
        return reading.uri_column if reading.uri_column in names else None
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in URI_COLUMNS if name in lower), None)


def ranges(uri: str, size: int, reading: Reading) -> Iterator[Range]:
    """Cut a table into ranges; one that has no column of URIs, or of ids, raises."""
    if uri.endswith(PARQUET):
        with storage.explained(uri), parquet.opened(uri) as table:
            _check(uri, table.names, reading)
            count = table.count
        yield from _even(count, size)
        return
    with storage.reading(uri) as file:
        yield from _of_text(uri, _buffered(file), size, reading)


def _buffered(file: Any) -> BinaryIO:
    """Return a file that reads lines fast, which those of fsspec do not."""
    return io.BufferedReader(file, MOST_LINE)


def _check(uri: str, names: Sequence[str], reading: Reading) -> None:
    shown = ", ".join(names)[:200]
    if uri_column(names, reading) is None:
        option = f"--uri-column {reading.uri_column}" if reading.uri_column else "--input"
        raise ManifptError(
            f"{option}: {uri} has no such column of URIs, it has {shown}; name it by --uri-column"
        )
    if reading.id_column is not None and reading.id_column not in names:
        raise ManifptError(f"--id-column {reading.id_column}: {uri} has only {shown}")


def _even(count: int, size: int) -> Iterator[Range]:
    for start in range(0, count, ROWS_PER_UNIT):
        stop = min(start + ROWS_PER_UNIT, count)
        yield Range((start, stop), 0, size * stop // count - size * start // count)


def _of_text(uri: str, file: BinaryIO, size: int, reading: Reading) -> Iterator[Range]:
    try:
        names, offset = _header(uri, file)
    except (csv.Error, ValueError, StopIteration):
        raise ManifptError(f"--input {uri}: this is no table of URIs; check the file") from None
    _check(uri, names, reading)
    start, stop = 0, 0
    try:
        for stop, (_, end) in enumerate(_records(uri, file, offset), start=1):
            if stop - start == ROWS_PER_UNIT:
                yield Range((start, stop), offset, end - offset)
                start, offset = stop, end
    except (csv.Error, ValueError):
        stop += 1  # whoever reads the rows meets this, too, and makes it one of them
    if stop > start:
        yield Range((start, stop), offset, size - offset)


def _header(uri: str, file: BinaryIO) -> tuple[list[str], int]:
    """Return the names of a text's columns, and where its rows begin."""
    record, end = next(_records(uri, file, 0))
    if isinstance(record, dict):
        return list(record), 0
    return [name.removeprefix("\ufeff").strip() for name in record], end


def _records(
    uri: str, file: BinaryIO, offset: int
) -> Iterator[tuple[list[str] | dict[str, Any], int]]:
    """Yield each record from ``offset`` on, and where it ends; empty lines are none.

    Raises csv.Error or ValueError at the first that is broken beyond its own line.
    """
    file.seek(offset)
    end = offset

    def lines() -> Iterator[str]:
        nonlocal end
        while line := file.readline(MOST_LINE + 1):
            if len(line) > MOST_LINE:
                raise ValueError(f"a line has more than {MOST_LINE} bytes")
            end += len(line)
            yield line.decode("utf-8", "replace")

    if uri.endswith((".jsonl", ".ndjson")):
        for line in lines():
            if line.strip():
                yield _object(line), end
        return
    # Tabs can't be quoted in TSV, so a quotation mark there is a letter like any other.
    tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if uri.endswith(".tsv") else {}
    for record in csv.reader(lines(), **tabs):  # type: ignore[arg-type]
        if record:
            yield record, end


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def rows(unit: Unit) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the fields of each row of a unit.

    Raises csv.Error, ValueError or OSError where the rest can't be read.
    """
    assert unit.rows is not None
    start, stop = unit.rows
    found = _parquet_rows(unit) if unit.uris[0].endswith(PARQUET) else _text_rows(unit)
    number = start
    for row in itertools.islice(found, stop - start):
        yield number, row
        number += 1
    if number < stop:
        raise ValueError(f"the table ends before row {number}; it was changed")


def _text_rows(unit: Unit) -> Iterator[dict[str, Any]]:
    fs, path = storage.filesystem(unit.uris[0])
    with fs.open(path, "rb") as opened:
        file = _buffered(opened)
        names, _ = _header(unit.uris[0], file)
        for record, _ in _records(unit.uris[0], file, unit.offset):
            if isinstance(record, dict):
                yield record
            else:  # CSV knows no null: an empty cell is one
                cells = [cell or None for cell in record]
                yield dict(zip(names, cells, strict=False))


def _parquet_rows(unit: Unit) -> Iterator[dict[str, Any]]:
    reading = unit.reading
    assert unit.rows is not None
    start, stop = unit.rows
    with parquet.opened(unit.uris[0]) as table:
        strict = (uri_column(table.names, reading), "source", "split")
        wanted = dict.fromkeys((*strict, reading.id_column, *reading.columns))
        names = [name for name in wanted if name is not None and name in table.names]
        strings = [name for name in names if name in strict]
        for row in table.rows(names, strings=strings, start=start, stop=stop):
            yield row.texts


def resolved(text: str, table: str, reading: Reading = AS_FOUND) -> str:
    """Return where an entry of a table leads: relative paths begin at the table's folder.

    A local table is the user's own and may name any file, but one on S3 only the web and what is
    in its own bucket, unless ``reading`` allows more. Else, and where the scheme is not read, this
    is a DecodeError.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    kind = scheme[1].lower() if scheme else ""
    path = text[scheme.end() if scheme else 0 :]
    if kind in {"http", "https"}:
        return f"{kind}://{path}"
    if kind not in {"", "file", "s3"}:
        raise DecodeError("forbidden_address", f"{kind}:// is not read")
    if kind == "s3":
        return _on_s3(path, table, reading)
    if not storage.is_s3(table):
        return _beside(path, posixpath.dirname(table))
    if kind == "file" or path.startswith("/"):
        if not reading.allow_local:
            raise DecodeError("forbidden_address", "a local path; see --allow-local")
        return _beside(path, "/")
    found = _beside(path, posixpath.dirname(table).removeprefix("s3://"))
    if not found.startswith(f"{_bucket(table)}/"):
        raise DecodeError("forbidden_address", "a path that leads out of the table's bucket")
    return f"s3://{found}"


def _beside(path: str, folder: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))


def _bucket(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[0]


def _on_s3(path: str, table: str, reading: Reading) -> str:
    """Return the URI of an object, in a bucket that a table on S3 may name; others raise."""
    bucket, _, key = path.partition("/")
    if not _BUCKET.fullmatch(bucket) or not key:
        named = public_uri(f"s3://{path}")[:200]
        raise DecodeError("missing_image", f"{named} is no bucket with a key")
    if not storage.is_s3(table):
        return f"s3://{path}"
    if bucket not in {_bucket(table), *reading.allow_buckets}:
        raise DecodeError("forbidden_address", f"{bucket} is not its bucket; see --allow-buckets")
    if ".." in key.split("/"):  # a server may take this for the folder above
        raise DecodeError("forbidden_address", "a key with a part ..")
    return f"s3://{path}"
