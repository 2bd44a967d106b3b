"""Counts of attributions on a page: domains, distributions of scores, intervals of shares."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from manifpt.attribution.unknown.decision import DECISIONS
from manifpt.report import charts

BINS = 20
# Names of one kind that a page lists and counts separately; all others are counted together.
MOST_LISTED, MOST_NAMES = 200, 50_000
OTHERS = "(others)"
SCORES = {
    "probability": ("probability of the answer", 1.0),
    "unknown_p": ("p-value: share of known images at least as strange", 1.0),
    "percentile": ("held-out reals that are nearer, per cent", 100.0),
}


def domain_of(uri: str) -> str:
    """Return the origin of an image: a host, a bucket, or a folder and its archive."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return parts.hostname or OTHERS
    if parts.scheme in ("s3", "gs", "az"):
        return f"{parts.scheme}://{parts.netloc}"
    folder = uri.partition("#")[0] if "#" in uri else uri.rpartition("/")[0]
    return "/".join(folder.rsplit("/", 2)[-2:]) or OTHERS


@dataclass
class Totals:
    """Counts of the rows of attributions that were read, in bounded memory."""

    rows: int = 0
    domains: dict[str, Counter[str]] = field(default_factory=dict)
    bins: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        self.rows += table.num_rows
        decisions = np.array(table["decision"].to_pylist(), dtype=object)
        for uri, decision in zip(table["uri"].to_pylist(), decisions, strict=True):
            name = domain_of(uri or "")
            if name not in self.domains and len(self.domains) >= MOST_NAMES:
                name = OTHERS
            self.domains.setdefault(name, Counter())[decision] += 1
        for score, (_, most) in SCORES.items():
            values = table[score].cast(pa.float64()).to_numpy(zero_copy_only=False)
            counts = self.bins.setdefault(score, {})
            for decision in dict.fromkeys(decisions.tolist()):
                some = values[decisions == decision]
                found, _ = np.histogram(some[~np.isnan(some)], BINS, (0, most))
                counts[decision] = counts.get(decision, np.zeros(BINS, np.int64)) + found

    def histograms(self) -> Iterator[tuple[str, charts.Chart]]:
        """Yield a chart for each score that exists."""
        for score, (title, most) in SCORES.items():
            counts = self.bins.get(score, {})
            kept = {name: counts[name].tolist() for name in DECISIONS if name in counts}
            if any(map(sum, kept.values())):
                edges = np.linspace(0, most, BINS + 1)
                yield score, charts.histogram(kept, edges.tolist(), title)


def wilson(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, JASA 1927)."""
    share, square = count / total, z * z / total
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * np.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


class CountRow(NamedTuple):
    """A row of a table of counts: a name, its images, and these by decision."""

    name: str
    images: int
    decisions: dict[str, int]


def count_rows(counts: Mapping[str, Mapping[str, int]]) -> list[CountRow]:
    """Return rows of a table of names by decision, those with most images first."""
    totals = {name: sum(by.values()) for name, by in counts.items()}
    order = sorted(totals, key=lambda name: (-totals[name], name))[:MOST_LISTED]
    return [
        CountRow(name, totals[name], {d: counts[name].get(d, 0) for d in DECISIONS})
        for name in order
    ]
