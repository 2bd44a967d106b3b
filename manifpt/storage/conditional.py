"""Writes that happen only if a file is new, or still of the version that was read."""

import fcntl
import hashlib
import os
import time
import uuid
from contextlib import suppress
from typing import IO

from manifpt.errors import ManifptError
from manifpt.storage.failures import explain_errors
from manifpt.storage.files import (
    PARTIAL,
    absolute,
    keep_names,
    make_folder,
    read_bytes,
    write_bytes,
)
from manifpt.storage.remote import bucket_and_key, is_remote, store

LOCK = ".lock"
# Its content, which distinguishes a lock left by a killed run from other files.
LOCK_MARK = b"manifpt\n"
LOCK_SECONDS = 30.0


def create(uri: str, data: bytes) -> bool:
    """Write a file whole if there is none of its name; tell whether this call wrote it.

    Only one of several processes that call this at once writes.
    """
    if is_remote(uri):
        return _put(uri, data, None)
    path = absolute(uri)
    partial = f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}"
    with explain_errors(uri):
        make_folder(os.path.dirname(path))
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # it fails if the name is taken
            keep_names(os.path.dirname(path))
        except FileExistsError:
            return False
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    return True


def read_versioned(uri: str) -> tuple[bytes, str]:
    """Return a file's content and a token that changes whenever the content does."""
    if is_remote(uri):
        with explain_errors(uri):
            return store(uri).get(*bucket_and_key(uri))
    data = read_bytes(uri)
    return data, hashlib.sha256(data).hexdigest()


def replace(uri: str, data: bytes, token: str) -> bool:
    """Write a file if its content is still that of ``token``; tell whether it was."""
    return _put(uri, data, token) if is_remote(uri) else _replace_local(uri, data, token)


def _put(uri: str, data: bytes, version: str | None) -> bool:
    with explain_errors(uri):
        return store(uri).put(*bucket_and_key(uri), data, version)


def _replace_local(uri: str, data: bytes, token: str) -> bool:
    path = absolute(uri)
    if not os.path.exists(path):
        return False
    with explain_errors(uri), open(os.path.join(os.path.dirname(path), LOCK), "ab") as lock:
        _lock(lock, uri)
        if lock.tell() == 0:
            lock.write(LOCK_MARK)
            lock.flush()
        if not os.path.exists(path) or read_versioned(uri)[1] != token:
            return False
        write_bytes(uri, data)
        return True


def _lock(file: IO[bytes], uri: str) -> None:
    """Take the lock of a file, for as long as that is open."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise ManifptError(f"{uri}: another process holds its lock; try again") from None
            time.sleep(0.05)
        else:
            return


def age(uri: str) -> float | None:
    """Return the seconds since a file was written, by its storage's clock; None without one."""
    if is_remote(uri):
        with explain_errors(uri):
            return store(uri).age(*bucket_and_key(uri))
    try:
        return time.time() - os.stat(absolute(uri)).st_mtime
    except FileNotFoundError:
        return None
