"""The explanation of a verdict as ``explain`` prints it, as JSON."""

from typing import TypedDict

from manifpt.attribution.crawl.crawl_format import RankedSource


class ShownVerdict(TypedDict):
    """The main columns of an attribution."""

    prediction: str
    probability: float
    decision: str
    unknown_p: float | None


class DegradedVerdict(ShownVerdict):
    """The verdict on a degraded copy: ``same`` if it is that on the image itself."""

    degradation: str
    same: bool


class HeadVote(TypedDict):
    """The first answers of a head by itself, and its weight in the fusion."""

    head: str
    weight: float
    answers: list[RankedSource]


class ScoreShare(TypedDict):
    """A score of the unknown; ``p`` is the share of known images that are at least as strange."""

    score: str
    value: float
    p: float


class Strangeness(TypedDict):
    """All scores of the unknown, and the p-value of their combination.

    At ``limit`` or below, the image is unknown.
    """

    p: float
    limit: float
    scores: list[ScoreShare]


class NearestReal(TypedDict):
    """A real near an image; ``percentile`` of the held-out reals are nearer to the manifold."""

    id: str
    distance: float
    percentile: float


class TileEvidence(TypedDict):
    """What a tile says of a source by itself: its number, its left and top, and its support."""

    tile: int
    x: int
    y: int
    probability: float
    log_probability: float
    support: float


class Explanation(ShownVerdict):
    """The explanation of the verdict on one image.

    ``nearest_reals`` are by space. ``tile_evidence`` has the strongest tile first, and is empty
    without tiles. ``changed_by`` are the first degradations of each kind that change the verdict.
    """

    image: str
    model: str
    top_k: list[RankedSource]
    votes: list[HeadVote]
    unknown: Strangeness | None
    nearest_reals: dict[str, list[NearestReal]]
    tile_evidence: list[TileEvidence]
    leaks: dict[str, bool | None]
    degraded: list[DegradedVerdict]
    changed_by: list[str]
