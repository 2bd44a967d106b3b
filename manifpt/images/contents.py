"""Read one file from any place, up to a limit of bytes; a failure has a code of ERRORS."""

import itertools
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images.decode import DecodeError
from manifpt.images.http import download
from manifpt.images.text import one_line

Item = TypeVar("Item")
Made = TypeVar("Made")
Reserve = Callable[[int], None]

# Simultaneous requests of one process: enough to hide latency, few enough for memory.
THREADS = 32
# Bytes that each may read without a reservation. A larger file waits until there is room for it.
SMALL = 4 * 2**20
ROOM = THREADS * SMALL


class Room:
    """A limit on the bytes that large files in memory have together.

    Items are numbered in their order. The item that is due next never waits, even beyond the limit,
    so that no item waits forever.
    """

    def __init__(self, size: int) -> None:
        self.size, self.due = size, 0
        self._held: dict[int, int] = {}
        self._changed = threading.Condition()

    def reserve(self, number: int, size: int) -> None:
        """Wait until an item may have ``size`` bytes; a smaller size than before never waits."""
        with self._changed:
            held = self._held
            self._changed.wait_for(
                lambda: (
                    number <= self.due
                    or size <= held.get(number, 0)
                    or sum(held.values()) + size <= self.size
                )
            )
            held[number] = size
            self._changed.notify_all()

    def release(self, number: int) -> None:
        """Free the bytes of an item, and make the next item due."""
        with self._changed:
            self._held.pop(number, None)
            self.due = number + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let no item wait any more."""
        with self._changed:
            self.due = sys.maxsize
            self._changed.notify_all()


def is_web(uri: str) -> bool:
    """Tell whether a URI names a file on the web."""
    return uri[:8].lower().startswith(("http://", "https://"))


def content(
    uri: str,
    max_bytes: int,
    *,
    allow_private: bool = False,
    reserve: Reserve | None = None,
) -> bytes:
    """Return the content of a local path, an object of a store, or an http(s):// URI.

    ``reserve`` is called, and may wait, before more than SMALL bytes are read. A larger file is
    requested a second time after that, because a connection may not last through the wait. Raises
    DecodeError if this file can't be read or has more than ``max_bytes``. Raises ManifptError if
    the storage as a whole or its credentials fail.
    """
    if reserve is not None and max_bytes > SMALL:
        try:
            return _content(uri, SMALL, allow_private)
        except DecodeError as error:
            if error.code != "too_many_bytes":
                raise
            size = min(error.size or max_bytes, max_bytes)
        reserve(size)
        data = _content(uri, size, allow_private)
        reserve(len(data))
        return data
    return _content(uri, max_bytes, allow_private)


def _content(uri: str, max_bytes: int, allow_private: bool) -> bytes:
    try:
        if is_web(uri):
            return download(uri, max_bytes, allow_private=allow_private)
        return _object(uri, max_bytes) if storage.is_remote(uri) else _file(uri, max_bytes)
    except DecodeError:
        raise
    except Exception as error:
        if not is_web(uri) and not storage.blames_file(error, uri):
            with storage.explain_errors(uri):
                raise
        # the libraries raise many kinds; a file that can't be read costs only its row.
        raise DecodeError("unreadable", one_line(error)) from None


def _file(path: str, max_bytes: int) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("unreadable", "neither a file nor a link to one")
    if status.st_size > max_bytes:
        message = f"{status.st_size} bytes, limit {max_bytes}"
        raise DecodeError("too_many_bytes", message, status.st_size)
    with open(path, "rb") as file:
        return file.read(status.st_size)


def _object(uri: str, max_bytes: int) -> bytes:
    try:
        fs, path = storage.filesystem(uri)
    except ManifptError as error:  # only a table of URIs leads to a storage that is not set up
        raise DecodeError("unreadable", one_line(error)) from None
    try:
        data: bytes = fs.cat_file(path, start=0, end=max_bytes + 1)
    except Exception as error:
        if not storage.no_such_range(error, uri):
            raise
        return b""  # an empty object has no range
    if len(data) > max_bytes:
        raise DecodeError("too_many_bytes", f"more than {max_bytes} bytes")
    return data


def map_in_order(
    work: Callable[[Item, Reserve], Made],
    items: Iterable[Item],
    threads: int = THREADS,
) -> Iterator[Made]:
    """Call ``work`` on each item, in at most ``threads`` threads; yield the results in order.

    ``work`` gets the item, and a function that reserves bytes for it (see ``content``).
    """
    pool, room = ThreadPoolExecutor(threads), Room(ROOM)
    running: deque[Future[Made]] = deque()
    done = itertools.count()

    def first() -> Iterator[Made]:
        yield running.popleft().result()
        room.release(next(done))

    try:
        for number, item in enumerate(items):
            running.append(pool.submit(work, item, partial(room.reserve, number)))
            if len(running) == threads:
                yield from first()
        while running:
            yield from first()
    finally:
        room.close()
        pool.shutdown(wait=False, cancel_futures=True)
