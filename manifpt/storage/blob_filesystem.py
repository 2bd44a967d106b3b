"""Common parts of gs://, az:// and hf://: filesystems that are made once, and lines of errors."""

import os
from collections.abc import Callable, Collection, Iterable

import fsspec
import pyarrow.fs

CONNECT_SECONDS = 4
READ_SECONDS = 20
PAGE_OBJECTS = 1000
# Errors of the libraries that find credentials.
_REFUSALS = {"DefaultCredentialsError", "ClientAuthenticationError"}
_refused: dict[tuple[object, ...], Exception] = {}


def made(make: Callable[..., fsspec.AbstractFileSystem], *given: str) -> fsspec.AbstractFileSystem:
    """Return ``make(process, *given)``; without credentials raise the error of the first call.

    A search for credentials takes seconds, and rows of a table repeat it.
    """
    if (make, *given) in _refused:
        raise _refused[make, *given]
    try:
        return make(os.getpid(), *given)
    except Exception as error:
        if type(error).__name__ in _REFUSALS:
            _refused[make, *given] = error
        raise


def arrow(filesystem: fsspec.AbstractFileSystem) -> pyarrow.fs.FileSystem:
    """Return a filesystem of pyarrow over one of fsspec: same credentials, same limits."""
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))


def first_line(lines: Iterable[str]) -> str:
    """Return the first line that is not empty, at most 200 characters of it."""
    return next((line for line in lines if line.strip()), "")[:200]


def is_of_object(error: Exception, status: int) -> bool:
    """Tell whether an error with this HTTP status, 0 if none came, is of one object."""
    if status:
        return 400 <= status < 500 and status not in {401, 407, 408, 429}
    return isinstance(error, UnicodeError)


def remedy(
    error: BaseException,
    status: int,
    said: str,
    server: str,
    libraries: Collection[str],
    check: str,
) -> str | None:
    """Return in one line how to mend an error that no store has a line of its own for.

    None if the error is of another kind. ``check`` is for a server that cannot be reached.
    """
    if status >= 500 or status in {408, 429}:
        return f"{server} answers {status}; the same command goes on from here"
    if status:
        return f"{said}; check the path"
    if isinstance(error, TimeoutError) or type(error).__module__.startswith(tuple(libraries)):
        where = f"cannot reach {server} ({said or type(error).__name__})"
        return f"{where}; check {check}; the same command goes on from here"
    return None
