"""The report of an audit and its verdict, as JSON in storage."""

from typing import Any, NotRequired, TypedDict

from manifpt.audit.verdict import FindingCard, Verdict
from manifpt.images.sources import InputsCard
from manifpt.outputs.formats import FileEntry, Manifest


class AuditReport(TypedDict):
    """The report of an audit.

    Of ``images`` images, ``sampled`` were looked at for statistics, and ``compared`` for copies.
    ``classes`` has for each class its number of images, the commonest values of each property with
    their shares, and quantiles of numbers. ``limits`` is the text on leaks that it does not see.
    """

    verdict: Verdict
    images: int
    sampled: int
    compared: int
    classes: dict[str, dict[str, Any]]
    thresholds: dict[str, float]
    findings: list[FindingCard]
    limits: str


class AuditManifest(Manifest, AuditReport):
    """The manifest of an audit: its report, and the rows of its input if it read all of them."""

    inputs: InputsCard
    files: list[FileEntry]
    rows_in: NotRequired[int]
    ok: NotRequired[int]
    quarantined: NotRequired[int]
    by_error: NotRequired[dict[str, int]]


class FindingSummary(TypedDict):
    """A property that does not pass, in a verdict."""

    name: str
    share: float
    verdict: Verdict


class AuditVerdict(TypedDict):
    """The verdict on a training's images, in the manifest of its attributor.

    ``says`` is the verdict as a sentence; ``note`` is there if it is ``fail``.
    """

    verdict: Verdict
    images: int
    says: str
    findings: list[FindingSummary]
    note: NotRequired[str]
