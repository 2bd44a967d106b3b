"""The JSON objects that outputs of all kinds have: entries of files, records of chunks, counts.

They are typed dictionaries and not classes: an output of another version may have keys that this
one does not know, and they must survive when a manifest is read, changed and written. The type says
which keys there are, and mypy checks each use. A room declares the manifest of its own outputs in
the same way, beside the code that writes it.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, TypeVar, final

from manifpt.storage import Written


class FileEntry(Written):
    """A file of an output: its path inside the output's folder, its size and its hash."""

    path: str


class PartEntry(FileEntry):
    """A file of rows, or a tar: the folder of the table that it belongs to, and its rows."""

    folder: str
    rows: int


class RolledEntry(PartEntry):
    """A file in place of several parts: the units of its rows, in order, and the rows of each."""

    units: list[list[int]]


class DuplicatesEntry(PartEntry):
    """A file of the table of duplicates: the numbers of ``exact`` and of ``near`` copies."""

    exact: int
    near: int


class RowCounts(TypedDict):
    """Rows of an input: ``rows_in`` = ``ok`` + ``quarantined``, and the latter by error code."""

    rows_in: int
    ok: int
    quarantined: int
    by_error: dict[str, int]


@final
class ChunkRecord(TypedDict):
    """The record of a finished chunk: its place, its rows, its parts, and facts of its stage.

    ``last`` says whether it is the last chunk of its unit. ``started`` and ``written`` are seconds
    since 1970: the start of the run, and the end of the chunk, whose work took ``seconds``. The
    type of ``facts`` is the stage's.
    """

    unit: int
    chunk: int
    last: bool
    rows_in: int
    ok: int
    by_error: dict[str, int]
    started: float
    seconds: float
    written: float
    parts: list[PartEntry]
    facts: Any


class ChunkRow(TypedDict):
    """A chunk on its way from a reader to an actor: its place, and its table as bytes."""

    unit: int
    chunk: int
    last: bool
    table: bytes


class SentChunk(ChunkRow):
    """A chunk as an actor gets it: ``failed`` is the error that ended its reading, or empty.

    It was ``read`` at that time, in seconds since 1970.
    """

    failed: str
    read: float


@final
class FailedChunk(TypedDict):
    """The answer of an actor in place of a record: the error that ends the job, as text."""

    failed: str


class SpaceCard(TypedDict):
    """The name of a space and the size of its images; each space adds its own settings."""

    name: str
    size: int


class WeightsEntry(TypedDict):
    """The file of a network's weights inside an output, and its hash."""

    path: str
    sha256: str


class FileList(FileEntry):
    """A separate file that lists files of an output, one a line; ``rows`` are its lines."""

    rows: int


class RunMark(TypedDict, total=False):
    """A process of a run: its host and id, when it began, and the start of host and process.

    ``begun`` is in seconds since 1970; ``start`` is missing where the system does not tell it.
    """

    host: str
    pid: int
    begun: float
    start: str


class Plan(RunMark):
    """The content of ``_plan.json``: the output, and the run that works on it, if one does.

    ``clearing`` are kinds of old outputs whose files must be removed first, joined by ``+``.
    """

    kind: str
    key: str
    token: NotRequired[str]
    clearing: NotRequired[str]


class Manifest(TypedDict):
    """The keys of all manifests; ``claims`` adds those that no job sets.

    ``key`` is a hash of everything that determines the content. ``manifpt``, ``commit`` and
    ``versions`` are those of the run that finished the output; earlier outputs have no commit. If
    ``file_lists`` is there, ``files`` is empty in storage, and filled when the manifest is read.
    """

    kind: NotRequired[str]
    key: NotRequired[str]
    manifpt: NotRequired[str]
    commit: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    written: NotRequired[str]
    file_lists: NotRequired[list[FileList]]


# A typed dictionary of any kind.
Document = TypeVar("Document", bound=Mapping[str, Any])
