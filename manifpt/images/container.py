"""A container's bytes as they come from storage, and whom an error blames while they are read.

Parsers of hostile bytes raise almost anything. So it is not the kind of an error that tells, but
who raised it: an error of reading the file is the storage's, every other one is the content's.
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
    """A container, or the rest of it, can't be read: its content is bad, or this one object."""


class _Watched(io.RawIOBase):
    """A file that remembers the error that reading it raised, whatever a parser makes of it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except (MemoryError, OverflowError):
            raise  # the content announced more than there can be
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
def opened(uri: str) -> Iterator[BinaryIO]:
    """Open a container; all that goes wrong in the block is one of two errors.

    BrokenError, with a line that says why, costs the rest of the container; ManifptError, where
    the storage as a whole fails, must stop the job.
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
            with storage.explained(uri):
                raise of_storage from None
        raise BrokenError(one_line(of_storage or error)) from error


def _open(uri: str) -> Any:
    fs, path = storage.filesystem(uri)
    if not storage.is_s3(uri):
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe waits for its writer
            raise OSError(errno.EINVAL, "neither a file nor a link to one")
        return fs.open(path, "rb")
    try:
        return fs.open(path, "rb")
    except OSError as error:
        if error.errno in {None, errno.EINVAL} and not storage.blames_file(error, uri):
            # It was asked for by HEAD, whose answer has no body; that of GET says the reason.
            fs.cat_file(path, start=0, end=1)
        raise
