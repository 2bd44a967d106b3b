"""Open containers, and separate errors of the storage from errors of the content.

Parsers of hostile bytes may raise any kind of error, so the kind does not show the cause. If the
file raised the error, the storage failed; every other error is a fault of the content.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images.text import one_line


class BrokenError(Exception):
    """A container, or the rest of it, can't be read; the cause lies in this file alone."""


class _Watched(io.RawIOBase):
    """A file that remembers its own read error, even if a parser raises another one instead."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except (MemoryError, OverflowError):
            raise  # the content announced an impossible size
        except Exception as error:
            self.error = error
            raise
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def opened_container(uri: str) -> Iterator[BinaryIO]:
    """Open a container; every error in the block becomes one of two.

    BrokenError, with a message of one line, costs the rest of the container. ManifptError means
    that the storage as a whole fails, and must stop the job.
    """
    file: _Watched | None = None
    try:
        with _Watched(_open(uri)) as file:
            yield cast("BinaryIO", file)
    except (BrokenError, ManifptError):
        raise
    except Exception as error:
        of_storage = file.error if file is not None else error
        if of_storage is not None and not storage.blames_file(of_storage, uri):
            with storage.explain_errors(uri):
                raise of_storage from None
        raise BrokenError(one_line(of_storage or error)) from error


def _open(uri: str) -> Any:
    fs, path = storage.filesystem(uri)
    if not storage.is_remote(uri):
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe waits for its writer
            raise OSError(errno.EINVAL, "neither a file nor a link to one")
        return fs.open(path, "rb")
    try:
        return fs.open(path, "rb", cache_type="readahead")
    except OSError as error:
        if error.errno in {None, errno.EINVAL} and not storage.blames_file(error, uri):
            # The answer to HEAD has no body; the answer to GET tells the reason.
            fs.cat_file(path, start=0, end=1)
        raise
