"""Inputs as the user names them, and the units of work that they are cut into."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NotRequired, TypedDict

from manifpt import storage
from manifpt.errors import public

SPLITS = ("manifold", "train", "validation", "test")
# Names of splits in known data sets.
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
CARD = "card.json"
# Files that hold many images, or list their URIs, by the ends of their names.
TARS = (".tar", ".tar.gz", ".tgz")
PARQUET = (".parquet", ".pq")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")

_NAMED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.+-]*)=(.+)$", re.DOTALL)


def split_named(name: str) -> str | None:
    """Return the split that a folder or a value means, None if it is no name of one."""
    return next((s for s, names in _SPLIT_NAMES.items() if name.lower() in names), None)


def stem(path: str) -> str:
    """Return a path without the ending that names the format of the file."""
    for ending in (*TARS, *PARQUET, *TABLES):
        path = path.removesuffix(ending)
    return path


@dataclass(frozen=True)
class Input:
    """One ``--input``: a URI, and the name of its source where ``NAME=URI`` gives one."""

    uri: str
    source: str | None = None
    split: str | None = None
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> "Input":
        """Read ``URI`` or ``NAME=URI``."""
        match = _NAMED.match(text)
        name, uri = match.groups() if match else (None, text)
        return cls(storage.absolute(uri), name, prefix=name or "")


@dataclass(frozen=True)
class Selection:
    """The images of a job: those of these splits and sources, and those that declare none."""

    splits: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None

    def keeps(self, source: str | None, split: str | None) -> bool:
        """Tell whether an image of this source and split is wanted."""
        return (self.splits is None or split is None or split in self.splits) and (
            self.sources is None or source is None or source in self.sources
        )


# The name of the source of real images.
REAL = "real"
# The reals of a benchmark that estimate the manifold.
MANIFOLD_REALS = Selection(splits=("manifold",), sources=(REAL,))


@dataclass(frozen=True)
class Reading:
    """The user's options of reading a unit.

    ``image_column`` holds the bytes in Parquet, ``id_column`` the ids, ``uri_column`` the URIs of a
    table of them; ``columns`` are metadata that are copied to the output. ``allow_private`` lets
    downloads reach addresses that are not public. A table in a bucket may name its own bucket and
    those of ``allow_buckets``, and local files with ``allow_local``. ``source_column`` and
    ``split_column`` name the columns of sources and splits; see ``labels``.
    """

    image_column: str | None = None
    id_column: str | None = None
    uri_column: str | None = None
    columns: tuple[str, ...] = ()
    allow_private: bool = False
    allow_buckets: tuple[str, ...] = ()
    allow_local: bool = False
    source_column: str | None = None
    split_column: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Reading":
        """Read an object of JSON that ``asdict`` wrote."""
        lists = {name: tuple(value.get(name, ())) for name in ("columns", "allow_buckets")}
        return cls(**{**value, **lists})

    def facts(self) -> dict[str, object]:
        """Return the fields for keys; newer fields are left out if unset, so old keys hold."""
        newer = {"allow_buckets", "allow_local", "source_column", "split_column"}
        return {name: v for name, v in asdict(self).items() if v or name not in newer}


AS_FOUND = Reading()


@dataclass(frozen=True)
class Unit:
    """A piece of input that one task reads.

    It is some files of a folder, one tar, one Parquet file of images, or some rows of a table of
    URIs. ``ids`` are those of the files, or the prefix of the ids inside the one container;
    ``bytes`` is the size of them all. For a table, ``rows`` are the first row and the one after
    the last, and ``offset`` is where the first begins in a text file.
    """

    kind: Literal["files", "tar", "parquet", "table"]
    uris: tuple[str, ...]
    ids: tuple[str, ...]
    source: str | None
    split: str | None
    bytes: int = 0
    rows: tuple[int, int] | None = None
    offset: int = 0
    reading: Reading = AS_FOUND

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Unit":
        """Read an object of JSON that ``asdict`` wrote, also one of an earlier version."""
        rows = value.get("rows")
        typed = {
            "uris": tuple(value["uris"]),
            "ids": tuple(value["ids"]),
            "rows": tuple(rows) if rows else None,
            "reading": Reading.from_json(value.get("reading", {})),
        }
        return cls(**{**value, **typed})

    @property
    def content(self) -> list[Any]:
        """Its content and reading: names and sizes, without the place of the files."""
        facts: list[Any] = [self.kind, self.ids, self.source, self.split, self.bytes]
        if self.rows is not None:
            facts.append(self.rows)
        if self.reading != AS_FOUND:
            facts.append(self.reading.facts())
        return facts


class InputsCard(TypedDict):
    """The inputs of a job in its manifest.

    ``given`` are the options as typed, without credentials; ``units`` and ``bytes`` are numbers,
    ``kinds`` counts the units by kind, ``content_key`` is the hash of ``content_key``. ``labels``
    are the columns of sources and splits, if the user named them; ``skipped`` counts items that
    were left out, by reason.
    """

    given: list[str]
    units: int
    bytes: int
    kinds: dict[str, int]
    sources: list[str]
    content_key: str
    labels: NotRequired[dict[str, str | None]]
    skipped: NotRequired[dict[str, int]]


class ContentKey:
    """A hash of the content of units, one after the other, to recognise an input."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"[")
        self._between = b""

    def add(self, unit: Unit) -> None:
        """Take the next unit in."""
        text = json.dumps(unit.content, sort_keys=True)
        self._hash.update(self._between + text.encode())
        self._between = b", "

    def hexdigest(self) -> str:
        """Return the hash of the units so far."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def content_key(units: Iterable[Unit]) -> str:
    """Hash the content of units (names and sizes, not places), to recognise an input."""
    key = ContentKey()
    for unit in units:
        key.add(unit)
    return key.hexdigest()


def describe(
    inputs: Sequence[str], units: Sequence[Unit], labels: Reading = AS_FOUND
) -> InputsCard:
    """Describe the inputs for manifests: name and place, kinds, sizes, sources and hash.

    ``labels``, the columns of sources and splits that the user named, are added to read them again.
    """
    kinds = [unit.kind for unit in units]
    given = [Input.parse(text) for text in inputs]
    found: InputsCard = {
        "given": [public(f"{i.source}={i.uri}" if i.source else i.uri) for i in given],
        "units": len(units),
        "bytes": sum(unit.bytes for unit in units),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "sources": sorted({unit.source for unit in units if unit.source is not None}),
        "content_key": content_key(units),
    }
    if labels.source_column or labels.split_column:
        columns = {"source_column": labels.source_column, "split_column": labels.split_column}
        found["labels"] = columns
    return found


def labels_of(described: InputsCard) -> Reading:
    """Return the columns that the user named for inputs which ``describe`` described."""
    labels = described.get("labels", {})
    return Reading(
        source_column=labels.get("source_column"), split_column=labels.get("split_column")
    )
