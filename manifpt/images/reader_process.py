"""The child process that parses containers: ranges of a file in, rows out; see ``reader``.

    python -m manifpt.images.reader_process

It opens no file: it asks its parent for ranges of the one that the parent has open. Therefore an
error here is of the content, and the parent meets errors of the storage. It imports only the
modules that reading needs.
"""

import contextlib
import io
import json
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from manifpt.images import child, footer, lines, tars
from manifpt.images.child import PIPE_BYTES
from manifpt.images.parquet_rows import parquet_rows
from manifpt.images.text import one_line

# Bytes of memory: a constant, and for Parquet a multiple of the largest row group in the file,
# since a page of a good file is in memory compressed, decompressed, and as values.
MEMORY, MEMORY_RATIO = 3 * 2**30, 4
# Processor time for a step, and its wall time as a multiple of that. A step ends with each row, and
# with each range of the file.
SECONDS, WALL = 20, 6
BUFFER = 2**20  # bytes that are read at once where less is needed
PIECE_ROWS, PIECE_BYTES = 64, 2**22  # that are sent together
LENGTH = struct.Struct("<Q")
HEAD = struct.Struct("<cQ")  # head of a message: its kind, and the length of the JSON that follows
ASK, OPENED, ROWS, END, ERROR = b"?", b"=", b"#", b".", b"!"

# The bytes of a row, if it has any, and the rest of it, as JSON can say it.
Row = tuple["pa.Buffer | bytes | None", Any]


class GoneError(Exception):
    """The parent has ended."""


class Wire:
    """The pipes to and from the parent."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.commands, self.answers = commands, answers

    def receive(self) -> bytes:
        """Return the parent's next bytes; raise GoneError if it is gone."""
        head = self.commands.read(LENGTH.size)
        if len(head) < LENGTH.size:
            raise GoneError
        return self.commands.read(*LENGTH.unpack(head))

    def send(self, kind: bytes, value: object = None) -> None:
        """Send a message."""
        self.send_text(kind, json.dumps(value))

    def send_text(self, kind: bytes, text: str, contents: Sequence[pa.Buffer | bytes] = ()) -> None:
        """Send a message that is JSON already, and the bytes of rows after it."""
        data = text.encode()
        self.answers.write(HEAD.pack(kind, len(data)) + data)
        for content in contents:
            self.answers.write(memoryview(content))
        self.answers.flush()


class Ranges(io.RawIOBase):
    """A file of ``size`` bytes that the parent has open."""

    def __init__(self, wire: Wire, size: int) -> None:
        super().__init__()
        self.wire, self.size, self.at = wire, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, which may lie behind the end, and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        self.at = start + offset
        return self.at

    def read(self, count: int = -1) -> bytes:
        """Return ``count`` bytes, fewer at the end, and all the rest if it is negative."""
        left = max(0, self.size - self.at)
        count = left if count < 0 else min(count, left)
        if not count:
            return b""
        self.wire.send(ASK, [self.at, count])
        _set_timers(0)  # the storage may take its time
        data = self.wire.receive()
        _set_timers(SECONDS)
        self.at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer up to the end of the file; return the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _set_timers(seconds: float) -> None:
    """Let this process end if the next step takes longer than ``seconds``; 0 is no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WALL)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Let this process end if a step in the block takes too long."""
    _set_timers(SECONDS)
    try:
        yield
    finally:
        _set_timers(0)


class ReadCommand(NamedTuple):
    """A request for rows of the open file, from ``skip`` on.

    ``one`` asks for each row by itself, so that none is lost if the next one ends this process.
    ``options`` are those of the kind of file.
    """

    skip: int
    one: bool
    most: int
    options: dict[str, Any]


class _Parquet:
    """An open Parquet file."""

    def __init__(self, wire: Wire, size: int) -> None:
        self.file = pq.ParquetFile(Ranges(wire, size), buffer_size=BUFFER, pre_buffer=False)
        self.facts = footer.footer_facts(self.file, size)
        group = min(size, footer.largest_group(self.file))
        child.limit_memory(MEMORY + MEMORY_RATIO * group)

    def rows(self, wanted: ReadCommand) -> Iterator[Row]:
        """Yield the image and the texts of each row."""
        start, stop = wanted.options.pop("rows")
        rows = (start + wanted.skip, stop)
        return parquet_rows(self.file, **wanted.options, rows=rows, one=wanted.one)


class _Tar:
    """An open tar."""

    facts = None

    def __init__(self, wire: Wire, size: int) -> None:
        self.file = io.BufferedReader(Ranges(wire, size), BUFFER)

    def rows(self, wanted: ReadCommand) -> Iterator[Row]:
        """Yield the content of each member; then its name, and the code and text of its error."""
        self.file.seek(0)
        for number, member in enumerate(tars.members(self.file, wanted.most)):
            if number >= wanted.skip:
                yield member.data, [member.name, member.error, member.message]


class _Text:
    """An open text of records."""

    facts = None

    def __init__(self, wire: Wire, size: int) -> None:
        self.size, self.file = size, io.BufferedReader(Ranges(wire, size), BUFFER)

    def rows(self, wanted: ReadCommand) -> Iterator[Row]:
        """Yield records, or, if ``span`` is given, a Span for each ``span`` of them."""
        name, offset, shape, span, count = (
            wanted.options[key] for key in ("name", "offset", "shape", "span", "count")
        )
        shape = shape and lines.TableShape(*shape)
        found: Iterator[tuple[Any, ...]] = lines.records(name, self.file, offset, shape)
        if span is not None:
            found = lines.spans(cast("Iterator[lines.Record]", found), offset, self.size, span)
        for number, row in enumerate(found):
            if number >= wanted.skip:
                yield None, row
            if count is not None and number + 1 >= count:
                return


KINDS: dict[str, Callable[[Wire, int], _Parquet | _Tar | _Text]] = {
    "parquet": _Parquet,
    "tar": _Tar,
    "text": _Text,
}


def _send_rows(wire: Wire, found: Iterator[Row], wanted: ReadCommand) -> None:
    """Send rows in pieces, including those before an error."""
    piece, size = list[tuple[pa.Buffer | bytes | None, str]](), 0
    try:
        while True:
            with _bounded():
                row = next(found, None)
                if row is None:
                    break
                text = json.dumps(row[1])
            piece.append((row[0], text))
            size += len(text) + (0 if row[0] is None else len(row[0]))
            if wanted.one or len(piece) == PIECE_ROWS or size > PIECE_BYTES:
                _send(wire, piece, wanted.most)
                piece, size = [], 0
    finally:
        if piece:
            _send(wire, piece, wanted.most)


def _send(wire: Wire, piece: Sequence[tuple[pa.Buffer | bytes | None, str]], most: int) -> None:
    """Send the sizes of some rows' contents, the rest, and contents of at most ``most`` bytes."""
    sizes = [None if data is None else len(data) for data, _ in piece]
    contents = [data for data, _ in piece if data is not None and len(data) <= most]
    rest = ",".join(text for _, text in piece)
    wire.send_text(ROWS, f"[{json.dumps(sizes)},[{rest}]]", contents)


def serve(wire: Wire) -> None:
    """Open files, and send their rows, as the parent asks for it, until it is gone."""
    opened: _Parquet | _Tar | _Text | None = None
    while True:
        command = json.loads(wire.receive())
        try:
            if "open" in command:
                child.limit_memory(MEMORY)
                with _bounded():
                    opened = KINDS[command["open"]](wire, command["size"])
                wire.send(OPENED, opened.facts)
            elif opened is not None:
                wanted = ReadCommand(**command)
                _send_rows(wire, opened.rows(wanted), wanted)
                wire.send(END)
        except GoneError:
            raise
        except MemoryError:
            os._exit(child.OUT_OF_MEMORY)  # a new process shows whether the file is the cause
        except Exception as error:  # Arrow raises many kinds
            wire.send(ERROR, one_line(error))


def main() -> None:
    """Run as the process: commands in, answers out."""
    for name in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGALRM})
    commands, answers = os.fdopen(0, "rb", PIPE_BYTES), os.fdopen(os.dup(1), "wb", PIPE_BYTES)
    child.silence()
    pa.set_memory_pool(pa.system_memory_pool())  # others reserve more than they need
    answers.write(child.READY)
    answers.flush()
    with contextlib.suppress(GoneError, BrokenPipeError):
        serve(Wire(commands, answers))
    os._exit(0)


if __name__ == "__main__":
    main()
