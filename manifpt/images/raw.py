"""Units of work -> undecoded images, each with its id: from files, tars, Parquet and tables."""

import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from manifpt import storage
from manifpt.images import parquet, tables, tars
from manifpt.images.contents import Reserve, content, in_order, is_web
from manifpt.images.decode import DecodeError, DecodeRule
from manifpt.images.sidecars import Beside
from manifpt.images.sources import SPLITS, Reading, Unit
from manifpt.images.text import one_line, printable, text_of
from manifpt.redaction import public_uri

# Columns that say what an image is; in Parquet only where they are strings.
DECLARED = ("source", "split")
# Members of a WebDataset sample that describe the image and are none.
SIDECARS = {"json", "txt", "cls", "cls2", "csv", "caption", "id", "index", "md5", "npy", "pyd"}
MOST_JSON = 2**20  # a larger one is not parsed: it would take 25 times its size
_BROKEN = (tarfile.TarError, csv.Error, OSError, EOFError, ValueError)


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
        raws = (raw for raw in raws if wanted(printable(raw.id)))
    of_table = unit.kind == "table"
    fetch = partial(_fetched, max_bytes=max_bytes, reading=unit.reading, of_table=of_table)
    remote = of_table or storage.is_s3(unit.uris[0])
    return in_order(fetch, raws) if remote else (fetch(raw, None) for raw in raws)


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


def _sample(members: dict[str, tars.Member], key: str, unit: Unit, known: Beside) -> Iterator[Raw]:
    """Yield the images of one WebDataset sample: members that share a name up to its first dot."""
    facts: dict[str, Any] = {}
    text = members["json"].data if "json" in members else None
    if text and len(text) <= MOST_JSON:
        try:
            parsed = json.loads(text)
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
    seen: dict[str, int] = {}
    known = Beside(unit)
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


def unique(key: str, seen: dict[str, int]) -> str:
    """Return the key, with a number if it was seen before, and remember it."""
    candidate, count = key, seen.get(key, 1)
    while candidate in seen:
        count += 1
        candidate = f"{key}~{count}"
    seen[key] = count
    seen.setdefault(candidate, 1)
    return candidate


def _raw_parquet(unit: Unit, most: int) -> Iterator[Raw]:
    reading = unit.reading
    ids = (reading.id_column,) if reading.id_column is not None else ("id", "key")
    number, seen = 0, dict[str, int]()
    try:
        with parquet.opened(unit.uris[0]) as file:
            image = parquet.image_column(file, reading, unit.uris[0])
            names = dict.fromkeys((*ids, *DECLARED, *reading.columns))
            texts = [name for name in names if name in file.names]
            for row in file.rows(texts, strings=DECLARED, image=image, most=most):
                given = (row.texts.get(name) for name in ids)
                key = next((text for text in given if text is not None), None)
                row_id = f"{unit.ids[0]}/{unique(key or f'{number:08d}', seen)}"
                uri = f"{unit.uris[0]}#{number}"
                raw = Raw(row_id, uri, row.data, **_declared(row.texts, reading))
                if row.refused:
                    refusal = f"{row.refused} bytes, limit {most}"
                    raw = raw._replace(error="too_many_bytes", message=refusal)
                yield raw
                number += 1
    except _BROKEN as error:
        yield _broken(unit, error)


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
        found = _raw_parquet(unit, rule.max_bytes)
    for raw in found:
        yield raw._replace(
            id=printable(raw.id),
            uri=printable(raw.uri),
            source=unit.source or raw.source,
            split=unit.split or raw.split,
        )
