"""Types of the manifests of artifacts and exports, and of the certificate of `verify`, as JSON."""

from typing import Any, NotRequired, TypedDict

from manifpt.images.degraded_copies import AugmentationCard
from manifpt.manifold.manifold_format import ProjectionCard
from manifpt.outputs.formats import FileEntry, Manifest, PartEntry, RowCounts

# Numbers of images, or tiles, by split and source.
SplitCounts = dict[str, dict[str, int]]


class ChannelSums(TypedDict):
    """Sums over artifacts: numbers of each channel, and of each their sum and sum of squares."""

    count: int
    sum: list[float]
    square: list[float]


class ChannelMoments(TypedDict, total=False):
    """Mean and standard deviation of each channel; empty where there are no artifacts."""

    mean: list[float]
    std: list[float]


class ArtifactChunkFacts(TypedDict, total=False):
    """The facts of a chunk of artifacts; a chunk without rows has none.

    ``moments`` are by the folder of a space, and by split. ``classes`` are numbers of images,
    ``tiles`` those of rows where images have tiles. ``split_by`` are the images with and without a
    value of the column that splits them.
    """

    moments: dict[str, dict[str, ChannelSums]]
    classes: SplitCounts
    tiles: SplitCounts
    split_by: list[int]


class ArtifactFacts(TypedDict):
    """The settings that decide the artifacts of an image in one space.

    ``space``, ``decode`` and ``projection`` are cards. ``shape`` is that of an artifact. Images
    themselves, and their vectors in a plain space, have no manifold and no projection.
    """

    space: Any
    shape: list[int]
    decode: Any
    manifold: str | None
    manifold_sha256: str | None
    projection: ProjectionCard | None


class AugmentCard(AugmentationCard):
    """The degraded copies beside images of a size: the card of an ``Augmentation``, and a rule's.

    The rule is that by which the original is decoded first.
    """

    size: int
    tiles: NotRequired[int]


class SplitByCounts(TypedDict):
    """The images split by the value of a column, and those that have none there."""

    by_value: int
    without_value: int


class SplitByCard(SplitByCounts):
    """The column that splits images, and their numbers."""

    column: str


class ImageCounts(RowCounts):
    """The images of artifacts, by split and source.

    ``classes`` counts degraded copies, too, and ``copies`` them alone; ``tiles`` are the rows.
    """

    classes: SplitCounts
    tiles: NotRequired[SplitCounts]
    augment: NotRequired[AugmentCard]
    copies: NotRequired[int]
    split_by: NotRequired[SplitByCard]


class ArtifactCounts(ImageCounts):
    """The inputs of artifacts and their images; the folder of ``embeddings``, if those were read.

    Artifacts of several spaces have them in common.
    """

    inputs: Any
    embeddings: NotRequired[str]


class ArtifactsManifest(Manifest, ArtifactFacts, ArtifactCounts):
    """The manifest of artifacts in one space; ``moments`` are by split.

    ``properties`` is the file of the properties of a sample of the image files, for an audit.
    """

    files: list[PartEntry]
    moments: dict[str, ChannelMoments]
    properties: NotRequired[FileEntry]


class CombinationManifest(Manifest, ArtifactCounts):
    """The manifest of a folder with artifacts of several spaces; ``members`` are their folders.

    ``files`` are those of the quarantine.
    """

    members: list[str]
    files: list[PartEntry]


class ExportManifest(Manifest):
    """The manifest of an export: its ``input``, of a kind, and the vectors of it."""

    input: str
    of: str
    space: Any
    rows: int
    dimension: int
    dtype: str
    files: list[PartEntry]


class Mismatch(TypedDict):
    """What is wrong with the artifact, or the real, of an id; None means all of them."""

    id: str | None
    what: str


class Certificate(TypedDict):
    """The result of a check of artifacts; ``shards`` are hashes of the manifold's, by path."""

    rows_checked: int
    reals_checked: int
    mismatches: int
    what: list[Mismatch]
    largest_distance_error: float
    seed: int
    manifold: str
    manifold_sha256: str
    shards: dict[str, str]
    artifacts: str
    artifacts_key: str
    seconds: float
    written: str
    manifpt: str
