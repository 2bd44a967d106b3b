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
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem()))


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
    if code:
        return 400 <= code < 500 and code not in {401, 403, 407, 408, 429}
    return isinstance(error, UnicodeError)


def remedy(error: Exception) -> str | None:
    """Return in one line how to mend an error of the hub; None if the error is of another kind."""
    said = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
    code, kind = status(error), type(error).__module__
    if code in {401, 403}:
        return f"access denied ({said}); set HF_TOKEN, and accept the terms of a gated repository"
    if code == 404:
        return "no such repository, file or folder; check the path, and HF_TOKEN if it is private"
    if code >= 500 or code in {408, 429}:
        return f"{_endpoint()} answers {code}; the same command goes on from here"
    if code:
        return f"{said}; check the path"
    if kind.startswith(("httpx", "httpcore", "huggingface_hub")) or isinstance(error, TimeoutError):
        where = f"cannot reach {_endpoint()} ({said or type(error).__name__})"
        return f"{where}; check HF_ENDPOINT and the network; the same command goes on from here"
    return None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")
