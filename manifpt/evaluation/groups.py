"""The accuracy for groups of test images, against their size and their foreign images.

The share of groups that are called unknown is measured, too, for known sources and for sources that
the attributor has never seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from manifpt import outputs, storage
from manifpt.attribution.crawl.grouping import COORDINATES
from manifpt.attribution.crawl.pooling import EPS, Pooling, log_evidence
from manifpt.attribution.crawl.registered import opened_model
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import USUAL, Rule
from manifpt.attribution.unknown.open_set import auroc
from manifpt.evaluation.evaluation_format import (
    EvaluationManifest,
    GroupsReport,
    KnownGroups,
    UnknownGroups,
)
from manifpt.evaluation.score_report import SCORES, UNKNOWN

SIZES, FOREIGN, SEEDS = (1, 2, 5, 10, 20, 50), (0.0, 0.1, 0.2), (0, 1, 2)
GROUPS = 100  # a class, a seed
# The first of these groups are tested for being unknown, which takes milliseconds each.
ASKED = 20
# Pooling as if no image could be foreign, to show the effect of the share eps.
PLAIN = 1e-9
RESULT = "groups.json"


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of N test images: N x K probabilities, sources, and N x D coordinates or None."""

    probabilities: np.ndarray
    sources: np.ndarray
    coordinates: np.ndarray | None = None

    @classmethod
    def read(cls, uris: Sequence[str]) -> "Scores":
        """Return the scores in some files."""
        tables = [storage.read_parquet(uri) for uri in uris]
        probabilities = np.array([p for t in tables for p in t["probabilities"].to_pylist()])
        sources = np.array([name for t in tables for name in t["source"].to_pylist()], dtype=object)
        coordinates = None
        if all(COORDINATES in t.column_names for t in tables):
            rows = [row for t in tables for row in t[COORDINATES].to_pylist()]
            coordinates = np.array(rows, dtype=np.float32)
        return cls(probabilities, sources, coordinates)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of images of each source."""
        names, counts = np.unique(self.sources.astype(str), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))


def drawn_groups(
    sources: np.ndarray, of: str, size: int, foreign: int, rng: np.random.Generator
) -> np.ndarray:
    """Return GROUPS groups of a source as rows of N images, GROUPS x size.

    Each group has ``foreign`` images of other sources; no image is in a group twice.
    """
    own, others = np.flatnonzero(sources == of), np.flatnonzero(sources != of)
    parts = [
        rows[rng.random((GROUPS, len(rows))).argsort(1)[:, :count]]
        for rows, count in ((own, size - foreign), (others, foreign))
    ]
    return np.concatenate(parts, axis=1)


def unknown_ps(scores: Scores, groups: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Return the p-values of the first ASKED of some groups; empty where there are none."""
    if scores.coordinates is None:
        return np.array([])
    found = [pooling.unknown_p(scores.coordinates[rows]) for rows in groups[:ASKED]]
    return np.array([p for p in found if p is not None])


class KnownOutcome(NamedTuple):
    """The outcome of groups of known sources with a number of foreign images, one value a seed.

    Accuracies are means over the classes that have enough images; ``plain_accuracies`` are without
    a share for foreign images. ``unknown_p`` are p-values.
    """

    foreign: int
    accuracies: list[float]
    plain_accuracies: list[float]
    unknown_p: list[np.ndarray]


def known_groups(scores: Scores, pooling: Pooling, size: int) -> Iterator[KnownOutcome]:
    """Yield the outcome of groups of a size for each number of foreign images."""
    priors, classes = np.array(pooling.priors), pooling.classes
    evidence = [log_evidence(scores.probabilities, priors, eps) for eps in (EPS, PLAIN)]
    names = [name for name in classes if scores.counts.get(name, 0) >= size]
    for foreign in sorted({int(share * size + 0.5) for share in FOREIGN}) if names else ():
        outcome = KnownOutcome(foreign, [], [], [])
        for seed in SEEDS:
            rng = np.random.default_rng([seed, size, foreign])
            groups = {
                name: drawn_groups(scores.sources, name, size, foreign, rng) for name in names
            }
            ways = zip(evidence, (outcome.accuracies, outcome.plain_accuracies), strict=True)
            for values, accuracies in ways:
                right = [
                    (values[g].sum(1).argmax(1) == classes.index(name)).mean()
                    for name, g in groups.items()
                ]
                accuracies.append(float(np.mean(right)))
            ps = [unknown_ps(scores, g, pooling) for g in groups.values()]
            outcome.unknown_p.append(np.concatenate(ps))
        yield outcome


def unknown_groups(
    unknown: Scores, known: Sequence[np.ndarray], pooling: Pooling, size: int
) -> list[UnknownGroups]:
    """Return a row for each source with enough images; ``known`` are p-values of known groups."""
    rows = []
    for name in sorted(name for name, count in unknown.counts.items() if count >= size):
        row: UnknownGroups = {"source": name, "size": size, "found": [], "aurocs": []}
        for seed, ps in zip(SEEDS, known, strict=True):
            groups = drawn_groups(
                unknown.sources, name, size, 0, np.random.default_rng([seed, size])
            )
            mine = unknown_ps(unknown, groups, pooling)
            row["found"].append(float((mine <= pooling.rule.false_rejection).mean()))
            row["aurocs"].append(auroc(-ps, -mine))
        rows.append(row)
    return rows


def measured(scores: Scores, unknown: Scores | None, pooling: Pooling, size: int) -> GroupsReport:
    """Return rows of groups of a size: of ``known`` sources, and one for each ``unknown``.

    ``false_rejections`` and ``found`` are shares of groups that are called unknown, ``aurocs`` of
    the p-values of known and unknown groups, one a seed.
    """
    limit = pooling.rule.false_rejection
    outcomes = list(known_groups(scores, pooling, size))
    ps = outcomes[0].unknown_p if outcomes else []
    asked = any(map(len, ps))

    def rejections(one: KnownOutcome) -> list[float] | None:
        return [float((p <= limit).mean()) for p in one.unknown_p] if asked else None

    known: list[KnownGroups] = [
        {
            "size": size,
            "foreign": one.foreign,
            "accuracies": one.accuracies,
            "plain_accuracies": one.plain_accuracies,
            "false_rejections": rejections(one),
        }
        for one in outcomes
    ]
    rows = unknown_groups(unknown, ps, pooling, size) if unknown is not None and asked else []
    return {"known": known, "unknown": rows}


def _measured(
    output: str, files: dict[str, list[str]], pooling: Pooling, size: int
) -> GroupsReport:
    read = {
        folder: Scores.read([storage.join(output, path) for path in paths])
        for folder, paths in files.items()
        if paths
    }
    return measured(read[SCORES], read.get(UNKNOWN), pooling, size)


def measure_groups(output: str, rule: Rule = USUAL) -> GroupsReport:
    """Draw groups from the scores of a finished evaluation; write and return the rows."""
    import ray

    manifest: EvaluationManifest = outputs.require(output, "evaluation", "--output")
    with opened_model(manifest["model"]) as found:
        pooling = Pooling.of(TrainedAttributor.open(found.attributor), rule=rule)
    files = {
        folder: [file["path"] for file in manifest["files"] if file["folder"] == folder]
        for folder in (SCORES, UNKNOWN)
    }
    task, shared = ray.remote(num_cpus=1)(_measured), ray.put(pooling)
    asked = [task.remote(output, files, shared, size) for size in SIZES]
    parts: list[GroupsReport] = ray.get(asked)
    made: GroupsReport = {
        "known": [row for part in parts for row in part["known"]],
        "unknown": [row for part in parts for row in part["unknown"]],
    }
    storage.write_json(storage.join(output, RESULT), made)
    return made


def range_of_seeds(values: Sequence[float] | None) -> str:
    """Return the mean of seeds, the least and the most; a dash for none."""
    if not values:
        return "-"
    return f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def table(made: GroupsReport) -> str:
    """Return the rows as text."""
    lines = [f"{'images':>6}{'foreign':>9}{'accuracy':>24}{'taking all as genuine':>25}"
             f"{'called unknown':>24}"]  # fmt: skip
    for row in made["known"]:
        shown = [
            range_of_seeds(row[n]) for n in ("accuracies", "plain_accuracies", "false_rejections")
        ]
        lines.append(
            f"{row['size']:>6}{row['foreign']:>9}{shown[0]:>24}{shown[1]:>25}{shown[2]:>24}"
        )
    if made["unknown"]:
        lines += ["", f"{'images':>6}  {'unknown source':<32}{'called unknown':>24}{'AUROC':>24}"]
    for one in made["unknown"]:
        found, aurocs = range_of_seeds(one["found"]), range_of_seeds(one["aurocs"])
        lines.append(f"{one['size']:>6}  {one['source']:<32}{found:>24}{aurocs:>24}")
    return "\n".join(lines)
