"""The manifest, the summary and the rows of attributions, as JSON and Parquet in storage."""

from typing import Literal, NotRequired, TypedDict

from manifpt.images.sources import InputsCard
from manifpt.outputs.formats import Manifest, PartEntry, RowCounts
from manifpt.outputs.work_rate import RowsOverTime

# The columns that mark images which the attributor has seen, or that look like such images.
Leak = Literal["in_training", "near_training", "near_manifold"]


class LeakCounts(TypedDict):
    """The number of images that each column of LEAKS marks.

    The columns in ``unavailable`` are null: the attributor or a manifold has no perceptual hashes.
    """

    in_training: int
    near_training: int
    near_manifold: int
    unavailable: list[str]


class VerdictRow(TypedDict):
    """An extreme row of attributions in a summary, with rounded numbers."""

    id: str
    prediction: str
    probability: float
    decision: str
    unknown_p: float | None


class Verdicts(TypedDict, total=False):
    """The numbers of images by prediction and decision, and the extreme rows."""

    predictions: dict[str, dict[str, int]]
    surest: list[VerdictRow]
    strangest: list[VerdictRow]


class AttributionFacts(Verdicts, total=False):
    """The facts in the record of a chunk, and their sums; a chunk without images has none."""

    leaks: LeakCounts
    decisions: dict[str, int]


class CopyCounts(TypedDict):
    """The numbers of exact and of near copies among the images."""

    exact: int
    near: int


class GroupCounts(TypedDict):
    """The number of groups, and of the images in them."""

    groups: int
    images: int


class WholeCounts(TypedDict, total=False):
    """The counts of the tables about all images together, as far as there are such tables."""

    duplicates: CopyCounts
    groups: GroupCounts


class ModelOrigin(TypedDict):
    """A model of MLflow: its place there, and the run that logged it.

    A registered model has a ``name`` and a ``version``, too.
    """

    uri: str
    run: str | None
    name: NotRequired[str]
    version: NotRequired[str]


class ModelFacts(TypedDict):
    """The attributor of an output: its folder, or its place in MLflow and what lies there."""

    model: str
    registered: NotRequired[ModelOrigin]


class AttributionSummary(RowCounts, AttributionFacts, WholeCounts, ModelFacts):
    """The summary of attributions, ``summary.json``.

    ``seconds`` is the time of the first run that finished, its start included. ``skipped`` counts
    items of the inputs that were left out, by reason. ``ensemble`` are the views that were asked
    for.
    """

    seconds: float
    images_per_second: float
    manifolds: list[str]
    inputs: InputsCard
    skipped: dict[str, int]
    ensemble: NotRequired[list[str]]
    group_by: NotRequired[str]


class AttributionsManifest(Manifest, AttributionSummary):
    """The manifest of attributions.

    ``claim`` is the key of the options alone; ``key`` covers the content of the inputs, too.
    ``retries`` is the number of tries of quarantined rows that came after.
    """

    claim: str
    files: list[PartEntry]
    rows_over_time: RowsOverTime | None
    retries: NotRequired[int]


class RankedSource(TypedDict):
    """A source that an image may be of, and its probability."""

    source: str
    probability: float


class DecidingTile(TypedDict):
    """A tile of an image, by its left and top, and the probability of the answer by it alone."""

    x: int
    y: int
    probability: float


class AttributionRow(TypedDict):
    """A row of ``attributions/``; the columns of the input that travel with it are not listed."""

    id: str
    uri: str
    sha256: str
    pixel_sha256: str
    perceptual_hash: int | None
    status: str
    source: str | None
    prediction: str
    probability: float
    decision: str
    top_k: list[RankedSource]
    neighbor_id: str | None
    distance: float | None
    percentile: float | None
    in_manifold: bool
    unknown_score: float | None
    unknown_p: float | None
    in_training: bool
    near_training: bool | None
    near_manifold: bool | None
    agreement: NotRequired[int]
    tiles: NotRequired[int]
    deciding_tiles: NotRequired[list[DecidingTile]]


class QuarantineRow(TypedDict):
    """A row of ``quarantine/``; the columns of the input are not listed."""

    id: str
    uri: str
    error: str
    message: str | None


class CopyRow(TypedDict):
    """A row of ``duplicates/``: an image that is a copy of others."""

    id: str
    sha256: str
    duplicate_of: str | None
    same: str | None
    near_duplicate_of: str | None
    distance: int | None


class GroupRow(TypedDict):
    """A row of ``groups/``."""

    group: str
    images: int
    counted: int
    prediction: str
    probability: float
    probability_low: float | None
    probability_high: float | None
    agreeing: float
    unknown: float
    unknown_p: float | None
    decision: str
