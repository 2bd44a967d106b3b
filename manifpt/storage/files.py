"""URIs to filesystems (local paths, s3://, gs://, az://), whole-or-nothing writes, content hashes.

Credentials and endpoint come from the environment that the tools of each cloud read
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_STORAGE_CONNECTION_STRING, ...); they are never written or printed.
"""

import errno
import hashlib
import json
import os
import posixpath
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import IO, Any, TypedDict

import fsspec
import pyarrow as pa
import pyarrow.fs

from manifpt.errors import DamageError, ManifptError
from manifpt.storage.failures import blames_file as blames_file
from manifpt.storage.failures import explain_errors as explain_errors
from manifpt.storage.remote import bucket_and_key, is_remote, pages, path_of, scheme, store

AT_ONCE = 64
PARTIAL = ".partial"


def absolute(uri: str) -> str:
    """Return the URI in a form that any process of the job can resolve, with no trailing slash."""
    if is_remote(uri):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        known = "give a local path, s3://, gs://, az:// or hf://"
        raise ManifptError(f"{uri}: unknown scheme {scheme(uri)}://; {known}")
    return os.path.abspath(uri.removeprefix("file://"))


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of ``uri`` and its path there."""
    if is_remote(uri):
        with explain_errors(uri):  # without credentials there is none
            return store(uri).filesystem(), path_of(uri)
    return fsspec.filesystem("file"), absolute(uri)


def arrow_filesystem(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """Return pyarrow's filesystem of ``uri`` and its path there, for libraries that want one."""
    if is_remote(uri):
        with explain_errors(uri):
            return store(uri).arrow(), path_of(uri)
    return pa.fs.LocalFileSystem(), absolute(uri)


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI."""
    return posixpath.join(uri, *parts)


def base_name(uri: str) -> str:
    """Return the last path segment of a URI."""
    return posixpath.basename(uri.rstrip("/"))


def exists(uri: str) -> bool:
    """Tell whether a file or folder is there."""
    fs, path = filesystem(uri)
    with explain_errors(uri):
        if is_remote(uri):
            # exists() takes a denied or unreachable bucket for a missing one.
            try:
                fs.info(path)
            except FileNotFoundError:
                return False
            return True
        return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    """Return a file's content."""
    fs, path = filesystem(uri)
    with explain_errors(uri):
        data: bytes = fs.cat_file(path)
    return data


def read_many(uris: Iterable[str]) -> Iterator[bytes]:
    """Yield the contents of small files in order; an object store is asked for many at once."""
    left = iter(uris)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while some := list(islice(left, AT_ONCE)):
            yield from (
                threads.map(_read_small, some) if is_remote(some[0]) else map(_read_small, some)
            )


def _read_small(uri: str) -> bytes:
    if not is_remote(uri):
        return read_bytes(uri)
    fs, path = filesystem(uri)
    with explain_errors(uri):
        # With more, s3fs would ask for the size first.
        data: bytes = fs.cat_file(path, max_concurrency=1)
    return data


@contextmanager
def writing(uri: str) -> Iterator[IO[bytes]]:
    """Open a file that appears under ``uri`` whole when the block ends, and not at all if it fails.

    An object store does this by itself: an upload is visible when it is complete.
    """
    fs, path = filesystem(uri)
    with explain_errors(uri):
        if is_remote(uri):
            with fs.open(path, "wb") as file:
                try:
                    yield file
                except BaseException:
                    file.discard()
                    file.closed = True  # else gcsfs and adlfs would write the incomplete file
                    raise
            return
        make_folder(os.path.dirname(path))
        partial = f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave the name without content
            os.replace(partial, path)
            keep_names(os.path.dirname(path))
        except BaseException:
            if os.path.exists(partial):
                os.unlink(partial)
            raise


def make_folder(path: str) -> None:
    """Make a folder and those above it, so that a machine that stops keeps their names."""
    if not os.path.isdir(path):
        make_folder(os.path.dirname(path))
        with suppress(FileExistsError):  # another process made it; if it is a file, opening fails
            os.mkdir(path)
        keep_names(os.path.dirname(path))


def keep_names(folder: str) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a filesystem that does this by itself
            raise
    finally:
        os.close(descriptor)


class Written(TypedDict):
    """The size and the hash of a file that was written."""

    bytes: int
    sha256: str


def write_bytes(uri: str, data: bytes) -> Written:
    """Write a file whole and return its size and its hash."""
    with writing(uri) as file:
        file.write(data)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sha256(uri: str) -> str:
    """Return the sha256 of a file's content, read piece by piece."""
    with reading(uri) as file:
        found = hashlib.sha256()
        while data := file.read(8 * 2**20):
            found.update(data)
    return found.hexdigest()


def copy(source: str, target: str, sha: str | None = None) -> None:
    """Copy a file piece by piece; it appears whole, and not at all if its sha256 is not ``sha``."""
    found = hashlib.sha256()
    with reading(source) as file, writing(target) as out:
        while data := file.read(8 * 2**20):
            found.update(data)
            out.write(data)
        if sha is not None and found.hexdigest() != sha:
            raise DamageError(f"{source}: differs from its manifest's hash; make it again")


@contextmanager
def reading(uri: str) -> Iterator[IO[bytes]]:
    """Open a file to read it piece by piece."""
    fs, path = filesystem(uri)
    # gcsfs would else read far ahead, in tasks of its own; local files take no such option.
    ahead = {"cache_type": "readahead"} if is_remote(uri) else {}
    with explain_errors(uri), fs.open(path, "rb", **ahead) as file:
        yield file


def read_json(uri: str) -> Any:
    """Return a JSON file's object, a dictionary; the caller names its type."""
    try:
        value = json.loads(read_bytes(uri))
    except ValueError:
        raise ManifptError(f"{uri}: not valid JSON; was it written by manifpt?") from None
    if not isinstance(value, dict):
        raise ManifptError(f"{uri}: not a JSON object; was it written by manifpt?")
    return value


def write_json(uri: str, value: object) -> None:
    """Write a value as JSON, whole."""
    write_bytes(uri, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return a value as JSON text, keys sorted."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def files_under(uri: str) -> list[tuple[str, int]]:
    """Return (URI, bytes) of every file under a folder or prefix, sorted; hidden ones left out."""
    return [
        (found, size)
        for found, size in all_files(uri)
        if not any(part.startswith((".", "_")) for part in found[len(uri) :].strip("/").split("/"))
    ]


def all_files(uri: str) -> list[tuple[str, int]]:
    """Return (URI, bytes) of every file under a folder or prefix, sorted; links are not followed.

    A link is a file, of 0 bytes.
    """
    if not is_remote(uri):
        return _local_files(absolute(uri))
    fs, path = filesystem(uri)
    with explain_errors(uri):
        found = fs.find(path, detail=True)
    return sorted((f"{scheme(uri)}://{name}", int(info["size"])) for name, info in found.items())


def _local_files(root: str) -> list[tuple[str, int]]:
    found = [] if not os.path.isfile(root) else [(root, os.path.getsize(root))]
    for folder, inside, names in os.walk(root):
        links = [name for name in inside if os.path.islink(os.path.join(folder, name))]
        for path in (os.path.join(folder, name) for name in (*names, *links)):
            with suppress(FileNotFoundError):  # it was removed in the meantime
                found.append((path, 0 if os.path.islink(path) else os.lstat(path).st_size))
    return sorted(found)


def names(uri: str) -> list[str]:
    """Return up to 1,000 names in a folder or under a prefix; folders end in a slash.

    Hidden names are among them; a file has none but its own.
    """
    if is_remote(uri):
        _, key = bucket_and_key(uri)
        prefix = f"{key}/" if key else ""
        page = next(pages(uri, prefix, "/"))
        found = [*(name for name, _ in page.objects), *page.prefixes]
        return sorted(name[len(prefix) :] for name in found if name != prefix)
    path = absolute(uri)
    with explain_errors(uri):
        try:
            with os.scandir(path) as entries:
                some = islice(entries, 1000)
                return sorted(
                    f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name for e in some
                )
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            return [os.path.basename(path)]


def remove_file(uri: str) -> None:
    """Remove a file if it is there."""
    fs, path = filesystem(uri)
    with explain_errors(uri), suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_files(folder: str, pattern: str) -> None:
    """Remove the files of a folder whose paths inside it match a pattern, and no others.

    Local folders that become empty are removed, too.
    """
    matches = re.compile(pattern).fullmatch
    found = [uri for uri, _ in all_files(folder) if matches(uri[len(folder) :].strip("/"))]
    remove_listed(folder, found)


def remove_listed(folder: str, found: Sequence[str]) -> None:
    """Remove files under a folder, given by their URIs, as ``remove_files`` does."""
    fs, _ = filesystem(folder)
    with explain_errors(folder):
        if is_remote(folder):
            if set(folder) & set("*?["):  # fsspec would take it for a pattern
                for uri in found:
                    remove_file(uri)
            elif found:
                with suppress(FileNotFoundError):  # another process has removed all of them
                    fs.rm([path_of(uri) for uri in found])
            return
        for path in found:
            with suppress(FileNotFoundError):
                os.unlink(path)
    above = {os.path.dirname(path) for path in found}
    for path in sorted(above, key=len, reverse=True):
        while path.startswith(absolute(folder)) and remove_empty(path):
            path = os.path.dirname(path)


def remove_empty(uri: str) -> bool:
    """Remove a local folder if nothing is in it; tell whether it was removed.

    An object store has no empty ones.
    """
    if is_remote(uri):
        return False
    try:
        os.rmdir(absolute(uri))
    except OSError:
        return False
    return True


def digest(value: object) -> str:
    """Return the sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
