"""Numbers of an audit -> pass, warn or fail, by thresholds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

Verdict = Literal["pass", "warn", "fail"]
Kind = Literal["file", "content", "copies", "near"]
ORDER: tuple[Verdict, ...] = ("pass", "warn", "fail")


@dataclass(frozen=True)
class Thresholds:
    """The shares from which on a finding warns or fails.

    ``warn`` and ``fail`` are for properties of storage: the share of the label's entropy that a
    property explains, or the accuracy of a classifier, scaled to 0 at chance and 1 at certainty.
    Those of ``content`` are for properties that depend on the picture, too. ``copies`` are shares
    of images with an exact copy in another class or split, or with their prompt in another split;
    ``near`` those of images that look alike, as unlike images of simple subjects do.
    """

    warn: float = 0.01
    fail: float = 0.05
    content_warn: float = 0.6
    content_fail: float = 0.9
    copies_warn: float = 0.001
    copies_fail: float = 0.01
    near_warn: float = 0.05
    near_fail: float = 0.3

    def of(self, kind: Kind) -> tuple[float, float]:
        """Return the two thresholds of a kind of finding."""
        prefix = "" if kind == "file" else f"{kind}_"
        return getattr(self, f"{prefix}warn"), getattr(self, f"{prefix}fail")


USUAL = Thresholds()


@dataclass(frozen=True)
class Finding:
    """The finding about one property: the share that is judged, and the facts behind it."""

    name: str
    kind: Kind
    share: float
    verdict: Verdict
    facts: dict[str, float | str]

    def as_json(self) -> "FindingCard":
        """Return the finding as an object of JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "share": self.share,
            "verdict": self.verdict,
            "facts": self.facts,
        }


class FindingCard(TypedDict):
    """A finding in a report."""

    name: str
    kind: Kind
    share: float
    verdict: Verdict
    facts: dict[str, float | str]


def judged(
    name: str, kind: Kind, share: float, thresholds: Thresholds, **facts: float | str
) -> Finding:
    """Return a finding with its verdict; a share that reaches a threshold is judged by it."""
    warn, fail = thresholds.of(kind)
    verdict: Verdict = "fail" if share >= fail else "warn" if share >= warn else "pass"
    return Finding(name, kind, float(share), verdict, facts)


def overall(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict of all."""
    return max((finding.verdict for finding in findings), key=ORDER.index, default="pass")
