"""Read Parquet files in a child process, so that a file with false sizes costs only itself.

Pages, dictionaries and footers of a few bytes can grow to gigabytes in Arrow's C++, which has no
limit. So a child process (``parquet_reader``) with a limit on memory and time parses the file. This
process sends it the file, range by range, because only this process has access to the storage and
its credentials. Errors that the child reports are faults of the content and raise ParquetError;
errors of the storage are raised here unchanged.

If a child dies, a new one continues row by row, which needs the least memory. If that one dies,
too, the file can't be read.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from manifpt.errors import ManifptError
from manifpt.images import child, container
from manifpt.images.child import PIPE_BYTES
from manifpt.images.container import BrokenError
from manifpt.images.parquet_reader import (
    ASK,
    END,
    ERROR,
    HEAD,
    LENGTH,
    ROWS,
    SECONDS,
)
from manifpt.images.sources import Reading

COMMAND = (sys.executable, "-P", "-m", "manifpt.images.parquet_reader")
IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "image_data", "jpg", "jpeg", "png", "webp", "img")
_MOST_MESSAGE = 2**30


class ParquetError(BrokenError):
    """A Parquet file, or the rest of it, can't be read because of its content."""


class _DeadError(Exception):
    """The child has ended."""


class ParquetRow(NamedTuple):
    """A row: its image, or in ``refused`` the size of one that is too large, and other columns."""

    data: bytes | None
    refused: int
    texts: dict[str, str | None]


class _Child:
    """The child process that parses, seen from its parent."""

    def __init__(self) -> None:
        self.process = child.started(COMMAND)
        assert self.process.stdin
        assert self.process.stdout
        self.commands = self.process.stdin
        self.answers: IO[bytes] = os.fdopen(os.dup(self.process.stdout.fileno()), "rb", PIPE_BYTES)
        self.busy = False
        if self.answers.read(1) != child.READY:
            reason = child.last_line(self.process)
            self.close()
            raise ManifptError(
                f"the process that reads Parquet did not start ({reason}); "
                "check the Python environment of the nodes"
            )

    def command(self, **fields: object) -> None:
        """Send it a command; ``answer`` returns the result."""
        self.busy = True
        text = json.dumps(fields).encode()
        self._send(LENGTH.pack(len(text)) + text)

    def _send(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self.commands.write(left) :]
        except BrokenPipeError:
            raise _DeadError from None

    def read(self, count: int) -> bytes:
        """Return the next bytes that it sends."""
        data = self.answers.read(count)
        if len(data) < count:
            raise _DeadError
        return data

    def answer(self, file: IO[bytes]) -> tuple[bytes, Any]:
        """Return kind and value of its next message; serve its requests for the file until then."""
        while True:
            kind, length = HEAD.unpack(self.read(HEAD.size))
            if length > _MOST_MESSAGE:
                raise _DeadError
            value = json.loads(self.read(length))
            if kind != ASK:
                self.busy = kind == ROWS
                if kind == ERROR:
                    raise ParquetError(value)
                return kind, value
            self._hand(file, *value)

    def _hand(self, file: IO[bytes], start: int, count: int) -> None:
        """Send it a range of the file, in pieces that fit into memory."""
        file.seek(start)
        self._send(LENGTH.pack(count))
        while count:
            data = file.read(min(count, PIPE_BYTES))
            if not data:
                raise ParquetError("the file ends before its size; it was changed")
            self._send(data)
            count -= len(data)

    def cause(self) -> str:
        """Return the cause of its death, in words."""
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "what its reader says makes no sense"
        if code in {-signal.SIGPROF, -signal.SIGALRM}:
            return f"a step of reading it takes more than {SECONDS} s"
        if code == child.OUT_OF_MEMORY:
            return "reading it takes more memory than the limit; write smaller row groups"
        return f"its reader died by signal {-code}" if code < 0 else f"its reader left with {code}"

    def close(self) -> None:
        """End it; kill it if it is at work."""
        if self.busy:
            self.process.kill()
        self.answers.close()
        child.end(self.process)


_idle: list[_Child] = []  # at most one child, which serves the next file


def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


atexit.register(_close_idle)
os.register_at_fork(after_in_child=_idle.clear)  # a fork must not use these pipes


class Parquet:
    """An open file: ``names`` of all columns and of ``binary`` ones, and the ``count`` of rows.

    ``labels`` are the classes' names of each column of class labels.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._child = _idle.pop() if _idle else _Child()
        try:
            facts = self._open()
        except BaseException:
            self.close()
            raise
        self.names: list[str] = facts["names"]
        self.binary: list[str] = facts["binary"]
        self.labels: dict[str, list[str]] = facts["labels"]
        self.count: int = facts["rows"]

    def _open(self) -> Any:
        """Let the child open the file and return its facts; try a new child if that one dies."""
        for _ in range(2):
            try:
                self._child.command(size=self._file.seek(0, os.SEEK_END))
                return self._child.answer(self._file)[1]
            except _DeadError as error:
                cause = self._cause(error)
        raise ParquetError(cause)

    def _cause(self, error: Exception) -> str:
        """Return an error in words, or the cause of the child's death; replace a dead child."""
        if not self._child.busy:
            return str(error)
        cause = str(error) or self._child.cause()
        self._child.close()
        self._child = _Child()
        return cause

    def rows(
        self,
        texts: Sequence[str],
        *,
        strings: Sequence[str] = (),
        image: str | None = None,
        most: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[ParquetRow]:
        """Yield the rows from ``start`` to ``stop``.

        Each row has the columns ``texts``, and its image from the column ``image``, if that has at
        most ``most`` bytes. A value that is no string becomes JSON, or None in the columns
        ``strings``. Raises ParquetError if the rest can't be read.
        """
        stop = self.count if stop is None else stop
        fields = {"texts": texts, "strings": strings, "image": image, "most": most, "stop": stop}
        for one in (False, True):  # then row by row, to get all rows before the faulty one
            try:
                for row in self._rows(**fields, start=start, one=one):
                    start += 1
                    yield row
                break
            except (ParquetError, _DeadError) as error:
                cause = self._cause(error)
                if one:
                    raise ParquetError(cause) from None
                self._open()
        if start < stop:
            raise ParquetError(f"it ends before row {start}")

    def _rows(self, **fields: Any) -> Iterator[ParquetRow]:
        """Yield the rows that the child sends; raise _DeadError if it dies."""
        self._child.command(**fields)
        while True:
            kind, value = self._child.answer(self._file)
            if kind == END:
                return
            for size, texts in zip(*value, strict=True):
                named = dict(zip(fields["texts"], texts, strict=True))
                if size is not None and size > fields["most"]:
                    yield ParquetRow(None, size, named)
                else:
                    yield ParquetRow(None if size is None else self._child.read(size), 0, named)

    def close(self) -> None:
        """Keep the child for the next file, or end it if it is at work."""
        _close_idle()
        if self._child.busy:
            self._child.close()
        else:
            _idle.append(self._child)


@contextlib.contextmanager
def opened(uri: str) -> Iterator[Parquet]:
    """Open a file; raises BrokenError if it can't be read, ManifptError if the storage fails."""
    with container.opened_container(uri) as file, contextlib.closing(Parquet(file)) as found:
        yield found


def image_column(parquet: Parquet, reading: Reading, uri: str) -> str:
    """Find the column of image bytes, plain or Hugging Face's struct; raise if there is none."""
    name = found_image_column(parquet, reading)
    if name is None:
        shown = ", ".join(parquet.names)[:200]
        raise ManifptError(
            f"{uri}: no column of image bytes among {shown}; name it by --image-column, or one of "
            "URIs by --uri-column"
        )
    return name


def found_image_column(parquet: Parquet, reading: Reading) -> str | None:
    """Return the image column: the given one, one of a usual name, or the only binary one."""
    binary = parquet.binary
    if reading.image_column is not None:
        return reading.image_column if reading.image_column in binary else None
    usual = next((name for name in IMAGE_COLUMNS if name in binary), None)
    return binary[0] if usual is None and len(binary) == 1 else usual
