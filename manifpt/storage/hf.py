"""Data sets and models on Hugging Face's hub, for reading alone; the extra ``hf`` installs it.

``hf://datasets/OWNER/NAME/PATH``, with ``@REVISION`` after the name if wanted. A bucket here is the
repository. HF_TOKEN is used if it is set, HF_ENDPOINT names another hub. The hub's client tries a
request up to six times, within about half a minute.
"""

import os
from collections.abc import Iterator
from functools import cache
from typing import Any, NoReturn

import fsspec
import pyarrow.fs

from manifpt.errors import ManifptError
from manifpt.storage import blob_filesystem
from manifpt.storage.protocol import ListingPage

KINDS = ("datasets", "spaces", "buckets")  # repositories that are no models


def filesystem() -> fsspec.AbstractFileSystem:
    """Return the filesystem of huggingface_hub."""
    return _filesystem(os.getpid(), _endpoint())


@cache
def _filesystem(process: int, endpoint: str) -> fsspec.AbstractFileSystem:
    try:
        from huggingface_hub import HfFileSystem
    except ImportError:
        raise ManifptError("hf:// needs huggingface_hub; pip install 'manifpt[hf]'") from None
    return HfFileSystem(endpoint=endpoint, skip_instance_cache=True)


def arrow() -> pyarrow.fs.FileSystem:
    """Return a filesystem of pyarrow over that of huggingface_hub."""
    return blob_filesystem.arrow(filesystem())


def split(path: str) -> tuple[str, str]:
    """Return the repository, as datasets/OWNER/NAME, and the path inside it."""
    parts = path.split("/")
    count = 3 if parts[0] in KINDS else 2
    return "/".join(parts[:count]), "/".join(parts[count:])


def pages(bucket: str, prefix: str, delimiter: str = "") -> Iterator[ListingPage]:
    """Yield the listing of a prefix as one page: the hub's client holds it as a whole."""
    fs, folder = filesystem(), f"{bucket}/{prefix}".rpartition("/")[0]
    try:
        found = fs.ls(folder) if delimiter else fs.find(folder, detail=True).values()
    except NotADirectoryError:
        return
    inside = sorted((item["name"][len(bucket) + 1 :], item) for item in found)
    named = [(name, item) for name, item in inside if name.startswith(prefix)]
    files = [(name, int(item["size"])) for name, item in named if item["type"] == "file"]
    yield ListingPage(files, [f"{name}/" for name, item in named if item["type"] == "directory"])


def put(bucket: str, key: str, data: bytes, version: str | None) -> NoReturn:
    """Raise: the hub is only read."""
    raise ManifptError(f"hf://{bucket}/{key}: hf:// is only read; give another --output")


def get(bucket: str, key: str) -> tuple[bytes, str]:
    """Return an object's content; its version is not known."""
    data: bytes = filesystem().cat_file(f"{bucket}/{key}")
    return data, ""


def age(bucket: str, key: str) -> None:
    """Return None: the hub has no clock."""


def status(error: BaseException) -> int:
    """Return the HTTP status of an error, 0 if there was no answer."""
    at: BaseException | None = error
    while at is not None:
        answer: Any = getattr(at, "response", None)
        if answer is not None:
            return int(answer.status_code)
        at = at.__cause__
    return 404 if isinstance(error, FileNotFoundError) else 0


def blames_object(error: Exception) -> bool:
    """Tell whether an error is of the one object that was asked for; see ``blames_file``."""
    code = status(error)
    return code != 403 and blob_filesystem.is_of_object(error, code)


def remedy(error: Exception) -> str | None:
    """Return in one line how to mend an error of the hub; None if the error is of another kind."""
    said = blob_filesystem.first_line(str(error).splitlines())
    code = status(error)
    if code in {401, 403}:
        return f"access denied ({said}); set HF_TOKEN, and accept the terms of a gated repository"
    if code == 404:
        return "no such repository, file or folder; check the path, and HF_TOKEN if it is private"
    libraries, check = {"httpx", "httpcore", "huggingface_hub"}, "HF_ENDPOINT and the network"
    return blob_filesystem.remedy(error, code, said, _endpoint(), libraries, check)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")
