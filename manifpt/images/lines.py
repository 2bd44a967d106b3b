"""Read the records of CSV, TSV and JSON lines; a broken record costs at most its own line.

A quoted field of CSV may continue over several lines only if the record is well-formed: it has as
many fields as the header, its last quote stands before a comma or a line end, and no line between
its first and its last could be a row by itself. Otherwise the quote is a fault of its line, and the
next line is read as a new record.
"""

import csv
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from manifpt.images.text import text_of

MOST_LINE = 2**20
JSON_LINES = (".jsonl", ".ndjson")
# A path or URI; a line that holds one may be a row, and not part of a text.
_ENTRY = re.compile(
    r"\S*/\S*|\S*\.\w{2,5}|.*\.(png|jpe?g|webp|gif|bmp|tiff?|avif|hei[cf])", re.IGNORECASE
)


class Record(NamedTuple):
    """The fields of a record, or its JSON object, its end, and its ``fault``, if it has one.

    A record with a fault holds only the fields that the fault does not affect. Lists and objects
    within a JSON object are text; ``nested`` names these fields.
    """

    fields: list[str] | dict[str, object]
    end: int
    fault: str = ""
    nested: Sequence[str] = ()


class _Line(NamedTuple):
    text: str
    end: int
    fault: str = ""


class TableShape(NamedTuple):
    """The number of fields of a table's records, and the index of the field with the URI."""

    fields: int
    uri: int

    def is_row(self, fields: list[str]) -> bool:
        """Tell whether a line's fields look like a row, and not like part of a longer text."""
        whole = len(fields) == self.fields
        return whole and _ENTRY.fullmatch(fields[self.uri].strip()) is not None


def records(
    name: str, file: BinaryIO, offset: int, shape: TableShape | None = None
) -> Iterator[Record]:
    """Yield each record of a table from byte ``offset`` on; empty lines are skipped.

    The ending of ``name`` tells the format. ``shape`` serves to tell stray quotes from fields of
    several lines (see the top of this file); only a header is read without it.
    """
    lines = _lines(file, offset)
    if name.endswith(JSON_LINES):
        yield from map(_object, filter(_is_written, lines))
    elif name.endswith(".tsv"):
        # Tabs can't be quoted in TSV, so a quotation mark there is a letter like any other.
        parser = _Parser(delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from (r for r in map(parser.record, lines) if r.fields or r.fault)
    else:
        yield from (r for r in _quoted(_Ahead(lines), shape) if r.fields or r.fault)


class Span(NamedTuple):
    """Some records: the number of the first and of the one after the last, their place and size."""

    start: int
    stop: int
    offset: int
    bytes: int


def spans(found: Iterable[Record], offset: int, size: int, length: int) -> Iterator[Span]:
    """Yield a Span for each ``length`` records from byte ``offset`` to byte ``size``."""
    start = stop = 0
    for stop, record in enumerate(found, start=1):
        if stop - start == length:
            yield Span(start, stop, offset, record.end - offset)
            start, offset = stop, record.end
    if stop > start:
        yield Span(start, stop, offset, size - offset)


def _lines(file: BinaryIO, offset: int) -> Iterator[_Line]:
    file.seek(offset)
    end = offset
    while data := file.readline(MOST_LINE + 1):
        end += len(data)
        if len(data) <= MOST_LINE:
            yield _Line(data.decode("utf-8", "replace"), end)
            continue
        while not data.endswith(b"\n") and (data := file.readline(MOST_LINE)):
            end += len(data)
        yield _Line("", end, f"the line has more than {MOST_LINE} bytes")


def _is_written(line: _Line) -> bool:
    return bool(line.fault or line.text.strip())


def _object(line: _Line) -> Record:
    if line.fault:
        return Record({}, line.end, line.fault)
    try:
        value = json.loads(line.text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return Record({}, line.end, f"the line is not JSON: {error}"[:200])
    if not isinstance(value, dict):
        return Record({}, line.end, "the line is no JSON object")
    nested = [name for name, field in value.items() if isinstance(field, list | dict)]
    return Record(value | {name: text_of(value[name]) for name in nested}, line.end, "", nested)


class _Parser:
    """Parses lines one by one, with the reader of the csv module."""

    def __init__(self, **dialect: Any) -> None:
        self._reader = csv.reader(self, **dialect)
        self._text = ""
        self.ended = True  # whether the latest line does not end within a quoted field

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Give the line to the reader; it asks for another if a quoted field has not ended."""
        if not self._text:
            self.ended = False
            raise StopIteration
        text, self._text = self._text, ""
        return text

    def record(self, line: _Line) -> Record:
        """Parse one line as a record."""
        self._text, self.ended = line.text, True
        if line.fault:
            return Record([], line.end, line.fault)
        try:
            fields = next(self._reader)
        except csv.Error as error:
            return Record([], line.end, f"the line is broken: {error}")
        if self.ended:
            return Record(fields, line.end)
        return Record(fields[:-1], line.end, "a quoted field does not end on its line")


class _Ahead:
    """An iterator of lines that takes lines back."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self._given_back: deque[_Line] = deque()

    def __iter__(self) -> Iterator[_Line]:
        return self

    def __next__(self) -> _Line:
        return self._given_back.popleft() if self._given_back else next(self._lines)

    def give_back(self, lines: list[_Line]) -> None:
        self._given_back.extendleft(reversed(lines))


def _quoted(lines: _Ahead, shape: TableShape | None) -> Iterator[Record]:
    parser = _Parser()
    for line in lines:
        record = parser.record(line)
        # In a well-formed record of several lines, the first and the last line have an odd number
        # of quotes, and the others an even one, so no line is read more than twice.
        if not parser.ended and _is_odd(line):
            yield _joined(line, lines, shape) or record
        else:
            yield record


def _is_odd(line: _Line) -> bool:
    return line.text.count('"') % 2 == 1


def _joined(first: _Line, lines: _Ahead, shape: TableShape | None) -> Record | None:
    """Return the well-formed record of several lines that begins with ``first``, or None."""
    more: list[_Line] = []
    size = len(first.text)
    for line in lines:
        more.append(line)
        size += len(line.text)
        if line.fault or size > MOST_LINE or _is_odd(line):
            break
    if more and size <= MOST_LINE and _is_odd(more[-1]):
        fields = _well_formed([first, *more])
        if fields is not None and (shape is None or _is_one(fields, more[:-1], shape)):
            return Record(fields, more[-1].end)
    lines.give_back(more)
    return None


def _well_formed(lines: list[_Line]) -> list[str] | None:
    try:
        found = list(csv.reader([line.text for line in lines], strict=True))
    except csv.Error:
        return None
    return found[0] if len(found) == 1 else None


def _is_one(fields: list[str], between: list[_Line], shape: TableShape) -> bool:
    """Tell whether several lines are one record, and not rows between two stray quotes."""
    found = (next(csv.reader([line.text])) for line in between)
    return len(fields) == shape.fields and not any(map(shape.is_row, found))
