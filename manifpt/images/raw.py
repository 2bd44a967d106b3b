"""Units of work -> undecoded images, each with its id: from files, tars, Parquet and tables."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, TypedDict

from manifpt import storage
from manifpt.images import labels, parquet, reader, uri_tables
from manifpt.images.container import BrokenError
from manifpt.images.contents import Reserve, content, is_web, map_in_order
from manifpt.images.decode import DecodeError, DecodeRule
from manifpt.images.ids import Keys, broken_id, member_uri, row_id
from manifpt.images.sidecars import Beside
from manifpt.images.sources import Reading, Unit
from manifpt.images.tars import TarMember
from manifpt.images.text import printable, text_of
from manifpt.redaction import public_uri

# Members of a WebDataset sample that describe the image.
SIDECARS = {"json", "txt", "cls", "cls2", "csv", "caption", "id", "index", "md5", "npy", "pyd"}
MOST_JSON = 2**20  # a larger one is not parsed: it would take 25 times its size


# A function that tells whether the image of an id is wanted.
Wanted = Callable[[str], bool]


class Raw(NamedTuple):
    """An image before decoding; if ``data`` is None, ``error`` gives the reason.

    ``columns`` are its metadata.
    """

    id: str
    uri: str
    data: bytes | None
    source: str | None = None
    split: str | None = None
    error: str = "missing_image"
    message: str = ""
    columns: dict[str, str | None] | None = None


class _Declared(TypedDict):
    source: str | None
    split: str | None
    columns: dict[str, str | None]


def _declared(facts: Mapping[str, object], reading: Reading) -> _Declared:
    """Return the source, the split and the metadata that a row or a sample declares."""
    source, split = labels.declared(facts, reading)
    columns = {name: text_of(facts.get(name)) for name in reading.columns}
    return {"source": source, "split": split, "columns": columns}


def _broken(unit: Unit, error: BrokenError) -> Raw:
    """Return the one row that stands for the unreadable rest of a container."""
    own = broken_id(unit.ids[0], unit.rows[0] if unit.rows else None)
    return Raw(own, unit.uris[0], None, error="broken_archive", message=str(error))


def _fetched(
    raw: Raw, reserve: Reserve | None, max_bytes: int, reading: Reading, *, of_table: bool
) -> Raw:
    """Return an image with the content of its URI, or the error; one that has an error stays.

    The URI that a table names is shown without its credentials. Names in a listing have none.
    """
    if raw.error:
        return raw
    shown = raw._replace(uri=public_uri(raw.uri)) if of_table else raw
    try:
        allow = reading.allow_private
        data = content(raw.uri, max_bytes, allow_private=allow, reserve=reserve)
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
        raws = (raw for raw in raws if wanted(raw.id))
    of_table = unit.kind == "table"
    fetch = partial(_fetched, max_bytes=max_bytes, reading=unit.reading, of_table=of_table)
    remote = of_table or storage.is_remote(unit.uris[0])
    return map_in_order(fetch, raws) if remote else (fetch(raw, None) for raw in raws)


def _raw_files(unit: Unit) -> Iterator[Raw]:
    """Yield the files of a unit, their content still to be fetched."""
    for uri, key in zip(unit.uris, unit.ids, strict=True):
        columns = dict.fromkeys(unit.reading.columns)
        yield Raw(key, uri, None, error="", columns=columns)


def _raw_rows(unit: Unit) -> Iterator[Raw]:
    """Yield the rows of a table of URIs, their content still to be fetched."""
    try:
        for row in uri_tables.table_rows(unit):
            yield _raw_row(row, unit)
    except BrokenError as error:
        yield _broken(unit, error)


def _raw_row(row: uri_tables.TableRow, unit: Unit) -> Raw:
    table, reading = unit.uris[0], unit.reading
    name = None
    if reading.id_column is not None:
        cell = row.fields.get(reading.id_column)
        name = cell if isinstance(cell, str) else str(text_of(cell))
    own = row_id(unit.ids[0], row.number, name)
    raw = Raw(own, f"{table}#{row.number}", None, **_declared(row.fields, reading))
    column = uri_tables.uri_column(list(row.fields), reading)
    entry = row.fields.get(column) if column is not None else None
    if not isinstance(entry, str) or not entry.strip():
        return raw._replace(message=row.fault)
    try:
        return raw._replace(uri=uri_tables.resolved(entry.strip(), table, reading), error="")
    except DecodeError as error:
        return raw._replace(error=error.code, message=str(error))


class _Samples:
    """The WebDataset samples of a tar: members that share a name up to its first dot."""

    def __init__(self, unit: Unit, max_bytes: int) -> None:
        self.unit, self.most = unit, 2 * max_bytes
        self.keys, self.known = Keys(unit.ids[0]), Beside(unit)
        self.name: str | None = None
        self.held: dict[str, TarMember] = {}
        self.size = 0

    def add(self, member: TarMember) -> Iterator[Raw]:
        """Add the next member; yield the images of samples that are complete."""
        if member.error and member.error != "too_many_bytes":
            yield self._raw(member.name, member, _declared({}, self.unit.reading))
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
        """Yield the images of the held sample, or the error that it has none."""
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

    def _raw(self, name: str, member: TarMember, declared: _Declared) -> Raw:
        uri = member_uri(self.unit.uris[0], member.name)
        row = Raw(self.keys.id(name), uri, member.data, **declared)
        return row._replace(error=member.error, message=member.message)

    def _facts(self) -> dict[str, object]:
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
        with reader.opened(unit.uris[0], "tar") as file:
            for member in file.members(max_bytes):
                yield from samples.add(member)
        yield from samples.rest()
    except BrokenError as error:
        yield from samples.rest()
        yield _broken(unit, error)


def _raw_parquet(unit: Unit, most: int) -> Iterator[Raw]:
    reading = unit.reading
    ids = (reading.id_column,) if reading.id_column is not None else ("id", "key")
    number, keys = 0, Keys(unit.ids[0])
    try:
        with parquet.opened(unit.uris[0]) as file:
            image = parquet.image_column(file, reading, unit.uris[0])
            strict = labels.strict(reading)
            names = dict.fromkeys((*ids, *labels.declaring(reading), *reading.columns))
            texts = [name for name in names if name in file.names]
            for row in file.rows(texts, strings=strict, image=image, most=most):
                given = (row.texts.get(name) for name in ids)
                facts = labels.spelled(row.texts, file.labels, reading)
                key = next((text for text in given if text is not None), None)
                own = keys.id(key or f"{number:08d}")
                raw = Raw(own, f"{unit.uris[0]}#{number}", row.data, **_declared(facts, reading))
                if row.refused:
                    refusal = f"{row.refused} bytes, limit {most}"
                    raw = raw._replace(error="too_many_bytes", message=refusal)
                yield raw
                number += 1
    except BrokenError as error:
        yield _broken(unit, error)


def raw_images(unit: Unit, rule: DecodeRule, wanted: Wanted | None = None) -> Iterator[Raw]:
    """Yield the undecoded images of a unit in a fixed order; the unit's declarations win.

    Only those are returned whose id is ``wanted``.
    """
    with storage.explain_errors(unit.uris[0]):
        for raw in _raw(unit, rule, wanted):
            if wanted is None or wanted(raw.id):
                yield raw


def listed(unit: Unit) -> Iterator[Raw]:
    """Yield the images of a unit of files, or of a table of URIs, without reading their content."""
    found = _raw_files(unit) if unit.kind == "files" else _raw_rows(unit)
    with storage.explain_errors(unit.uris[0]):
        yield from (_of_unit(raw, unit) for raw in found)


def _of_unit(raw: Raw, unit: Unit) -> Raw:
    """Return an image with the source and split that its unit declares, which win."""
    return raw._replace(
        uri=printable(raw.uri),
        source=labels.source_of(unit, raw.source),
        split=unit.split or raw.split,
    )


def _raw(unit: Unit, rule: DecodeRule, wanted: Wanted | None) -> Iterator[Raw]:
    if unit.kind == "files":
        found = _all_fetched(_raw_files(unit), unit, rule.max_bytes, wanted)
    elif unit.kind == "table":
        found = _all_fetched(_raw_rows(unit), unit, rule.max_bytes, wanted)
    elif unit.kind == "tar":
        found = _raw_tar(unit, rule.max_bytes)
    else:
        found = _raw_parquet(unit, rule.max_bytes)
    yield from (_of_unit(raw, unit) for raw in found)
