"""Requests to an object store that the filesystems of fsspec do not offer."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import fsspec
import pyarrow.fs


class ListingPage(NamedTuple):
    """One answer to a request for a listing: keys with their bytes, and prefixes."""

    objects: list[tuple[str, int]]
    prefixes: list[str]


class Store(Protocol):
    """An object store; each method raises the errors of its library."""

    def filesystem(self) -> fsspec.AbstractFileSystem:
        """Return the filesystem of fsspec."""

    def arrow(self) -> pyarrow.fs.FileSystem:
        """Return a filesystem of pyarrow, which Ray's libraries need."""

    def pages(self, bucket: str, prefix: str, delimiter: str = "") -> Iterator[ListingPage]:
        """Yield the listing of a prefix, at most 1,000 items a page, each when it is needed.

        With a delimiter, keys that have one after the prefix are cut there, and are ``prefixes``.
        """

    def put(self, bucket: str, key: str, data: bytes, version: str | None) -> bool:
        """Write an object if it has a version, or does not exist (None); tell whether it was so."""

    def get(self, bucket: str, key: str) -> tuple[bytes, str]:
        """Return an object's content and its version."""

    def age(self, bucket: str, key: str) -> float | None:
        """Return the seconds since an object was written, by the store's clock; None without it."""
