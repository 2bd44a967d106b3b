"""The manifest of a manifold, and the card of a projection onto one, as JSON in storage."""

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from manifpt.images.decode import DecodeCard
from manifpt.images.sources import InputsCard
from manifpt.outputs.formats import (
    FileEntry,
    Manifest,
    PartEntry,
    RowCounts,
    SpaceCard,
    WeightsEntry,
)

if TYPE_CHECKING:
    from torch import Tensor


class PlanCard(TypedDict, total=False):
    """The fields of a ``SearchPlan``; plans of earlier versions may have fewer."""

    method: str
    multiply: str
    directions: int
    factory: str
    candidates: int
    float16: bool


class ProjectionCard(TypedDict):
    """The fields of a ``Projection``; the last two are there only if they are set."""

    kind: str
    neighbours: int
    ridge: float
    geometry: str | None
    learned: NotRequired[str]
    whitened: NotRequired[bool]


class IndexEntry(FileEntry):
    """The file of an approximate index: how it is searched, and its recall of the nearest real."""

    plan: PlanCard
    recall: float


class ShardEntry(TypedDict):
    """A shard: its reals, the copies that were left out of it, and its files.

    A shard without reals has no files, and no manifest lists it. ``content`` is the hash of its
    reals (see ``embed.content_of``); ``keys`` are those of search by bounds.
    """

    reals: int
    duplicates: NotRequired[int]
    content: NotRequired[str]
    rows: NotRequired[FileEntry]
    vectors: NotRequired[FileEntry]
    keys: NotRequired[FileEntry]


class TimingCard(TypedDict):
    """The seconds that a plan took, by the kind of the queries."""

    plan: PlanCard
    seconds: dict[str, float]


class ChosenPlans(TypedDict):
    """The plans of exact search by name, the name of the fastest, and all that were timed."""

    plans: dict[str, PlanCard]
    chosen: str
    measured: list[TimingCard]


class SearchCard(ChosenPlans):
    """The files of search, beside its plans: the basis of bounds, and an approximate index."""

    basis: FileEntry | None
    index: IndexEntry | None


class NetworkState(TypedDict):
    """A geometry or a denoiser as torch writes it: the arguments that make it, and its weights."""

    sizes: dict[str, Any]
    weights: "dict[str, Tensor]"


class HeldOut(TypedDict):
    """The number of held-out reals, and percentiles 0 to 100 of their distance to the others."""

    reals: int
    distances: list[float]


class InputFacts(RowCounts):
    """The rows of the inputs of a manifold, and their description."""

    inputs: InputsCard


class AppendedReals(InputFacts):
    """The reals that one call of ``append`` gave; ``key`` is a hash of their inputs."""

    key: str


class Appended(AppendedReals):
    """One call of ``append``, and the number of its reals that were there already."""

    duplicates: int


class DerivedFrom(TypedDict):
    """The manifold whose reals another one takes."""

    uri: str
    sha256: str


class ManifoldManifest(Manifest, InputFacts):
    """The manifest of a manifold in one space.

    ``content_sha256`` is the hash by which attributors know it. ``shape`` is that of a vector.
    ``obsolete`` are folders of shards that the next compaction removes; ``compacted`` has the
    numbers of shards ``from`` before and ``to`` after each one so far.
    """

    space: SpaceCard
    weights: WeightsEntry | None
    shape: list[int]
    decode: DecodeCard
    metric: str
    reals: int
    duplicates: int
    shards: list[ShardEntry]
    search: SearchCard
    held_out: HeldOut
    appended: list[Appended]
    quarantine: list[PartEntry]
    content_sha256: str
    whitening: NotRequired[FileEntry]
    geometry: NotRequired[FileEntry]
    denoiser: NotRequired[FileEntry]
    derived_from: NotRequired[DerivedFrom]
    obsolete: NotRequired[list[str]]
    compacted: NotRequired[list[dict[str, int]]]


class ManifoldsManifest(Manifest, InputFacts):
    """The manifest of a folder with one manifold a space; ``members`` are their folders."""

    members: list[str]
    content_sha256: str
    reals: int
    duplicates: int
    quarantine: list[PartEntry]
