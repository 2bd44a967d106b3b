"""Inputs -> units of work: what each file is recognised as, one after the other, always alike."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal

from manifpt import storage
from manifpt.errors import ManifptError, public
from manifpt.images import listing, parquet
from manifpt.images.listing import Found
from manifpt.images.patterns import Pattern, is_pattern, root_of
from manifpt.images.raw import unique
from manifpt.images.sources import (
    AS_FOUND,
    CARD,
    PARQUET,
    TABLES,
    TARS,
    Input,
    Reading,
    Selection,
    Unit,
    stem,
)
from manifpt.images.tables import ranges, uri_column
from manifpt.images.text import printable

FILES_PER_UNIT = 1024
STATS = "_stats.json"


@dataclass
class Recognised:
    """What an input was found to hold."""

    tars: int = 0
    parquet: int = 0
    tables: int = 0
    rows: int = 0
    files: int = 0
    sidecars: int = 0
    units: int = 0
    bytes: int = 0
    _last_table: str = field(default="", repr=False)

    def add(self, unit: Unit) -> None:
        """Count a unit."""
        self.units += 1
        self.bytes += unit.bytes
        self.tars += unit.kind == "tar"
        self.parquet += unit.kind == "parquet"
        self.files += len(unit.uris) if unit.kind == "files" else 0
        if unit.rows is not None:
            self.rows += unit.rows[1] - unit.rows[0]
            self.tables += unit.uris[0] != self._last_table
            self._last_table = unit.uris[0]

    def __str__(self) -> str:
        kinds = [
            (self.tars, "tar"),
            (self.parquet, "image Parquet"),
            (self.tables, "URI table"),
            (self.rows, "table row"),
            (self.files, "file"),
            (self.sidecars, "metadata file (no images)"),
            (self.units, "unit"),
        ]
        held = ", ".join(f"{count:,} x {name}" for count, name in kinds if count)
        return f"{held}, {self.bytes:,} bytes"


def _from_card(given: Input) -> list[Input] | None:
    """Expand the folder of a benchmark into its tars, each with its source and split."""
    card_uri = storage.join(given.uri, CARD)
    if given.uri.endswith((*TARS, *PARQUET, *TABLES)) or not storage.exists(card_uri):
        return None
    card = storage.read_json(card_uri)
    return [
        Input(
            storage.join(given.uri, file["path"]),
            file["source"],
            file["split"],
            storage.join(given.prefix, str(PurePosixPath(file["path"]).parent)),
        )
        for file in card["files"]
    ]


def _subfolders(given: Input) -> list[Input]:
    """Name the sources of an unnamed folder after its subfolders, where it holds nothing else."""
    if given.source is not None or given.uri.endswith((*TARS, *PARQUET, *TABLES)):
        return [given]
    return [
        Input(storage.join(given.uri, name), name, prefix=storage.join(given.prefix, name))
        for name in listing.folders(given.uri)
    ] or [given]


@dataclass
class _Cutter:
    """Cuts the files of one input into units, in the order in which they come."""

    given: Input
    reading: Reading
    counts: Recognised
    root: str
    explicit: bool  # the user named tables: a text is one, and not a file like others
    endings: bool = False  # containers may differ by the ends of their names alone
    loose: list[tuple[Found, str]] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)

    def units(self, found: Iterator[Found]) -> Iterator[Unit]:
        """Yield the units of some files."""
        for file in found:
            # Names that begin alike come together: these are the containers that this may be of.
            while self.stems and not file.uri.startswith(self.stems[-1]):
                self.stems.pop()
            yield from self._unit(file)
            if len(self.loose) == FILES_PER_UNIT:
                yield self._files()
        if self.loose:
            yield self._files()

    def _unit(self, file: Found) -> Iterator[Unit]:
        if file.uri.endswith(TARS):
            yield self._container("tar", file)
        elif file.uri.endswith(PARQUET):
            yield from self._parquet(file)
        elif file.uri.endswith(TABLES) and self.explicit:
            yield from self._table(file)
        elif file.uri.endswith(STATS) and file.uri.removesuffix(STATS) in self.stems:
            self.counts.sidecars += 1
        else:
            self.loose.append((file, self._name(file.uri)))

    def _parquet(self, file: Found) -> Iterator[Unit]:
        kind = _parquet_kind(file.uri, self.reading)
        if kind == "parquet":
            yield self._container("parquet", file)
        elif kind == "table":
            yield from self._table(file)
        else:
            self.counts.sidecars += 1

    def _table(self, file: Found) -> Iterator[Unit]:
        whole = self._container("table", file)
        for part in ranges(file.uri, file.bytes, self.reading):
            yield self._made(replace(whole, bytes=part.bytes, rows=part.rows, offset=part.offset))

    def _container(self, kind: Literal["tar", "parquet", "table"], file: Found) -> Unit:
        """Return the unit of a container; its ids begin with its stem, if no other's do."""
        name, own = self._name(file.uri), stem(file.uri)
        prefix = name if self.endings or own in self.stems else stem(name)
        self.stems.append(own)
        unit = Unit(kind, (file.uri,), (prefix,), self.given.source, self.given.split, file.bytes)
        return unit if kind == "table" else self._made(unit)

    def _name(self, uri: str) -> str:
        """Return a file's path inside the input, unlike those of what is in a container."""
        inside = uri[len(self.root) + 1 :] or storage.base_name(uri)
        for own in self.stems:
            if uri.startswith(f"{own}/"):
                at = len(own) - len(self.root) - 1
                inside = f"{inside[:at]}~{inside[at:]}"
                break
        return printable(storage.join(self.given.prefix, inside))

    def _files(self) -> Unit:
        files, names = zip(*self.loose, strict=True)
        self.loose = []
        uris, size = tuple(file.uri for file in files), sum(file.bytes for file in files)
        return self._made(Unit("files", uris, names, self.given.source, self.given.split, size))

    def _made(self, unit: Unit) -> Unit:
        unit = replace(unit, reading=self.reading)
        self.counts.add(unit)
        return unit


def _parquet_kind(uri: str, reading: Reading) -> str:
    """Tell what a Parquet file is: ``parquet`` of images, a ``table`` of URIs, or ``metadata``.

    Metadata describes the images in a tar or folder of the same name, as img2dataset writes it.
    """
    try:
        with parquet.opened(uri) as file:
            uris = uri_column(file.names, reading)
    except (parquet.ParquetError, OSError):
        return "parquet"  # whoever reads it says what is wrong, in a row
    if reading.uri_column is not None and uris is not None and reading.image_column is None:
        return "table"
    if parquet.found_image_column(file, reading) is not None:
        return "parquet"
    own = stem(uri)
    if "key" in file.names and any(storage.exists(own + end) for end in (*TARS, "")):
        return "metadata"
    if uris is None:
        parquet.image_column(file, reading, f"--input {uri}")  # which says what to do
    return "table"


def _cut(given: Input, reading: Reading, counts: Recognised) -> Iterator[Unit]:
    """Cut one input into units."""
    if is_pattern(given.uri):
        pattern = Pattern(given.uri)
        explicit = any(choice.endswith(TABLES) for choice in pattern.choices)
        endings = len({choice[len(stem(choice)) :] for choice in pattern.choices}) > 1
        cutter = _Cutter(given, reading, counts, pattern.root, explicit, endings)
        return cutter.units(pattern.files())
    explicit = given.uri.endswith(TABLES)
    cutter = _Cutter(given, reading, counts, given.uri.rstrip("/"), explicit)
    return cutter.units(listing.files(given.uri))


def _parsed(inputs: Sequence[str]) -> list[Input]:
    """Return the inputs, each with the prefix of its ids, which no other has."""
    given = [Input.parse(text) for text in inputs]
    if len({(i.source, i.uri) for i in given}) < len(given):
        raise ManifptError("--input: the same input is given twice; give each once")
    if len(given) == 1:
        return given
    names = [storage.base_name(root_of(i.uri) if is_pattern(i.uri) else i.uri) for i in given]
    unnamed = [name for i, name in zip(given, names, strict=True) if i.source is None]
    if len(set(unnamed)) < len(unnamed):
        raise ManifptError("--input: two inputs end in the same name; tell them apart by NAME=URI")
    prefixes = Counter(i.source or name for i, name in zip(given, names, strict=True))
    taken: dict[str, int] = {}
    found = []
    for one, name in zip(given, names, strict=True):
        prefix = one.source or name
        if one.source is not None and prefixes[prefix] > 1:
            prefix = unique(f"{prefix}/{name}", taken)
        found.append(replace(one, prefix=prefix))
    return found


def units(
    inputs: Sequence[str],
    selection: Selection = Selection(),
    *,
    labelled: bool = False,
    source: str | None = None,
    reading: Reading = AS_FOUND,
) -> Iterator[Unit]:
    """Yield the units of work behind ``--input``, in an order that storage does not change.

    It holds no more of the files than a folder's names, or a page of an object store's listing.
    Units that declare a source or split which ``selection`` does not keep are left out unread.
    With ``labelled``, an unnamed folder that holds only folders names one source each. ``source``
    replaces the names that the user gave. What each input was recognised as goes to stderr.
    """
    kept = 0
    for text, one in zip(inputs, _parsed(inputs), strict=True):
        counts = Recognised()
        expanded = None if is_pattern(one.uri) else _from_card(one)
        if expanded is None:
            named = replace(one, source=source) if source and one.source else one
            expanded = _subfolders(named) if labelled and not is_pattern(one.uri) else [named]
        for part in expanded:
            for unit in _cut(part, reading, counts):
                if selection.keeps(unit.source, unit.split):
                    kept += 1
                    yield unit
        if not counts.units:
            missing = not storage.exists(one.uri)
            reason = "no such file or folder" if missing else "holds no files"
            raise ManifptError(f"--input {one.uri}: {reason}; check the path")
        print(f"--input {public(text)}: {counts}", file=sys.stderr, flush=True)
    if not kept:
        raise ManifptError(f"--input: nothing in it is of {selection}; check its {CARD}")


def plan(
    inputs: Sequence[str],
    selection: Selection = Selection(),
    *,
    labelled: bool = False,
    source: str | None = None,
    reading: Reading = AS_FOUND,
) -> list[Unit]:
    """Return all ``units``, checked before the first is read."""
    return list(units(inputs, selection, labelled=labelled, source=source, reading=reading))
