"""The manifest of a manifold, as JSON in storage."""

from typing import Any

from manifpt.outputs.formats import FileEntry


class IndexEntry(FileEntry):
    """The file of an approximate index: how it is searched, and its recall of the nearest real."""

    plan: dict[str, Any]
    recall: float
