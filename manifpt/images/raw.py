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
from manifpt.images.container import BrokenError, opened
from manifpt.images.contents import content, in_order, one_line
from manifpt.images.decode import DecodeError, DecodeRule
from manifpt.images.ids import Keys, broken_id, member_uri, row_id
from manifpt.images.sources import PARQUET, SPLITS, Reading, Unit, stem

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
    row_id = broken_id(unit.ids[0], unit.rows[0] if unit.rows else None)
    message = str(error) if isinstance(error, BrokenError) else one_line(error)
    return Raw(row_id, unit.uris[0], None, error="broken_archive", message=message)


def _fetched(raw: Raw, max_bytes: int, allow_private: bool) -> Raw:
    """Return an image with the content of its URI, or the error; one that has an error stays."""
    if raw.error:
        return raw
    try:
        return raw._replace(data=content(raw.uri, max_bytes, allow_private=allow_private))
    except DecodeError as error:
        return raw._replace(error=error.code, message=str(error))


def _all_fetched(
    raws: Iterator[Raw], unit: Unit, max_bytes: int, wanted: Wanted | None
) -> Iterator[Raw]:
    if wanted is not None:  # the others are not even asked for
        raws = (raw for raw in raws if wanted(raw.id))
    fetch = partial(_fetched, max_bytes=max_bytes, allow_private=unit.reading.allow_private)
    remote = unit.kind == "table" or storage.is_s3(unit.uris[0])
    return in_order(fetch, raws) if remote else map(fetch, raws)


def _raw_files(unit: Unit) -> Iterator[Raw]:
    """Yield the files of a unit, their content still to be fetched."""
    for uri, key in zip(unit.uris, unit.ids, strict=True):
        columns = dict.fromkeys(unit.reading.columns)
        yield Raw(key, uri, None, error="", columns=columns)


def _raw_rows(unit: Unit) -> Iterator[Raw]:
    """Yield the rows of a table of URIs, their content still to be fetched."""
    try:
        for row in tables.rows(unit):
            yield _raw_row(row, unit)
    except BrokenError as error:
        yield _broken(unit, error)


def _raw_row(row: tables.Row, unit: Unit) -> Raw:
    table, reading = unit.uris[0], unit.reading
    name = None
    if reading.id_column is not None:
        cell = row.fields.get(reading.id_column)
        name = cell if isinstance(cell, str) else str(text_of(cell))
    own = row_id(unit.ids[0], row.number, name)
    raw = Raw(own, f"{table}#{row.number}", None, **_declared(row.fields, reading))
    column = tables.uri_column(list(row.fields), reading)
    entry = row.fields.get(column) if column is not None else None
    if not isinstance(entry, str) or not entry.strip():
        return raw._replace(message=row.fault)
    try:
        return raw._replace(uri=tables.resolved(entry.strip(), table), error="")
    except DecodeError as error:
        return raw._replace(error=error.code, message=str(error))


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


class _Samples:
    """The WebDataset samples of a tar: members that share a name up to its first dot."""

    def __init__(self, unit: Unit, max_bytes: int) -> None:
        self.unit, self.most = unit, 2 * max_bytes
        self.keys, self.known = Keys(unit.ids[0]), _Beside(unit)
        self.name: str | None = None
        self.held: dict[str, tars.Member] = {}
        self.size = 0

    def add(self, member: tars.Member) -> Iterator[Raw]:
        """Take the next member in; yield what is complete by now."""
        if member.error and member.error != "too_many_bytes":
            yield self._raw(member.name, member, {"columns": dict.fromkeys(self._columns)})
            return
        base = member.name.rpartition("/")[2]
        short, _, extension = base.partition(".")
        name = member.name[: len(member.name) - len(base)] + short
        # A tar may hold a name twice, or a sample without end.
        if name != self.name or extension in self.held or self.size > self.most:
            yield from self.rest()
        self.name = name
        self.held[extension] = member
        self.size += len(member.data or b"")

    def rest(self) -> Iterator[Raw]:
        """Yield the images of the sample that is held, or its lack of one."""
        if self.name is not None and self.held:
            declared = _declared(self._facts() or self.known.of(self.name), self.unit.reading)
            images = [m for end, m in self.held.items() if _ending(end) not in SIDECARS]
            for member in images:
                yield self._raw(self.name if len(images) == 1 else member.name, member, declared)
            if not images:
                first = next(iter(self.held.values()))._replace(data=None, error="missing_image")
                yield self._raw(self.name, first, declared)
        self.name, self.held, self.size = None, {}, 0

    @property
    def _columns(self) -> tuple[str, ...]:
        return self.unit.reading.columns

    def _raw(self, name: str, member: tars.Member, declared: dict[str, Any]) -> Raw:
        uri = member_uri(self.unit.uris[0], member.name)
        row = Raw(self.keys.id(name), uri, member.data, **declared)
        return row._replace(error=member.error, message=member.message)

    def _facts(self) -> dict[str, Any]:
        data = self.held["json"].data if "json" in self.held else None
        if data is None or len(data) > MOST_JSON:
            return {}
        try:
            parsed = json.loads(data.decode(json.detect_encoding(data), "replace"))
        except (ValueError, RecursionError):
            return {}
        return parsed if isinstance(parsed, dict) else {}


def _ending(extension: str) -> str:
    return extension.rsplit(".", 1)[-1].lower()


def _raw_tar(unit: Unit, max_bytes: int) -> Iterator[Raw]:
    samples = _Samples(unit, max_bytes)
    try:
        with opened(unit.uris[0]) as file:
            for member in tars.members(file, max_bytes):
                yield from samples.add(member)
        yield from samples.rest()
    except BrokenError as error:
        yield from samples.rest()
        yield _broken(unit, error)


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
            uri=printable(raw.uri),
            source=unit.source or raw.source,
            split=unit.split or raw.split,
        )
