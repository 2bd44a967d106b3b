"""The files of a folder or of a prefix in an object store, one after the other.

Nothing holds more than one folder's names, or one page of an object store's answers. The order is
that of the whole paths; an object store's is its own, which is the same on S3.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from manifpt import s3, storage

# Told the path of a folder inside the root, "" for the root: whether to look into it.
Enter = Callable[[str], bool]


class Found(NamedTuple):
    """A file and its size in bytes."""

    uri: str
    bytes: int


def hidden(path: str) -> bool:
    """Tell whether a path inside an input is left out, as its name or that of a folder says."""
    return path.startswith((".", "_")) or "/." in path or "/_" in path


def files(uri: str, enter: Enter | None = None) -> Iterator[Found]:
    """Yield the files under a folder or prefix, or the one file that ``uri`` is.

    Hidden ones are left out, as are folders that ``enter`` refuses; an object store has no
    folders, and lists all.
    """
    if storage.is_s3(uri):
        return _objects(uri)
    return _local(uri, enter)


def _local(root: str, enter: Enter | None) -> Iterator[Found]:
    with storage.explained(root):
        if os.path.isfile(root):
            yield Found(root, os.path.getsize(root))
        elif os.path.isdir(root):
            yield from _walk(root, "", enter, ())


def _walk(
    root: str, inside: str, enter: Enter | None, above: tuple[tuple[int, int], ...]
) -> Iterator[Found]:
    """Walk a folder in the order of whole paths; a link back to a folder above is not followed."""
    if enter is not None and not enter(inside):
        return
    folder = os.path.join(root, inside)
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name in _names(folder):
        path = os.path.join(inside, name.rstrip("/"))
        if name.endswith("/"):
            yield from _walk(root, path, enter, (*above, here))
        else:
            whole = os.path.join(root, path)
            with suppress(FileNotFoundError):  # it was removed in the meantime
                yield Found(whole, os.stat(whole).st_size)


def _names(folder: str) -> list[str]:
    """Return what a folder holds; folders end in a slash, which sorts them among whole paths."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name + "/" if entry.is_dir() else entry.name
            for entry in entries
            if not hidden(entry.name) and (entry.is_dir() or entry.is_file())
        )


def _pages(uri: str, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of an object store's answer, each as it is needed."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    with storage.explained(uri):
        pages = s3.client().get_paginator("list_objects_v2")
        yield from pages.paginate(Bucket=bucket, Prefix=prefix, **options)


def key_of(uri: str) -> str:
    """Return the key, or the prefix of keys, of an s3:// URI."""
    return uri.removeprefix("s3://").partition("/")[2]


def objects(uri: str, prefix: str) -> Iterator[Found]:
    """Yield the objects of the bucket of ``uri`` whose keys begin with ``prefix``."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    for page in _pages(uri, prefix):
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield Found(f"s3://{bucket}/{entry['Key']}", int(entry["Size"]))


def _objects(uri: str) -> Iterator[Found]:
    key, empty = key_of(uri), True
    for found in objects(uri, f"{key}/" if key else ""):
        empty = False
        if not hidden(found.uri[len(uri) + 1 :]):
            yield found
    if empty and key:
        fs, path = storage.filesystem(uri)
        with suppress(FileNotFoundError), storage.explained(uri):
            info = fs.info(path)
            if info["type"] == "file":
                yield Found(uri, int(info["size"]))


def folders(uri: str) -> list[str]:
    """Return the names of the folders in a folder, or none where it holds files, too."""
    if storage.is_s3(uri):
        key = key_of(uri)
        names = []
        for page in _pages(uri, f"{key}/" if key else "", Delimiter="/"):
            if any(not hidden(storage.base_name(e["Key"])) for e in page.get("Contents", ())):
                return []
            names += [storage.base_name(e["Prefix"]) for e in page.get("CommonPrefixes", ())]
        return sorted(name for name in names if not hidden(name))
    if not os.path.isdir(uri):
        return []
    with storage.explained(uri):
        names = _names(uri)
    return sorted(n.rstrip("/") for n in names) if all(n.endswith("/") for n in names) else []
