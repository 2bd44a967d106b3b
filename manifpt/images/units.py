"""Inputs -> units of work: the kind of each file, one after the other, always in one order."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from manifpt import storage
from manifpt.errors import ManifptError, public
from manifpt.images import arrangement, labels, listing, parquet, uri_tables
from manifpt.images.card_files import benchmark_files
from manifpt.images.container import BrokenError
from manifpt.images.ids import Keys, Names, escaped
from manifpt.images.labels import LabelRequest
from manifpt.images.listing import Found
from manifpt.images.patterns import Pattern, is_pattern, root_of
from manifpt.images.recognised import Recognised, counted
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
from manifpt.images.uri_tables import ranges, uri_column

FILES_PER_UNIT = 1024
STATS = "_stats.json"


@dataclass
class _Cutter:
    """Cuts the files of one input into units, in the order in which they come."""

    given: Input
    asked: LabelRequest
    counts: Recognised
    names: Names
    root: str  # the folder in which the names of files begin
    explicit: bool  # the user named tables: a text is one, and not a file like others
    endings: bool = False  # containers may differ by the ends of their names alone
    loose: list[tuple[Found, str]] = field(default_factory=list)

    def units(self, found: Iterator[Found]) -> Iterator[Unit]:
        """Yield the units of some files."""
        for file in found:
            yield from self._unit(file)
            if len(self.loose) == FILES_PER_UNIT:
                yield self._files()
        if self.loose:
            yield self._files()

    def _unit(self, file: Found) -> Iterator[Unit]:
        if self.asked.labelled or self.asked.reals_only:
            root = self.root if is_pattern(self.given.uri) else self.given.uri
            arrangement.check_known(self.given, file.uri, file.uri[len(root) + 1 :])
        if not file.plain:
            self._keep(file)
        elif file.uri.endswith(TARS):
            yield self._made(self._container("tar", file))
        elif file.uri.endswith(PARQUET):
            yield from self._parquet(file)
        elif file.uri.endswith(TABLES) and self.explicit:
            yield from self._table(file)
        elif file.uri.endswith(STATS) and self.names.is_stem(
            self._path(file.uri).removesuffix(STATS)
        ):
            self.counts.skipped["metadata"] += 1
        else:
            self._keep(file)

    def _keep(self, file: Found) -> None:
        self.loose.append((file, self.names.file(self._path(file.uri))))

    def _parquet(self, file: Found) -> Iterator[Unit]:
        kind, found = _parquet_kind(file.uri, self.asked.reading)
        if kind == "metadata":
            self.counts.skipped["metadata"] += 1
            return
        columns = self._columns(file.uri, found.names, found.labels) if found else None
        if kind == "parquet":
            yield self._made(self._container("parquet", file), columns)
        else:
            yield from self._table(file, columns)

    def _columns(
        self, uri: str, names: Sequence[str], of_classes: Mapping[str, Sequence[str]]
    ) -> labels.Columns:
        """Return the columns of sources of a file's rows; count the recognised layouts."""
        found = self.asked.columns(uri, names, of_classes, self.given.source)
        if found.why:
            self.counts.layouts[found.why] = None
        return found

    def _table(self, file: Found, columns: labels.Columns | None = None) -> Iterator[Unit]:
        whole = self._container("table", file)
        part, reading = None, self.asked.reading
        if columns is None and (reading.source_column or reading.split_column):
            columns = self._columns(file.uri, _text_columns(file.uri, reading), {})
        for part in ranges(file.uri, file.bytes, reading):
            unit = replace(whole, bytes=part.bytes, rows=part.rows, offset=part.offset)
            yield self._made(unit, columns)
        if part is None:
            self.counts.skipped["empty_table"] += 1

    def _container(self, kind: Literal["tar", "parquet", "table"], file: Found) -> Unit:
        """Return the unit of a container; its ids begin with its stem, if no other's do."""
        prefix = self.names.container(self._path(file.uri), whole=self.endings)
        split = self.given.split
        if split is None and self.asked.labelled and file.uri.endswith(PARQUET):
            split = labels.split_of_shard(file.uri)
        return Unit(kind, (file.uri,), (prefix,), self.given.source, split, file.bytes)

    def _path(self, uri: str) -> str:
        return uri[len(self.root) + 1 :] or storage.base_name(uri)

    def _files(self) -> Unit:
        files, names = zip(*self.loose, strict=True)
        self.loose = []
        uris, size = tuple(file.uri for file in files), sum(file.bytes for file in files)
        return self._made(Unit("files", uris, names, self.given.source, self.given.split, size))

    def _made(self, unit: Unit, columns: labels.Columns | None = None) -> Unit:
        reading = self.asked.reading
        alone = self.asked.reals_only and unit.kind == "tar" and bool(reading.source_column)
        columns = columns or labels.Columns(reading, alone)
        source = None if columns.alone else unit.source
        unit = replace(unit, reading=columns.reading, source=source)
        self.counts.add(unit)
        return unit


def _text_columns(uri: str, reading: Reading) -> Sequence[str]:
    """Return the columns of a text; the wanted ones if it can't be read, or has no header."""
    wanted = [name for name in (reading.source_column, reading.split_column) if name]
    try:
        names = uri_tables.names_of(uri, "")
    except BrokenError:
        return wanted
    return wanted if names in ([], [""]) else names


def _parquet_kind(uri: str, reading: Reading) -> tuple[str, parquet.Parquet | None]:
    """Return the kind of a Parquet file: ``parquet`` of images, ``table`` of URIs, ``metadata``.

    It comes with the columns of the file, unless that can't be read. Metadata describes the images
    in a tar or folder of the same name, as img2dataset writes it.
    """
    try:
        with parquet.opened(uri) as file:
            uris = uri_column(file.names, reading)
    except BrokenError:
        return "parquet", None  # its reader reports the error in a row
    if reading.uri_column is not None and uris is not None and reading.image_column is None:
        return "table", file
    if parquet.found_image_column(file, reading) is not None:
        return "parquet", file
    own = stem(uri)
    if "key" in file.names and any(storage.exists(own + end) for end in (*TARS, "")):
        return "metadata", file
    if uris is None:
        parquet.image_column(file, reading, f"--input {uri}")  # its message has the remedy
    return "table", file


def _of_pattern(given: Input, asked: LabelRequest, counts: Recognised) -> Iterator[Unit]:
    """Cut the files that a pattern names into units."""
    pattern = Pattern(given.uri)
    explicit = any(choice.endswith(TABLES) for choice in pattern.choices)
    endings = len({choice[len(stem(choice)) :] for choice in pattern.choices}) > 1
    names = Names(given.prefix, anyhow=len(pattern.choices) > 1)
    cutter = _Cutter(given, asked, counts, names, pattern.root, explicit, endings)
    return cutter.units(pattern.files(counts.listing))


def _of_parts(
    given: Input, parts: Sequence[Input], asked: LabelRequest, counts: Recognised, *, of_card: bool
) -> Iterator[Unit]:
    """Cut an input into units, part by part; a file that a card lists always has one."""
    names = Names(given.prefix, anyhow=of_card)
    for part in parts:
        explicit = part.uri.endswith(TABLES)
        cutter = _Cutter(part, asked, counts, names, given.uri.rstrip("/"), explicit)
        found = listing.files(part.uri, counts.listing)
        yield from cutter.units(_or_itself(found, part.uri) if of_card else found)


def _or_itself(found: Iterator[Found], uri: str) -> Iterator[Found]:
    yield next(found, Found(uri, 0))
    yield from found


def _cut(given: Input, asked: LabelRequest, counts: Recognised) -> Iterator[Unit]:
    """Cut one input into units."""
    named = asked.named(given)
    if is_pattern(given.uri):
        return _of_pattern(named, asked, counts)
    of_card = benchmark_files(given)
    arranged = None if of_card else asked.arranged(named)
    if arranged:
        counts.layouts[str(arranged)] = None
        counts.skipped.update(arranged.skipped)
    parts = of_card or (arranged.parts if arranged else [named])
    return _of_parts(named, parts, asked, counts, of_card=bool(of_card))


def _parsed(inputs: Sequence[str]) -> list[Input]:
    """Return the inputs, each with a unique prefix of its ids."""
    given = [Input.parse(text) for text in inputs]
    if len({(i.source, i.uri) for i in given}) < len(given):
        raise ManifptError("--input: the same input is given twice; give each once")
    if len(given) == 1:
        return given
    names = [storage.base_name(root_of(i.uri) if is_pattern(i.uri) else i.uri) for i in given]
    unnamed = [name for i, name in zip(given, names, strict=True) if i.source is None]
    if len(set(unnamed)) < len(unnamed):
        raise ManifptError("--input: two inputs end in the same name; tell them apart by NAME=URI")
    sources = Counter(i.source for i in given if i.source is not None)
    keys = {source: Keys(source + "~" * (source in unnamed)) for source in sources}
    found = []
    for one, name in zip(given, names, strict=True):
        if one.source is None:
            prefix = escaped(name) or "~"
        elif sources[one.source] == 1 and one.source not in unnamed:
            prefix = one.source
        else:
            prefix = keys[one.source].id(name)
        found.append(replace(one, prefix=prefix))
    return found


def units(
    inputs: Sequence[str],
    selection: Selection = Selection(),
    *,
    labelled: bool = False,
    source: str | None = None,
    reading: Reading = AS_FOUND,
    skipped: Counter[str] | None = None,
    quiet: bool = False,
) -> Iterator[Unit]:
    """Yield the units of work behind ``--input``, in an order that storage does not change.

    Its memory holds only a folder's names, or a page of an object store's listing. Units that
    declare a source or split which ``selection`` does not keep are left out unread. With
    ``labelled``, folders and columns name sources as ``arrangement`` and ``labels`` say. ``source``
    replaces the names that the user gave; if it is ``real``, folders and rows that are known to be
    generated are left out. The summary of each input goes to stderr, unless ``quiet``; items left
    out are counted in ``skipped`` by reason.
    """
    kept, rows, asked = 0, 0, LabelRequest(reading, labelled, source)
    for text, one in zip(inputs, _parsed(inputs), strict=True):
        counts = Recognised()
        for unit in _cut(one, asked, counts):
            if selection.keeps(unit.source, unit.split):
                kept += 1
                yield unit
        rows += counts.tars + counts.parquet + counts.tables
        if skipped is not None:
            skipped.update(counts.skipped)
        if not counts.units:
            raise ManifptError(f"--input {one.uri}: {_nothing(one.uri, counts)}; check the path")
        if not quiet:
            print(f"--input {public(text)}: {counts}", file=sys.stderr, flush=True)
    if not rows and (reading.source_column or reading.split_column):
        option = "source" if reading.source_column else "split"
        raise ManifptError(f"--{option}-column: no file of --input has columns; leave it out")
    if not kept:
        raise ManifptError(f"--input: nothing in it is of {selection}; check its {CARD}")


def _nothing(uri: str, counts: Recognised) -> str:
    """Return the reason why an input has no units."""
    if counts.skipped:
        return f"holds nothing to read ({counted([(n, w) for w, n in counts.skipped.items()])})"
    return "holds no files" if storage.exists(uri) else "no such file or folder"


def plan(
    inputs: Sequence[str],
    selection: Selection = Selection(),
    *,
    labelled: bool = False,
    source: str | None = None,
    reading: Reading = AS_FOUND,
    quiet: bool = False,
) -> list[Unit]:
    """Return all ``units``, checked before the first is read."""
    return list(
        units(inputs, selection, labelled=labelled, source=source, reading=reading, quiet=quiet)
    )
