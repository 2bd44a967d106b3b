"""The process that reads Parquet for a reader: ranges of the file in, rows out; see ``parquet``.

    python -m manifpt.images.parquet_reader

It opens no file: it asks its parent for ranges of the one that the parent has open. So an error
here is of the content, and one of the storage is met by the parent. It imports only what reading
needs.
"""

import contextlib
import io
import json
import os
import signal
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifpt.images import child, footer
from manifpt.images.child import PIPE_BYTES
from manifpt.images.text import one_line, text_of

# Bytes of memory: some, and times what the largest row group has in the file, as a page of a good
# file is there compressed, decompressed, and as values.
MEMORY, MEMORY_RATIO = 3 * 2**30, 4
# Processor time for a step, and how many times as much wall time it may take.
SECONDS, WALL = 20, 6
BUFFER = 2**20  # bytes that are read at once where a page has fewer
PIECE_ROWS, PIECE_BYTES = 64, 2**22  # that are sent together
LENGTH = struct.Struct("<Q")
HEAD = struct.Struct("<cQ")  # of a message: its kind, and the length of the JSON that follows
ASK, COLUMNS, ROWS, END, ERROR = b"?", b"=", b"#", b".", b"!"

# The image of a row, and the texts of its other columns.
Row = tuple[pa.Buffer | None, list[str | None]]


class Wire:
    """The pipes to and from the parent."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self.commands, self.answers = commands, answers

    def receive(self) -> bytes:
        """Return what the parent sends next; EOFError if it is gone."""
        head = self.commands.read(LENGTH.size)
        if len(head) < LENGTH.size:
            raise EOFError
        return self.commands.read(*LENGTH.unpack(head))

    def send(self, kind: bytes, value: object = None, images: Sequence[pa.Buffer] = ()) -> None:
        """Send a message, and bytes of images after it."""
        text = json.dumps(value).encode()
        self.answers.write(HEAD.pack(kind, len(text)) + text)
        for image in images:
            self.answers.write(memoryview(image))
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
        """Return ``count`` bytes, fewer at the end, and all that are left if it is negative."""
        left = max(0, self.size - self.at)
        self.wire.send(ASK, [self.at, left if count < 0 else min(count, left)])
        before, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # the storage may take its time
        data = self.wire.receive()
        signal.setitimer(signal.ITIMER_REAL, before)
        self.at += len(data)
        return data


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Let this process end if the block takes too long."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS * WALL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _batches(
    parquet: pq.ParquetFile, columns: Sequence[str], rows: int, start: int, stop: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows from ``start`` to ``stop``, at most ``rows`` of them at a time."""
    at, groups, first = 0, list[int](), start
    for group, count in enumerate(footer.row_group_sizes(parquet)):
        after = at + count
        if at < stop and after > start:
            first = first if groups else at
            groups.append(group)
        at = after
    batches = parquet.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False)
    while first < stop:
        with _bounded():
            batch = next(batches, None)
        if batch is None:
            break
        yield batch.slice(max(0, start - first), max(0, stop - max(first, start)))
        first += batch.num_rows


def _images(column: pa.Array) -> list[pa.Buffer | None]:
    while pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return [value.as_buffer() if value.is_valid else None for value in column]


def _texts(column: pa.Array, *, strings: bool) -> list[str | None]:
    """Return values as text; with ``strings``, those that are no strings as None."""
    try:
        values = column.to_pylist()
    except MemoryError:
        raise
    except Exception:  # one value that Python has not, or that is no UTF-8
        values = [_value(cell) for cell in column]
    return [text_of(v) if isinstance(v, str) or not strings else None for v in values]


def _value(cell: pa.Scalar) -> object:
    """Return a value, or how Arrow writes it where Python has none, or None."""
    with contextlib.suppress(Exception):
        return cell.as_py()
    with contextlib.suppress(Exception):
        return cell.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")
    with contextlib.suppress(Exception):
        return cell.cast(pa.string()).as_py()
    return None


def parquet_rows(parquet: pq.ParquetFile, wanted: dict[str, Any]) -> Iterator[Row]:
    """Yield some rows of a file: an ``image`` column, if any, and ``texts`` of others.

    Those of ``strings`` are texts only where they are strings already. ``one`` asks for the least
    memory instead of speed.
    """
    image, names = wanted["image"], wanted["texts"]
    paths = list(names)
    if image is not None:
        kind = parquet.schema_arrow.field(image).type
        paths.append(".".join([image, *(footer.bytes_path(kind) or [])]))
    count = 1 if wanted["one"] else footer.batch_rows(parquet, paths)
    for batch in _batches(parquet, paths, count, wanted["start"], wanted["stop"]):
        with _bounded():
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            texts = [_texts(columns[n], strings=n in wanted["strings"]) for n in names]
            images = [None] * len(batch) if image is None else _images(columns[image])
        for number, data in enumerate(images):
            yield data, [column[number] for column in texts]


def _send_rows(wire: Wire, found: Iterator[Row], most: int) -> None:
    """Send rows by pieces; those before an error, too."""
    piece, size = list[Row](), 0
    try:
        for data, texts in found:
            piece.append((data, texts))
            size += sum(len(text or "") for text in texts) + (0 if data is None else len(data))
            if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
                _send(wire, piece, most)
                piece, size = [], 0
    finally:
        if piece:
            _send(wire, piece, most)


def _send(wire: Wire, piece: Sequence[Row], most: int) -> None:
    """Send the sizes of some rows' images, and texts, and the images of at most ``most`` bytes."""
    sizes = [None if data is None else len(data) for data, _ in piece]
    images = [data for data, _ in piece if data is not None and len(data) <= most]
    wire.send(ROWS, [sizes, [texts for _, texts in piece]], images)


def _opened(wire: Wire, size: int) -> pq.ParquetFile:
    """Open a file of ``size`` bytes, say what it holds, and allow memory by what it has."""
    child.limit_memory(MEMORY)
    with _bounded():
        parquet = pq.ParquetFile(Ranges(wire, size), buffer_size=BUFFER, pre_buffer=False)
        found = footer.footer_facts(parquet, size)
        child.limit_memory(MEMORY + MEMORY_RATIO * min(size, footer.largest_group(parquet)))
    wire.send(COLUMNS, found)
    return parquet


def serve(wire: Wire) -> None:
    """Open files, and send their rows, as the parent asks for it, until it is gone."""
    parquet: pq.ParquetFile | None = None
    while True:
        command = json.loads(wire.receive())
        try:
            if "size" in command:
                parquet = _opened(wire, command["size"])
            elif parquet is not None:
                _send_rows(wire, parquet_rows(parquet, command), command["most"])
                wire.send(END)
        except EOFError:
            raise
        except MemoryError:
            os._exit(child.OUT_OF_MEMORY)  # whether of this file alone, a new process will show
        except Exception as error:  # of Arrow many kinds
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
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone
        serve(Wire(commands, answers))
    os._exit(0)


if __name__ == "__main__":
    main()
