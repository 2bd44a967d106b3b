"""URIs to filesystems (local paths and s3://), whole-or-nothing writes, content hashes.

Credentials and endpoint come from the environment that the AWS tools read (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...); they are never written or printed.
"""

import fcntl
import hashlib
import io
import json
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from manifpt import s3
from manifpt.errors import DamageError, ManifptError
from manifpt.failures import blames_file as blames_file
from manifpt.failures import explained as explained
from manifpt.failures import reason

AT_ONCE = 64
PARTIAL = ".partial"


def is_s3(uri: str) -> bool:
    """Tell whether ``uri`` names an object store."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """Return the URI in a form that any process of the job can resolve, with no trailing slash."""
    if is_s3(uri):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        scheme = uri.split("://", 1)[0]
        raise ManifptError(f"{uri}: unknown scheme {scheme}://; give a local path or s3://")
    return os.path.abspath(uri.removeprefix("file://"))


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of ``uri`` and its path there."""
    if is_s3(uri):
        return s3.filesystem(), uri[len("s3://") :]
    return fsspec.filesystem("file"), absolute(uri)


def arrow_filesystem(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """Return pyarrow's filesystem of ``uri`` and its path there, for libraries that want one."""
    if is_s3(uri):
        return s3.arrow(), uri[len("s3://") :]
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
    with explained(uri):
        if is_s3(uri):
            # exists() of s3fs takes a denied or unreachable bucket for a missing one.
            try:
                fs.info(path)
            except FileNotFoundError:
                return False
            return True
        return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    """Return a file's content."""
    fs, path = filesystem(uri)
    with explained(uri):
        data: bytes = fs.cat_file(path)
    return data


def read_many(uris: Iterable[str]) -> Iterator[bytes]:
    """Yield the contents of small files in order; an object store is asked for many at once."""
    left = iter(uris)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while some := list(islice(left, AT_ONCE)):
            yield from threads.map(_read_small, some) if is_s3(some[0]) else map(_read_small, some)


def _read_small(uri: str) -> bytes:
    if not is_s3(uri):
        return read_bytes(uri)
    fs, path = filesystem(uri)
    with explained(uri):
        # With more, s3fs would ask for the size first.
        data: bytes = fs.cat_file(path, max_concurrency=1)
    return data


@contextmanager
def writing(uri: str) -> Iterator[IO[bytes]]:
    """Open a file that appears under ``uri`` whole when the block ends, and not at all if it fails.

    An object store does this by itself: an upload is visible when it is complete.
    """
    fs, path = filesystem(uri)
    with explained(uri):
        if is_s3(uri):
            with fs.open(path, "wb") as file:
                try:
                    yield file
                except BaseException:
                    file.discard()
                    raise
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a machine that stops may keep the name alone
            os.replace(partial, path)
        except BaseException:
            if os.path.exists(partial):
                os.unlink(partial)
            raise


def write_bytes(uri: str, data: bytes) -> dict[str, Any]:
    """Write a file whole and return its ``bytes`` and ``sha256``."""
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
    with explained(uri), fs.open(path, "rb") as file:
        yield file


def read_versioned(uri: str) -> tuple[bytes, str]:
    """Return a file's content and a token that changes whenever the content does."""
    if not is_s3(uri):
        data = read_bytes(uri)
        return data, hashlib.sha256(data).hexdigest()
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with explained(uri):
        answer = s3.client().get_object(Bucket=bucket, Key=key)
    return answer["Body"].read(), answer["ETag"]


def replace(uri: str, data: bytes, token: str) -> bool:
    """Write a file if its content is still what ``token`` came with; tell whether it was."""
    if not is_s3(uri):
        return _replace_local(uri, data, token)
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        s3.client().put_object(Bucket=bucket, Key=key, Body=data, IfMatch=token)
    except ClientError as error:
        if error.response["Error"]["Code"] in {"PreconditionFailed", "ConditionalRequestConflict"}:
            return False
        raise ManifptError(f"{uri}: {reason(error)}; check the bucket's policy") from None
    return True


def _replace_local(uri: str, data: bytes, token: str) -> bool:
    path = absolute(uri)
    with open(os.path.join(os.path.dirname(path), ".lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read_versioned(uri)[1] != token:
            return False
        write_bytes(uri, data)
        return True


def read_json(uri: str) -> dict[str, Any]:
    """Return a JSON file's object."""
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


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file as a table; of ``columns`` those that it has."""
    return parquet_table(uri, read_bytes(uri), columns)


def parquet_table(uri: str, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table in the bytes of a Parquet file, ``uri``."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        names = file.schema_arrow.names
        return file.read(names if columns is None else [n for n in columns if n in names])
    except (pa.ArrowInvalid, OSError) as error:
        raise DamageError(f"{uri}: is damaged ({reason(error)}); make it again") from None


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def files_under(uri: str) -> list[tuple[str, int]]:
    """Return (URI, bytes) of every file under a folder or prefix, sorted; hidden ones left out."""
    fs, path = filesystem(uri)
    with explained(uri):
        found = fs.find(path, detail=True)
    rows = []
    for name, info in found.items():
        inside = name[len(path) :].strip("/").split("/")
        if not any(part.startswith((".", "_")) for part in inside):
            rows.append((f"s3://{name}" if is_s3(uri) else name, int(info["size"])))
    return sorted(rows)


def remove(uri: str) -> None:
    """Remove a folder and what is in it, if it is there."""
    fs, path = filesystem(uri)
    with explained(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def remove_empty(uri: str) -> None:
    """Remove a local folder if nothing is in it; an object store has no empty ones."""
    if not is_s3(uri):
        with suppress(OSError):
            os.rmdir(absolute(uri))


def remove_partials(uri: str) -> None:
    """Remove what processes that were killed left half written under a local folder.

    An object store shows no half of a file.
    """
    if is_s3(uri):
        return
    for folder, _, names in os.walk(absolute(uri)):
        for name in names:
            if name.endswith(PARTIAL):
                os.unlink(os.path.join(folder, name))


def check_writable(uri: str) -> None:
    """Fail now, with the remedy, if a job could not write its output later."""
    probe = join(uri, f".writable-{uuid.uuid4().hex[:8]}")
    fs, path = filesystem(probe)
    existed = exists(uri)
    write_bytes(probe, b"")
    with explained(uri):
        fs.rm_file(path)
    if not existed and not is_s3(uri):
        os.rmdir(os.path.dirname(path))


def digest(value: object) -> str:
    """Return the sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
