"""Decoding in a child process: an image that hangs, fills or crashes it costs one row.

Codecs are C code that reads the bytes of strangers. A reader therefore has a child (``decoder``)
and sends it the images over a pipe, several ahead, so that neither waits for the other. The child
decodes in order and answers each image before it begins the next. If it dies, the cause is the
first unanswered image, or the memory left by earlier ones. That image is therefore given to a new
child, and is at fault only if this child dies, too. The result of an image then does not depend on
its neighbours.

The kernel enforces the limits, in C code as well: a timer of processor time, one of real time for a
process that waits instead of computing, and RLIMIT_DATA. A child ends with its parent, because its
input ends. It has no part of the parent's environment, so no credentials, but it is no jail: it
guards against images that break their codec, not against images that take control of it.
"""

import atexit
import contextlib
import json
import math
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TypeVar

import numpy as np

from manifpt.errors import ManifptError
from manifpt.images import child
from manifpt.images.child import OUT_OF_MEMORY, PIPE_BYTES, READY
from manifpt.images.decode import ERRORS, Decoded, DecodeError, DecodeRule, refusal
from manifpt.images.decoder import ANSWER, LENGTH, WALL
from manifpt.images.perceptual import SIDE

COMMAND = (sys.executable, "-P", "-m", "manifpt.images.decoder")
AHEAD, AHEAD_BYTES = 64, 8 * 2**20  # images and bytes that a child has been given beforehand
AT_ONCE = 32  # pieces that are sent together
PAUSE = 0.005  # seconds; see ``_Child._read``
_TEXT_BYTES = 2**16

T = TypeVar("T")


class _Child:
    """The process that decodes, as its parent sees it."""

    def __init__(self, rule: DecodeRule, sizes: Sequence[int]) -> None:
        self.process = child.started([*COMMAND, json.dumps([asdict(rule), list(sizes)])])
        assert self.process.stdin
        assert self.process.stdout
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        self.rule, self.sizes = rule, tuple(sizes)
        self.possible = [
            self._bytes_of(tiles) for tiles in range(min(rule.tiles, 1), rule.tiles + 1)
        ]
        self.pixel_bytes = self.possible[-1]
        self.outgoing: deque[memoryview] = deque()
        self.incoming = bytearray()
        self.buffer = bytearray(PIPE_BYTES)
        self.ready, self.confused, self.answered = False, False, 0

    def _shapes(self, tiles: int) -> list[tuple[int, ...]]:
        """Return the shapes of the arrays of an answer; ``tiles`` is 0 by a rule without."""
        size = self.rule.size
        pixels = (tiles, size, size, 3) if self.rule.tiles else (size, size, 3)
        return [(SIDE, SIDE), pixels, *((other, other, 3) for other in self.sizes)]

    def _bytes_of(self, tiles: int) -> int:
        return sum(map(math.prod, self._shapes(tiles)))

    def send(self, data: bytes) -> None:
        """Send it an image, now or while this process waits for answers."""
        self.outgoing += (memoryview(LENGTH.pack(len(data))), memoryview(data))
        if len(self.outgoing) >= AT_ONCE:
            self._write()

    def _write(self) -> None:
        """Send as many bytes as the pipe takes."""
        try:
            while self.outgoing:
                sent = os.writev(self.stdin, list(islice(self.outgoing, AT_ONCE)))
                while self.outgoing and sent >= len(self.outgoing[0]):
                    sent -= len(self.outgoing.popleft())
                if sent:
                    self.outgoing[0] = self.outgoing[0][sent:]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outgoing.clear()  # it is dead, as the end of its answers will tell

    def _read(self, count: int, *, ahead: bool) -> bytes | None:
        """Return ``count`` bytes of its answers, sending meanwhile; None if it dies before.

        While it has images ahead, there is no need to be woken for every answer.
        """
        if ahead and len(self.incoming) < count:
            self._write()
            time.sleep(PAUSE)
        waiting = select.poll()
        waiting.register(self.stdout, select.POLLIN)
        while len(self.incoming) < count:
            if self.outgoing:
                waiting.register(self.stdin, select.POLLOUT)
                ready = dict(waiting.poll())
                waiting.unregister(self.stdin)
                if self.stdin in ready:
                    self._write()
                if self.stdout not in ready:
                    continue
            got = os.readv(self.stdout, [self.buffer])
            if not got:
                return None
            self.incoming += memoryview(self.buffer)[:got]
        found = bytes(memoryview(self.incoming)[:count])
        del self.incoming[:count]
        return found

    def answer(self, *, ahead: bool = False) -> Decoded | DecodeError | None:
        """Return the result of the next image; None if the child died, see ``verdict``.

        ``ahead`` says that it has many more.
        """
        if not self.ready:
            if self._read(len(READY), ahead=False) is None:
                raise ManifptError(self._no_start())
            self.ready = True
        head = self._read(ANSWER.size, ahead=ahead)
        if head is None:
            return None
        text_bytes, pixel_bytes = ANSWER.unpack(head)
        self.confused = text_bytes > _TEXT_BYTES or pixel_bytes not in {0, *self.possible}
        body = None if self.confused else self._read(text_bytes + pixel_bytes, ahead=False)
        if body is None:
            return None
        self.answered += 1
        code, _, text = body[:text_bytes].decode(errors="replace").partition(" ")
        try:
            return (
                DecodeError(code, text)
                if code in ERRORS
                else self._decoded(text, body[text_bytes:])
            )
        except ValueError:
            self.answered, self.confused = self.answered - 1, True
            return None

    def _decoded(self, text: str, pixels: bytes) -> Decoded:
        width, height, listed, format = text.split(" ", 3)
        pairs = [] if listed == "-" else [place.split(",") for place in listed.split(";")]
        places = tuple((int(x), int(y)) for x, y in pairs)
        if bool(places) != bool(self.rule.tiles) or len(pixels) != self._bytes_of(len(places)):
            raise ValueError("as many places as tiles are expected")
        arrays, start = [], 0
        for shape in self._shapes(len(places)):
            count = math.prod(shape)
            arrays.append(np.frombuffer(pixels, np.uint8, count, start).reshape(shape))
            start += count
        looks, image, *others = arrays
        return Decoded(image, format, int(width), int(height), looks, tuple(others), places)

    def _no_start(self) -> str:
        reason = child.last_line(self.process)
        self.close()
        return (
            f"the process that decodes images did not start ({reason}); "
            "check the Python environment of the nodes"
        )

    def verdict(self, rule: DecodeRule) -> DecodeError:
        """Return the cause of the child's death."""
        if self.confused:
            self.close()
            return DecodeError("crashed", "its answer made no sense")
        code = self.process.wait()
        self.close()
        if code == -signal.SIGPROF:
            return DecodeError("too_slow", f"more than {rule.max_seconds:g} s of processor time")
        if code == -signal.SIGALRM:
            return DecodeError("too_slow", f"more than {WALL * rule.max_seconds:g} s")
        if code == OUT_OF_MEMORY:
            return DecodeError("too_much_memory", f"more than {rule.max_memory} bytes")
        cause = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return DecodeError("crashed", cause)

    def close(self) -> None:
        """End it, if it has not ended."""
        child.end(self.process)


class Sandbox:
    """A child that is started again when it dies, and the images that it has not answered."""

    def __init__(self, rule: DecodeRule, sizes: Sequence[int]) -> None:
        self.rule, self.sizes = rule, tuple(sizes)
        self.child = _Child(rule, self.sizes)
        self.waiting: deque[bytes] = deque()

    def give(self, data: bytes) -> None:
        """Hand it an image."""
        self.waiting.append(data)
        self.child.send(data)

    def take(self) -> Decoded | DecodeError:
        """Return the result of the first image that waits."""
        # If its pipe has room for few answers only, it would wait for this process to wake.
        roomy = 4 * self.child.pixel_bytes <= PIPE_BYTES
        while (found := self.child.answer(ahead=roomy and 2 * len(self.waiting) > AHEAD)) is None:
            first = self.child.answered == 0
            error = self.child.verdict(self.rule)
            # Time is counted for each image alone; other causes may be left by other images.
            at_fault = first or error.code == "too_slow"
            if at_fault:
                self.waiting.popleft()
            self.child = _Child(self.rule, self.sizes)
            for data in self.waiting:
                self.child.send(data)
            if at_fault:
                return error
        self.waiting.popleft()
        return found


_idle: list[Sandbox] = []  # at most one, for the next unit of this process


def _close_idle() -> None:
    while _idle:
        _idle.pop().child.close()


atexit.register(_close_idle)
os.register_at_fork(after_in_child=_idle.clear)  # the pipes of a forked copy are the parent's


@contextlib.contextmanager
def _borrowed(rule: DecodeRule, sizes: Sequence[int]) -> Iterator[Sandbox]:
    """Lend a sandbox of this rule; it is kept for the next if all its images are answered."""
    try:
        found = _idle.pop()
        if (found.rule, found.sizes) != (rule, tuple(sizes)):
            found.child.close()
            raise IndexError
    except IndexError:
        found = Sandbox(rule, sizes)
    try:
        yield found
    finally:
        if found.waiting:
            found.child.process.kill()
            found.child.close()
        else:
            _close_idle()
            _idle.append(found)


def decode_all(
    items: Iterable[tuple[T, bytes]], rule: DecodeRule, other_sizes: Sequence[int] = ()
) -> Iterator[tuple[T, Decoded | DecodeError]]:
    """Decode the bytes of each item in a process of its own; yield the items in order.

    Raises ManifptError if such a process can't start; an image never raises.
    """
    pending: deque[tuple[T, int, DecodeError | None]] = deque()
    ahead = 0
    with _borrowed(rule, other_sizes) as sandbox:
        for item, data in items:
            refused = refusal(data, rule)
            pending.append((item, 0 if refused else len(data), refused))
            if not refused:
                sandbox.give(data)
                ahead += len(data)
            while pending and (pending[0][2] or len(pending) >= AHEAD or ahead >= AHEAD_BYTES):
                first, size, refused = pending.popleft()
                ahead -= size
                yield first, refused or sandbox.take()
        while pending:
            first, _, refused = pending.popleft()
            yield first, refused or sandbox.take()
