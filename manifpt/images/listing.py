"""List the files of a folder, or of a prefix in an object store, one after the other.

Memory holds only the names of the folders that are open, or one page of an object store's answer.
Local files come in the order of their whole paths. An object store has its own order, which on S3
is the same.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from manifpt import storage

# A function that is given a folder's path inside the root ("" for the root itself), and tells
# whether to list that folder.
Enter = Callable[[str], bool]

# Names that this project and others give to files that hold no data. Other names that begin with
# "_" are read, because some cameras write such names.
MARKERS = {
    "__MACOSX",
    "__pycache__",
    "_alive.json",
    "_attempts",
    "_buckets",
    "_common_metadata",
    "_cost.json",
    "_delta_log",
    "_embedded",
    "_epochs",
    "_metadata",
    "_now.json",
    "_plan.json",
    "_records",
    "_retry.json",
    "_spark_metadata",
    "_SUCCESS",
    "_temporary",
    "_training",
    "_tune",
    "_work",
}
MARKED = ("_append-", "_committed_", "_records-r", "_started_")


class Found(NamedTuple):
    """A file and its size in bytes; ``plain`` is False for pipes, broken links, ..."""

    uri: str
    bytes: int
    plain: bool = True


@dataclass
class Listing:
    """Counts of the items that one listing left out, by reason, and the folders it has seen."""

    skipped: Counter[str] = field(default_factory=Counter)
    folders: set[tuple[int, int]] = field(default_factory=set)


def hidden(path: str) -> bool:
    """Tell whether a path is left out, because of its name or of a folder's name in it."""
    return any(
        part.startswith((".", *MARKED)) or part in MARKERS for part in path.split("/") if part
    )


def files(uri: str, seen: Listing, enter: Enter | None = None) -> Iterator[Found]:
    """Yield the files under a folder or prefix, or the one file that ``uri`` is.

    Hidden files are left out, and also folders that ``enter`` refuses, or that were ``seen``
    before. An object store has no folders, and lists all files.
    """
    if storage.is_remote(uri):
        return _objects(uri, seen)
    return _local(uri, seen, enter)


def _local(root: str, seen: Listing, enter: Enter | None) -> Iterator[Found]:
    with storage.explain_errors(root):
        if os.path.isdir(root):
            yield from _walk(root, seen, enter)
        else:
            yield from _found(root)


def _found(path: str) -> Iterator[Found]:
    """Yield a file, if it still exists."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        if os.path.lexists(path):  # a broken link, or one to itself
            yield Found(path, 0, plain=False)
        return
    plain = stat.S_ISREG(status.st_mode)
    yield Found(path, status.st_size if plain else 0, plain)


def _walk(root: str, seen: Listing, enter: Enter | None) -> Iterator[Found]:
    """Walk a folder in the order of whole paths; visit each folder once, despite links."""
    if enter is not None and not enter(""):
        return
    open_ = [("", iter(_once(root, seen, _names)))]
    while open_:
        folder, names = open_[-1]
        name = next(names, None)
        if name is None:
            open_.pop()
            continue
        path = os.path.join(folder, name.rstrip("/"))
        whole = os.path.join(root, path)
        if not name.endswith("/"):
            yield from _found(whole)
        elif enter is None or enter(path):
            try:
                open_.append((path, iter(_once(whole, seen, _names))))
            except OSError as error:
                if not storage.blames_file(error, whole):
                    raise
                seen.skipped["unreadable_folder"] += 1


def _once(folder: str, seen: Listing, names: Callable[[str, Listing], list[str]]) -> list[str]:
    """Return the names in a folder, or none if it was seen before."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in seen.folders:
        seen.skipped["folder_linked_again"] += 1
        return []
    seen.folders.add(here)
    return names(folder, seen)


def _names(folder: str, seen: Listing) -> list[str]:
    """Return the names in a folder, sorted as whole paths: names of folders end in a slash."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if hidden(entry.name):
                seen.skipped["hidden"] += 1
            else:
                found.append(entry.name + "/" if _is_folder(entry) else entry.name)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def objects(uri: str, prefix: str, seen: Listing) -> Iterator[Found]:
    """Yield the objects with keys that begin with ``prefix``, in the bucket of ``uri``."""
    bucket = f"{storage.scheme(uri)}://{storage.bucket_and_key(uri)[0]}"
    for page in storage.pages(uri, prefix):
        for key, size in page.objects:
            if key.endswith("/"):
                seen.skipped["folder_marker"] += 1
            else:
                yield Found(f"{bucket}/{key}", size)


def _objects(uri: str, seen: Listing) -> Iterator[Found]:
    key, empty = storage.bucket_and_key(uri)[1], True
    for found in objects(uri, f"{key}/" if key else "", seen):
        empty = False
        if hidden(found.uri[len(uri) + 1 :]):
            seen.skipped["hidden"] += 1
        else:
            yield found
    if empty and key:
        fs, path = storage.filesystem(uri)
        with storage.explain_errors(uri), suppress(FileNotFoundError):
            info = fs.info(path)
            if info["type"] == "file":
                yield Found(uri, int(info["size"]))


class Inside(NamedTuple):
    """The content of a folder: sorted names of folders, and of files; counts of items left out."""

    folders: list[str]
    files: list[str]
    skipped: Counter[str]


def inside(uri: str) -> Inside:
    """Return a folder's content; in an object store with files there, only its first page."""
    found = _prefixes(uri) if storage.is_remote(uri) else _folders(uri)
    found.folders.sort()
    return found


def _prefixes(uri: str) -> Inside:
    found = Inside([], [], Counter())
    key = storage.bucket_and_key(uri)[1]
    for page in storage.pages(uri, f"{key}/" if key else "", "/"):
        for item, _ in page.objects:
            if item.endswith("/"):
                found.skipped["folder_marker"] += 1
            elif hidden(storage.base_name(item)):
                found.skipped["hidden"] += 1
            else:
                found.files.append(storage.base_name(item))
        for name in map(storage.base_name, page.prefixes):
            if hidden(name):
                found.skipped["hidden"] += 1
            else:
                found.folders.append(name)
        if found.files:
            break
    return found


def _folders(uri: str) -> Inside:
    if not os.path.isdir(uri):
        return Inside([], [], Counter())
    seen = Listing()
    with storage.explain_errors(uri):
        names = _names(uri, seen)
    others = [name for name in names if not name.endswith("/")]
    if not any(os.path.isfile(os.path.join(uri, name)) for name in others):
        seen.skipped["not_a_file"] += len(others)
        others = []
    return Inside([name.rstrip("/") for name in names if name.endswith("/")], others, +seen.skipped)
