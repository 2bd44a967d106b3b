"""The content of one file, wherever it lies: at most so many bytes, or a code of ERRORS."""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from manifpt import storage
from manifpt.errors import public
from manifpt.images.decode import DecodeError
from manifpt.images.http import download

Item = TypeVar("Item")
Made = TypeVar("Made")

# Requests that one process has under way: enough to hide latency, few enough for memory.
THREADS = 32


def is_web(uri: str) -> bool:
    """Tell whether a URI names a file in the web."""
    return uri[:8].lower().startswith(("http://", "https://"))


def one_line(error: BaseException) -> str:
    """Return an error's kind and the first line of its text, without the name of a file."""
    lines = public(str(getattr(error, "strerror", None) or error)).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def content(uri: str, max_bytes: int, *, allow_private: bool = False) -> bytes:
    """Return what a local path, an s3:// or an http(s):// URI holds.

    Raises DecodeError where that can't be had, or is more than ``max_bytes``, which are not read;
    and ManifptError if it is the storage that fails, or its credentials, and not this one file.
    """
    try:
        if is_web(uri):
            return download(uri, max_bytes, allow_private=allow_private)
        return _object(uri, max_bytes) if storage.is_s3(uri) else _file(uri, max_bytes)
    except DecodeError:
        raise
    except Exception as error:
        if not is_web(uri) and not storage.blames_file(error, uri):
            with storage.explained(uri):
                raise
        # Of s3fs and botocore many kinds; a file that can't be had costs its row only.
        raise DecodeError("unreadable", one_line(error)) from None


def _file(path: str, max_bytes: int) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("unreadable", "neither a file nor a link to one")
    if status.st_size > max_bytes:
        raise DecodeError("too_many_bytes", f"{status.st_size} bytes, limit {max_bytes}")
    with open(path, "rb") as file:
        return file.read(status.st_size)


def _object(uri: str, max_bytes: int) -> bytes:
    fs, path = storage.filesystem(uri)
    try:
        data: bytes = fs.cat_file(path, start=0, end=max_bytes + 1)
    except OSError as error:
        if "range is not satisfiable" not in str(error):
            raise
        return b""  # no range of an empty object can be had
    if len(data) > max_bytes:
        raise DecodeError("too_many_bytes", f"more than {max_bytes} bytes")
    return data


def in_order(
    work: Callable[[Item], Made], items: Iterable[Item], threads: int = THREADS
) -> Iterator[Made]:
    """Yield ``work`` of each item in their order, at most ``threads`` of them at a time."""
    pool = ThreadPoolExecutor(threads)
    running: deque[Future[Made]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) == threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
