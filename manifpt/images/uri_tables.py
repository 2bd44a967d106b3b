"""Tables of URIs (CSV, TSV, JSON lines, Parquet): ranges of rows, and the rows of a range.

They are read row by row or batch by batch. A range of a text has the place of its first row, where
a reader starts.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import labels, parquet, reader
from manifpt.images.container import BrokenError
from manifpt.images.decode import DecodeError
from manifpt.images.lines import JSON_LINES, Record, TableShape
from manifpt.images.reader import Reader
from manifpt.images.sources import AS_FOUND, PARQUET, Reading, Unit
from manifpt.redaction import public_uri

ROWS_PER_UNIT = 1024
# Letters as botocore allows them, or the ARN of an access point.
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:aws[A-Za-z0-9:._-]*:accesspoint")
_STORES = {"s3", "gs", "az"}  # object stores that a table may name
END = 2**62  # more rows than a table has
# Columns that hold URIs if the user names none; img2dataset, LAION and others use them.
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


class RowRange(NamedTuple):
    """Some rows of a table: the first and the one after the last, their place and their size."""

    rows: tuple[int, int]
    offset: int
    bytes: int


class TableRow(NamedTuple):
    """A row of a table; ``fault`` describes its error, if it has one."""

    number: int
    fields: Mapping[str, object]
    fault: str = ""


def uri_column(names: Sequence[str], reading: Reading) -> str | None:
    """Return the column of URIs among those of a table, in capitals or not."""
    if reading.uri_column is not None:
        return reading.uri_column if reading.uri_column in names else None
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in URI_COLUMNS if name in lower), None)


def ranges(uri: str, size: int, reading: Reading) -> Iterator[RowRange]:
    """Cut a table into ranges; one that has no column of URIs, or of ids, raises.

    If its rows can't be counted, the last range goes to its END, and its reader reports why.
    """
    start, offset = 0, 0
    try:
        for part in _ranges(uri, size, reading):
            yield part
            start, offset = part.rows[1], part.offset + part.bytes
    except BrokenError:
        yield RowRange((start, END), offset, max(0, size - offset))


def _ranges(uri: str, size: int, reading: Reading) -> Iterator[RowRange]:
    if uri.endswith(PARQUET):
        with parquet.opened(uri) as table:
            _check(uri, table.names, reading)
            count = table.count
        yield from _even(count, size)
        return
    with reader.opened(uri, "text") as file:
        yield from _of_text(uri, file, size, reading)


def _lacks(names: Sequence[str], reading: Reading) -> str | None:
    """Return the option that asks for a column which a table lacks, None if it has all."""
    if uri_column(names, reading) is None:
        return f"--uri-column {reading.uri_column}" if reading.uri_column else "--input"
    if reading.id_column is not None and reading.id_column not in names:
        return f"--id-column {reading.id_column}"
    return None


def _check(uri: str, names: Sequence[str], reading: Reading) -> None:
    option, shown = _lacks(names, reading), ", ".join(names)[:200]
    if option is not None and option.startswith("--id-column"):
        raise ManifptError(f"{option}: {uri} has only {shown}")
    if option is not None:
        raise ManifptError(
            f"{option}: {uri} has no such column of URIs, it has {shown}; name it by --uri-column"
        )


def _even(count: int, size: int) -> Iterator[RowRange]:
    for start in range(0, count, ROWS_PER_UNIT):
        stop = min(start + ROWS_PER_UNIT, count)
        yield RowRange((start, stop), 0, size * stop // count - size * start // count)


def _of_text(uri: str, file: Reader, size: int, reading: Reading) -> Iterator[RowRange]:
    found = _header(uri, file, reading)
    if found is None:
        return
    if found.names:
        _check(uri, found.names, reading)
    for span in file.text(uri, found.end, found.shape, span=ROWS_PER_UNIT):
        start, stop, offset, length = span
        yield RowRange((start, stop), offset, length)


def _records(
    uri: str, file: Reader, offset: int, shape: TableShape | None = None, count: int | None = None
) -> Iterator[Record]:
    """Yield at most ``count`` records of a text from byte ``offset`` on."""
    return (Record(*row) for row in file.text(uri, offset, shape, count=count))


def names_of(uri: str, wanted: str) -> list[str]:
    """Return the names of a file's columns; ``wanted`` for JSON lines, which have no header.

    ``uri`` is Parquet, with images or without, or a text. Raises BrokenError if it can't be read.
    """
    if uri.endswith(PARQUET):
        with parquet.opened(uri) as table:
            return list(table.names)
    if uri.endswith(JSON_LINES):
        return [wanted]
    with reader.opened(uri, "text") as file:
        header = _header(uri, file, AS_FOUND)
    return header.names if header else []


class _Header(NamedTuple):
    """The names of a text's columns, the place of its first row, and the shape of CSV rows."""

    names: list[str]
    end: int
    shape: TableShape | None = None


def _header(uri: str, file: Reader, reading: Reading) -> _Header | None:
    """Return the header of a text, None if it is empty.

    The header of JSON lines are the names in their first objects, up to an object that has all
    wanted names; it is empty if no line is an object.
    """
    if uri.endswith(JSON_LINES):
        names: dict[str, None] = {}
        seen = False
        for count in (1, ROWS_PER_UNIT):  # mostly, the first object has all names
            for record in _records(uri, file, 0, count=count):
                seen = True
                names |= dict.fromkeys(record.fields)
            if _lacks(list(names), reading) is None:
                break
        return _Header(list(names), 0) if seen else None
    records = list(_records(uri, file, 0, count=1))
    if not records:
        return None
    (first,) = records
    if first.fault:
        raise BrokenError(f"the header can't be read: {first.fault}")
    found = [name.removeprefix("\ufeff").strip() for name in first.fields]
    column = uri_column(found, reading)
    shape = None if column is None else TableShape(len(found), found.index(column))
    return _Header(found, first.end, shape)


def table_rows(unit: Unit) -> Iterator[TableRow]:
    """Yield the rows of a unit; raises BrokenError if the rest can't be read."""
    assert unit.rows is not None
    start, stop = unit.rows
    number = start
    if unit.uris[0].endswith(PARQUET):
        found = _parquet_rows(unit)
    else:
        found = _text_rows(unit, stop - start)
    for fields, fault in found:
        yield TableRow(number, fields, fault)
        number += 1
    if number < stop and stop != END:
        raise BrokenError(f"the table ends before row {number}; it was changed")


def _text_rows(unit: Unit, count: int) -> Iterator[tuple[Mapping[str, object], str]]:
    uri = unit.uris[0]
    with reader.opened(uri, "text") as file:
        header = _header(uri, file, unit.reading)
        if header is None:
            return
        offset = max(unit.offset, header.end)
        for record in _records(uri, file, offset, header.shape, count):
            if isinstance(record.fields, dict):
                fields: dict[str, object] = record.fields
                strings = (uri_column(list(fields), unit.reading), *labels.strict(unit.reading))
                for name in record.nested:
                    if name in strings:
                        fields[name] = None
                yield fields, record.fault
            else:  # CSV has no null: an empty cell counts as one
                cells = [cell or None for cell in record.fields]
                yield dict(zip(header.names, cells, strict=False)), record.fault


def _parquet_rows(unit: Unit) -> Iterator[tuple[Mapping[str, object], str]]:
    reading = unit.reading
    assert unit.rows is not None
    start, stop = unit.rows
    with parquet.opened(unit.uris[0]) as table:
        strict = (uri_column(table.names, reading), *labels.strict(reading))
        declaring = labels.declaring(reading)
        wanted = dict.fromkeys((*strict, *declaring, reading.id_column, *reading.columns))
        names = [name for name in wanted if name is not None and name in table.names]
        strings = [name for name in names if name in strict]
        for row in table.rows(names, strings=strings, start=start, stop=stop):
            yield labels.spelled(row.texts, table.labels, reading), ""


def resolved(text: str, table: str, reading: Reading = AS_FOUND) -> str:
    """Return the URI of an entry of a table; relative paths begin at the table's folder.

    A local table is the user's own and may name any file. A table in a bucket may name only the web
    and objects of that bucket, unless ``reading`` allows more. Any other entry, and a scheme that
    is not supported, raises DecodeError.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    kind = scheme[1].lower() if scheme else ""
    path = text[scheme.end() if scheme else 0 :]
    if kind in {"http", "https"}:
        return f"{kind}://{path}"
    if kind not in {"", "file", *_STORES}:
        raise DecodeError("forbidden_address", f"{kind}:// is not read")
    if kind in _STORES:
        return _object(f"{kind}://{path}", table, reading)
    if not storage.is_remote(table):
        return _beside(path, posixpath.dirname(table))
    if kind == "file" or path.startswith("/"):
        if not reading.allow_local:
            raise DecodeError("forbidden_address", "a local path; see --allow-local")
        return _beside(path, "/")
    found = _beside(path, posixpath.dirname(storage.path_of(table)))
    if not found.startswith(f"{storage.bucket_and_key(table)[0]}/"):
        raise DecodeError("forbidden_address", "a path that leads out of the table's bucket")
    return f"{storage.scheme(table)}://{found}"


def _beside(path: str, folder: str) -> str:
    return posixpath.normpath(posixpath.join(folder, path))


def _object(uri: str, table: str, reading: Reading) -> str:
    """Return the URI of an object, in a bucket that a table may name; others raise."""
    bucket, key = storage.bucket_and_key(uri)
    if not _BUCKET.fullmatch(bucket) or not key:
        raise DecodeError("missing_image", f"{public_uri(uri)[:200]} is no bucket with a key")
    if not storage.is_remote(table):
        return uri
    if storage.scheme(uri) != storage.scheme(table):
        raise DecodeError("forbidden_address", "not in the object store of its table")
    if bucket not in {storage.bucket_and_key(table)[0], *reading.allow_buckets}:
        raise DecodeError("forbidden_address", f"{bucket} is not its bucket; see --allow-buckets")
    if ".." in key.split("/"):  # a server may read this as the folder above
        raise DecodeError("forbidden_address", "a key with a part ..")
    return uri
