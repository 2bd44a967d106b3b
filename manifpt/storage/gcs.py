"""Google Cloud Storage through gcsfs, which the extra ``gcs`` installs.

Credentials are Google's application default ones. STORAGE_EMULATOR_HOST names another server, which
is asked without credentials. gcsfs tries a request that fails up to six times, within about half a
minute besides the time that the server takes to answer.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import fsspec
import pyarrow.fs

from manifpt.errors import ManifptError
from manifpt.storage import blob_filesystem
from manifpt.storage.blob_filesystem import CONNECT_SECONDS, READ_SECONDS
from manifpt.storage.protocol import ListingPage

# One request with its answer: gcsfs reads a file in one, and writes parts of 5 MiB.
REQUEST_SECONDS = 600


def filesystem() -> fsspec.AbstractFileSystem:
    """Return the filesystem of gcsfs; without credentials raise the error of the first call."""
    return blob_filesystem.made(_filesystem, os.environ.get("STORAGE_EMULATOR_HOST", ""))


@cache  # that of fsspec has one for each thread, and each would fetch a token
def _filesystem(process: int, emulator: str) -> fsspec.AbstractFileSystem:
    import aiohttp

    try:
        # Not the class of gcsfs itself, which asks about each bucket by gRPC first.
        from gcsfs.core import GCSFileSystem
    except ImportError:
        raise ManifptError("gs:// needs gcsfs; pip install 'manifpt[gcs]'") from None
    # It logs the traceback of each error that it also raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    limits = aiohttp.ClientTimeout(
        REQUEST_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
    )
    return GCSFileSystem(
        token="anon" if emulator else "google_default",
        requests_timeout=limits,
        use_listings_cache=False,  # it would hide files of other processes
        skip_instance_cache=True,
    )


def arrow() -> pyarrow.fs.FileSystem:
    """Return a filesystem of pyarrow over that of gcsfs."""
    return blob_filesystem.arrow(filesystem())


def pages(bucket: str, prefix: str, delimiter: str = "") -> Iterator[ListingPage]:
    """Yield the listing of a prefix, page by page."""
    fs, token = filesystem(), None
    asked = {
        "prefix": prefix or None,
        "delimiter": delimiter or None,
        "maxResults": blob_filesystem.PAGE_OBJECTS,
    }
    while True:
        page = fs.call("GET", "b/{}/o", bucket, **asked, pageToken=token, json_out=True)
        objects = [(item["name"], int(item["size"])) for item in page.get("items", ())]
        yield ListingPage(objects, page.get("prefixes", []))
        token = page.get("nextPageToken")
        if not token:
            return


def put(bucket: str, key: str, data: bytes, version: str | None) -> bool:
    """Write an object if its generation is ``version``, or if there is none (None)."""
    fs, mark = filesystem(), uuid.uuid4().hex
    head = f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
    head += f"{json.dumps({'name': key})}\r\n--{mark}\r\nContent-Type: application/octet-stream"
    try:
        fs.call(
            "POST",
            f"{fs._location}/upload/storage/v1/b/{{}}/o",
            bucket,
            uploadType="multipart",
            ifGenerationMatch=version or "0",
            headers={"Content-Type": f"multipart/related; boundary={mark}"},
            data=f"{head}\r\n\r\n".encode() + data + f"\r\n--{mark}--".encode(),
        )
    except FileExistsError:  # gcsfs's form of 412
        return False
    except FileNotFoundError:
        if version is None:
            raise
        return False
    return True


def get(bucket: str, key: str) -> tuple[bytes, str]:
    """Return an object's content and its generation."""
    fs = filesystem()
    headers, data = fs.call("GET", fs.url(f"{bucket}/{key}"))
    return data, headers["X-Goog-Generation"]


def age(bucket: str, key: str) -> float | None:
    """Return the seconds since an object was written, by Google's clock; None without one."""
    try:
        headers, answer = filesystem().call("GET", "b/{}/o/{}", bucket, key)
    except FileNotFoundError:
        return None
    written = datetime.fromisoformat(json.loads(answer)["updated"])
    now = parsedate_to_datetime(headers["Date"])  # in whole seconds
    return max(0.0, (now - written).total_seconds())


def status(error: BaseException) -> int:
    """Return the HTTP status that an error of gcsfs stands for, 0 if there was no answer."""
    if isinstance(error, FileNotFoundError):
        return 404
    text = str(error)
    if isinstance(error, OSError) and text.startswith("Forbidden"):
        return 403
    if isinstance(error, ValueError) and text.startswith("Bad Request"):
        return 400
    code: Any = getattr(error, "code", 0)
    return int(code) if str(code).isdigit() else 0


def blames_object(error: Exception) -> bool:
    """Tell whether an error is of the one object that was asked for; see ``blames_file``."""
    code = status(error)
    if code == 403:  # others are of an account or of the project
        return "does not have storage." in str(error)
    return blob_filesystem.is_of_object(error, code)


def remedy(error: Exception) -> str | None:
    """Return in one line how to mend an error of storage; None if the error is of another kind."""
    said = blob_filesystem.first_line(reversed(str(error).splitlines()))
    code, kind = status(error), type(error).__module__
    if code == 404:
        return "no such file, folder or bucket; check the path"
    if code == 403:
        role = "Storage Object User (roles/storage.objectUser)"
        return f"access denied ({said}); give the account the role {role} on the bucket"
    if code == 401 or kind.startswith("google.auth"):
        return (
            f"no valid Google credentials ({said}); set GOOGLE_APPLICATION_CREDENTIALS, or run: "
            "gcloud auth application-default login"
        )
    server = os.environ.get("STORAGE_EMULATOR_HOST") or "Google Cloud Storage"
    libraries = {"aiohttp", "requests", "gcsfs"}
    return blob_filesystem.remedy(error, code, said, server, libraries, "the network")
