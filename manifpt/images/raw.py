"""Units of work -> undecoded images, each with its id: from files, tars, Parquet and tables."""

import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import tables, tars
from manifpt.images.contents import content, in_order, is_web, one_line
from manifpt.images.decode import DecodeError, DecodeRule
from manifpt.images.sources import PARQUET, SPLITS, Reading, Unit, stem
from manifpt.redaction import public_uri

# Members of a WebDataset sample that describe the image and are none.
SIDECARS = {"json", "txt", "cls", "cls2", "csv", "caption", "id", "index", "md5", "npy", "pyd"}
MOST_JSON = 2**20
IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "image_data", "jpg", "jpeg", "png", "webp", "img")
_BROKEN = (pa.ArrowException, tarfile.TarError, csv.Error, OSError, EOFError, ValueError)


# Told an id: whether its image is wanted.
Wanted = Callable[[str], bool]


class Raw(NamedTuple):
    """An image before decoding; ``data`` is None where there is none, and ``error`` says why.

    ``columns`` are the metadata that travel with it.
    """

    id: str
    uri: str
    data: bytes | None
    source: str | None = None
    split: str | None = None
    error: str = "missing_image"
    message: str = ""
    columns: dict[str, str | None] | None = None


def printable(text: str) -> str:
    """Return a text that is UTF-8 in any case: names of files may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(value: object) -> str | None:
    """Return a metadata value as text: strings as they are, others as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return printable(value)
    return printable(json.dumps(value, default=str, ensure_ascii=False))


def _declared(facts: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """Return the source, the split and the metadata that a row or a sample says it has."""
    source, split = facts.get("source"), facts.get("split")
    return {
        "source": printable(source) if isinstance(source, str) else None,
        "split": split if split in SPLITS else None,
        "columns": {name: text_of(facts.get(name)) for name in reading.columns},
    }


def _broken(unit: Unit, error: BaseException) -> Raw:
    """Return the one row that the unreadable rest of a tar or a table costs.

    An error that is the storage's is raised again: the rest would be there another time.
    """
    if isinstance(error, OSError) and not storage.blames_file(error, unit.uris[0]):
        raise error
    inside = "~broken" if unit.rows is None else f"~broken-{unit.rows[0]:08d}"
    row_id = f"{unit.ids[0]}/{inside}"
    return Raw(row_id, unit.uris[0], None, error="broken_archive", message=one_line(error))


def _fetched(raw: Raw, max_bytes: int, reading: Reading, *, of_table: bool) -> Raw:
    """Return an image with the content of its URI, or the error; one that has an error stays.

    The URI that a table names is shown without its credentials. Names in a listing have none.
    """
    if raw.error:
        return raw
    shown = raw._replace(uri=public_uri(raw.uri)) if of_table else raw
    try:
        data = content(raw.uri, max_bytes, allow_private=reading.allow_private)
    except DecodeError as error:
        message = str(error)
        if shown.uri != raw.uri and not is_web(raw.uri):
            message = message.partition(":")[0]  # the rest may quote any part of the URI
        return shown._replace(error=error.code, message=message)
    return shown._replace(data=data)


def _all_fetched(
    raws: Iterator[Raw], unit: Unit, max_bytes: int, wanted: Wanted | None
) -> Iterator[Raw]:
    if wanted is not None:  # the others are not even asked for
        raws = (raw for raw in raws if wanted(printable(raw.id)))
    of_table = unit.kind == "table"
    fetch = partial(_fetched, max_bytes=max_bytes, reading=unit.reading, of_table=of_table)
    remote = of_table or storage.is_s3(unit.uris[0])
    return in_order(fetch, raws) if remote else map(fetch, raws)


def _raw_files(unit: Unit) -> Iterator[Raw]:
    """Yield the files of a unit, their content still to be fetched."""
    for uri, key in zip(unit.uris, unit.ids, strict=True):
        columns = dict.fromkeys(unit.reading.columns)
        yield Raw(key, uri, None, error="", columns=columns)


def _raw_rows(unit: Unit) -> Iterator[Raw]:
    """Yield the rows of a table of URIs, their content still to be fetched."""
    table, reading = unit.uris[0], unit.reading
    try:
        for number, row in tables.rows(unit):
            column = tables.uri_column(list(row), reading)
            entry = row.get(column) if column is not None else None
            # Its number keeps an id unique where the column does not.
            name = f"{number:08d}"
            if reading.id_column is not None:
                name = f"{text_of(row.get(reading.id_column))}~{number}"
            raw = Raw(f"{unit.ids[0]}/{name}", f"{table}#{number}", None, **_declared(row, reading))
            if isinstance(entry, str) and entry.strip():
                try:
                    raw = raw._replace(uri=tables.resolved(entry.strip(), table, reading), error="")
                except DecodeError as error:
                    raw = raw._replace(error=error.code, message=str(error))
            yield raw
    except _BROKEN as error:
        yield _broken(unit, error)


class _Beside:
    """The metadata that img2dataset writes beside a tar, as Parquet, by the samples' keys."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.rows: dict[str, dict[str, Any]] | None = None

    def of(self, key: str) -> dict[str, Any]:
        """Return what is known of a sample; the file is read when first asked for."""
        if self.rows is None:
            self.rows = self._read() if self.unit.reading.columns else {}
        return self.rows.get(key.rpartition("/")[2], {})

    def _read(self) -> dict[str, dict[str, Any]]:
        uri = stem(self.unit.uris[0]) + PARQUET[0]
        if not storage.exists(uri):
            return {}
        with storage.reading(uri) as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            columns = [name for name in ("key", *self.unit.reading.columns) if name in names]
            if "key" not in columns:
                return {}
            rows = parquet.read(columns=list(dict.fromkeys(columns))).to_pylist()
        return {str(row["key"]): row for row in rows}


def _sample(members: dict[str, tars.Member], key: str, unit: Unit, known: _Beside) -> Iterator[Raw]:
    """Yield the images of one WebDataset sample: members that share a name up to its first dot."""
    facts: dict[str, Any] = {}
    if "json" in members:
        try:
            parsed = json.loads(members["json"].data or b"")
            facts = parsed if isinstance(parsed, dict) else {}
        except (ValueError, RecursionError):
            facts = {}
    declared = _declared(facts or known.of(key), unit.reading)
    images = [name for name in members if name.rsplit(".", 1)[-1].lower() not in SIDECARS]
    for name in images:
        inside = key if len(images) == 1 else f"{key}.{name}"
        member, uri = members[name], f"{unit.uris[0]}#{key}.{name}"
        row = Raw(f"{unit.ids[0]}/{inside}", uri, member.data, **declared)
        yield row._replace(error=member.error, message=member.message)
    if not images:
        yield Raw(f"{unit.ids[0]}/{key}", f"{unit.uris[0]}#{key}", None, **declared)


def _raw_tar(unit: Unit, max_bytes: int) -> Iterator[Raw]:
    fs, path = storage.filesystem(unit.uris[0])
    key, held, size = None, dict[str, tars.Member](), 0
    seen: set[str] = set()
    known = _Beside(unit)
    try:
        with fs.open(path, "rb") as file:
            for member in tars.members(file, max_bytes):
                name = printable(member.name)
                if member.error and member.error != "too_many_bytes":
                    row_id = f"{unit.ids[0]}/{unique(name, seen)}"
                    nothing = dict.fromkeys(unit.reading.columns)
                    yield Raw(row_id, f"{unit.uris[0]}#{name}", None, columns=nothing)._replace(
                        error=member.error, message=member.message
                    )
                    continue
                folder, _, base = name.rpartition("/")
                sample, _, extension = base.partition(".")
                # Ids must be unique, and a tar may hold a name twice, or a sample without end.
                following = f"{folder}/{sample}" if folder else sample
                full = size > 2 * max_bytes
                if key is not None and (following != key or extension in held or full):
                    yield from _sample(held, unique(key, seen), unit, known)
                    held, size = {}, 0
                key = following
                held[extension] = member
                size += len(member.data or b"")
        if key is not None:
            yield from _sample(held, unique(key, seen), unit, known)
    except _BROKEN as error:
        broken = _broken(unit, error)  # raises before a sample is taken for whole
        if key is not None and held:
            yield from _sample(held, unique(key, seen), unit, known)
        yield broken


def unique(key: str, seen: set[str]) -> str:
    """Return the key, with a number if it was seen before, and remember it."""
    candidate, count = key, 1
    while candidate in seen:
        count += 1
        candidate = f"{key}~{count}"
    seen.add(candidate)
    return candidate


def _raw_parquet(unit: Unit) -> Iterator[Raw]:
    fs, path = storage.filesystem(unit.uris[0])
    reading = unit.reading
    row = 0
    seen: set[str] = set()
    try:
        with fs.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            image = image_column(parquet.schema_arrow, reading, unit.uris[0])
            ids = (reading.id_column,) if reading.id_column is not None else ("id", "key")
            wanted = (image, *ids, "source", "split", *reading.columns)
            columns = [name for name in dict.fromkeys(wanted) if name in names]
            for batch in parquet.iter_batches(batch_size=64, columns=columns):
                for values in batch.to_pylist():
                    cell = values[image]
                    data = cell.get("bytes") if isinstance(cell, dict) else cell
                    key = next((values[name] for name in ids if values.get(name) is not None), None)
                    inside = unique(text_of(key) or f"{row:08d}", seen)
                    row_id, uri = f"{unit.ids[0]}/{inside}", f"{unit.uris[0]}#{row}"
                    yield Raw(row_id, uri, data, **_declared(values, reading))
                    row += 1
    except _BROKEN as error:
        yield _broken(unit, error)


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


def raw_images(unit: Unit, rule: DecodeRule, wanted: Wanted | None = None) -> Iterator[Raw]:
    """Yield the undecoded images of a unit in a fixed order; what the unit declares wins.

    Only those are returned whose id is ``wanted``.
    """
    with storage.explained(unit.uris[0]):
        for raw in _raw(unit, rule, wanted):
            if wanted is None or wanted(raw.id):
                yield raw


def _raw(unit: Unit, rule: DecodeRule, wanted: Wanted | None) -> Iterator[Raw]:
    if unit.kind == "files":
        found = _all_fetched(_raw_files(unit), unit, rule.max_bytes, wanted)
    elif unit.kind == "table":
        found = _all_fetched(_raw_rows(unit), unit, rule.max_bytes, wanted)
    elif unit.kind == "tar":
        found = _raw_tar(unit, rule.max_bytes)
    else:
        found = _raw_parquet(unit)
    for raw in found:
        yield raw._replace(
            id=printable(raw.id),
            uri=printable(raw.uri),
            source=unit.source or raw.source,
            split=unit.split or raw.split,
        )
