"""Containers read in a child process, so that a hostile file costs only its own rows.

A few bytes of a container can become gigabytes, or keep its parser busy forever. Therefore a child
process (``reader_process``) with a limit on memory and time parses the file. This process sends it
the file, range by range, because only this process has access to the storage and its credentials.
Errors that the child reports are faults of the content and raise BrokenError; errors of the storage
are raised here unchanged.

If a child dies, a new one continues row by row, which needs the least memory. If that one dies,
too, the rest of the file can't be read.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple

from manifpt.errors import ManifptError
from manifpt.images import child, container
from manifpt.images.child import PIPE_BYTES
from manifpt.images.container import BrokenError
from manifpt.images.lines import TableShape
from manifpt.images.reader_process import ASK, END, ERROR, HEAD, LENGTH, ROWS, SECONDS
from manifpt.images.tars import TarMember

COMMAND = (sys.executable, "-P", "-m", "manifpt.images.reader_process")
MOST_IDLE = 2  # a tar, and the Parquet with its metadata
_MOST_MESSAGE = 2**30


class _DeadError(Exception):
    """The child has ended."""


class ReadRow(NamedTuple):
    """A row: its bytes, or in ``refused`` the size of too many, and the rest of it."""

    data: bytes | None
    refused: int
    rest: Any


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
                f"the process that reads containers did not start ({reason}); "
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
                    raise BrokenError(value)
                return kind, value
            self._hand(file, *value)

    def _hand(self, file: IO[bytes], start: int, count: int) -> None:
        """Send it a range of the file, in pieces that fit into memory."""
        file.seek(start)
        self._send(LENGTH.pack(count))
        while count:
            data = file.read(min(count, PIPE_BYTES))
            if not data:
                raise BrokenError("the file ends before its size; it was changed")
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
            return "reading it takes more memory than the limit; write smaller files or row groups"
        return f"its reader died by signal {-code}" if code < 0 else f"its reader left with {code}"

    def close(self) -> None:
        """End it; kill it if it is at work."""
        if self.busy:
            self.process.kill()
        self.answers.close()
        child.end(self.process)


_idle: list[_Child] = []  # children that serve the next files


def close_idle() -> None:
    """End the children that serve no file."""
    while _idle:
        _idle.pop().close()


atexit.register(close_idle)
os.register_at_fork(after_in_child=_idle.clear)  # a fork must not use these pipes


class Reader:
    """An open container; ``facts`` are those of its kind, known before its rows are read."""

    def __init__(self, file: IO[bytes], kind: str) -> None:
        self._file, self._kind = file, kind
        self._child = _idle.pop() if _idle else _Child()
        try:
            self.facts = self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        """Let the child open the file and return its facts; try a new child if that one dies."""
        for _ in range(2):
            try:
                self._child.command(open=self._kind, size=self._file.seek(0, os.SEEK_END))
                return self._child.answer(self._file)[1]
            except _DeadError:
                cause = self._replaced()
        raise BrokenError(cause)

    def _replaced(self) -> str:
        """Start a new child in place of a dead one; return the cause of its death."""
        cause = self._child.cause()
        self._child.close()
        self._child = _Child()
        return cause

    def rows(self, most: int = 0, **options: Any) -> Iterator[ReadRow]:
        """Yield the rows, with their bytes where these are at most ``most``.

        Raises BrokenError if the rest can't be read.
        """
        done = 0
        for one in (False, True):  # then row by row, to get all rows before the faulty one
            try:
                for row in self._rows(skip=done, one=one, most=most, options=options):
                    done += 1
                    yield row
                return
            except (_DeadError, BrokenError) as error:
                dead = isinstance(error, _DeadError)
                cause = self._replaced() if dead else str(error)
                # For other kinds, the rows before an error have come.
                if one or not (dead or self._kind == "parquet"):
                    raise BrokenError(cause) from None
                self._open()

    def _rows(self, **command: Any) -> Iterator[ReadRow]:
        """Yield the rows that the child sends; raise _DeadError if it dies."""
        if self._child.busy:  # nobody wanted the rest of the rows before
            self._child.close()
            self._child = _Child()
            self._open()
        self._child.command(**command)
        while True:
            kind, value = self._child.answer(self._file)
            if kind == END:
                return
            for size, rest in zip(*value, strict=True):
                if size is not None and size > command["most"]:
                    yield ReadRow(None, size, rest)
                else:
                    yield ReadRow(None if size is None else self._child.read(size), 0, rest)

    def members(self, most: int) -> Iterator[TarMember]:
        """Yield the files of a tar, as ``tars.members`` does."""
        for row in self.rows(most=most):
            name, error, message = row.rest
            yield TarMember(name, row.data, error, message)

    def text(
        self,
        name: str,
        offset: int,
        shape: TableShape | None,
        *,
        span: int | None = None,
        count: int | None = None,
    ) -> Iterator[list[Any]]:
        """Yield the fields of each Record of a text, or, if ``span`` is given, of each Span.

        At most ``count`` are read; see ``lines.records`` and ``lines.spans`` for the others.
        """
        found = self.rows(name=name, offset=offset, shape=shape, span=span, count=count)
        return (row.rest for row in found)

    def close(self) -> None:
        """Keep the child for the next file, or end it if it is at work."""
        if self._child.busy or len(_idle) >= MOST_IDLE:
            self._child.close()
        else:
            _idle.append(self._child)


@contextlib.contextmanager
def opened(uri: str, kind: Literal["tar", "text"]) -> Iterator[Reader]:
    """Open a container; raises BrokenError if it can't be read, ManifptError if storage fails."""
    with (
        container.opened_container(uri) as file,
        contextlib.closing(Reader(file, kind)) as found,
    ):
        yield found
