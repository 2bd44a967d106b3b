"""Rows of properties -> findings, a description of each class, and the text of the report."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from manifpt.audit.audit_format import AuditReport
from manifpt.audit.copies import shares, straddling
from manifpt.audit.properties import CARRIED, CONTENT, PROPERTIES
from manifpt.audit.statistics import codes, information, tree_accuracy
from manifpt.audit.verdict import Finding, FindingCard, Kind, Thresholds, judged, overall

SHOWN = 5  # values of a property that are shown of each class
CLASSIFIER = "classifier of all file properties"
SPLITS = "prompts or scenes on both sides of a split"
LIMITS = """\
The audit reads how images were stored. These leaks it does not see:

- **Membership.** Generators are usually trained on the very reals that estimate the manifold. A
  generated image may then lie nearer to these reals than an unseen real does, because the generator
  has learned them by heart, and not because of how it makes images. Take the reals of the manifold,
  and the test reals, from images that no generator was trained on, or say in each result that this
  was not done.
- **History in the pixels.** An image that was a JPEG keeps its blocks when it is stored as PNG, and
  one that was resized keeps the traces of that. Storing all alike does not remove them; only the
  same compression for all (a dose of JPEG) makes them more alike.
- **Subject.** Classes of other subjects, prompts or cameras are told apart by those.
"""


def of_properties(
    table: pd.DataFrame, thresholds: Thresholds, names: Iterable[str] = PROPERTIES
) -> list[Finding]:
    """Return a finding for each property of ``names``: whether it reveals the label.

    ``table`` has these columns and ``source``, a row an image.
    """
    labels = pd.factorize(table["source"], sort=True)[0]
    found = []
    for name in names:
        facts = information(codes(_values(table[name])), labels)
        kind: Kind = "file" if name in CARRIED else "content"
        found.append(judged(name, kind, facts.share, thresholds, **_rounded(facts)))
    return found


def of_files(table: pd.DataFrame, thresholds: Thresholds) -> list[Finding]:
    """Return a finding for each property, and one for all together.

    ``table`` has PROPERTIES and ``source``, a row an image.
    """
    found = of_properties(table, thresholds)
    labels = pd.factorize(table["source"], sort=True)[0]
    tree = tree_accuracy([codes(_values(table[name])) for name in CARRIED], labels)
    if tree is not None:
        found.append(judged(CLASSIFIER, "file", tree.share, thresholds, **_rounded(tree)))
    return found


def of_copies(
    table: pd.DataFrame, distance: int, thresholds: Thresholds, split_by: str | None
) -> list[Finding]:
    """Return findings for copies, and for prompts or scenes on both sides of a split.

    ``table`` has the columns of ``copies``, and ``value`` if there is a ``split_by``.
    """
    found = []
    for name, share in shares(table, distance).items():
        # Copies within a class waste images, but give no label away.
        kind: Kind = "copies" if name.startswith("exact, across") else "near"
        found.append(judged(name, kind, share, thresholds))
    if split_by is not None:
        share, *counts = straddling(table["value"], table["split"])
        facts = dict(zip(("values", "of", "without_value"), counts, strict=True))
        found.append(judged(SPLITS, "copies", share, thresholds, column=split_by, **facts))
    return found


def _values(column: pd.Series) -> list[Any]:
    return [None if pd.isna(value) else value for value in column]


def _rounded(facts: Any) -> dict[str, float]:
    return {
        name: round(float(value), 6) for name, value in facts._asdict().items() if name != "share"
    }


def properties_by_class(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return by class the commonest values of each property, or the quantiles of numbers."""
    found = {}
    for source, rows in table.groupby("source"):
        facts: dict[str, Any] = {name: _commonest(rows[name]) for name in CARRIED}
        for name in CONTENT:
            known = rows[name].dropna()
            low, middle, high = known.quantile([0.05, 0.5, 0.95]) if len(known) else [None] * 3
            facts[name] = {"p5": low, "median": middle, "p95": high}
        found[str(source)] = {"sampled": len(rows), **facts}
    return found


def _commonest(column: pd.Series) -> dict[str, float]:
    """Return the shares of the commonest values; null is ``none``."""
    texts = pd.Series(["none" if value is None else _text(value) for value in _values(column)])
    shown = texts.value_counts(normalize=True).head(SHOWN)
    return {str(value): round(float(share), 4) for value, share in shown.items()}


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, (float, np.floating)) else str(value)


def markdown(report: AuditReport) -> str:
    """Return the report as text; ``report`` is that of ``summary``."""
    compared = report["compared"]
    copies = f"copies among {compared}" if compared else "copies were not looked for"
    parts = [
        f"# Audit: {report['verdict']}",
        f"{report['images']} images of {len(report['classes'])} classes; statistics of "
        f"{report['sampled']} of them, {copies}.",
        "## Findings\n\n" + _findings(report["findings"]),
        "## Classes\n\n" + _classes(report),
        "## What this does not show\n\n" + LIMITS.rstrip(),
    ]
    if report["verdict"] == "fail":
        parts.insert(2, remedy(report["findings"]))
    return "\n\n".join(parts) + "\n"


def remedy(findings: Sequence[FindingCard]) -> str:
    """Return the remedy for the findings that fail."""
    failed = [finding for finding in findings if finding["verdict"] == "fail"]
    kinds = {finding["kind"] for finding in failed}
    said = []
    if kinds & {"file", "content"}:
        said.append("The files tell the classes apart: manifpt normalize stores all images alike.")
    if any(finding["name"] == SPLITS for finding in failed):
        said.append("Declare splits that keep a prompt or scene on one side, or none.")
    if any(
        finding["name"] in {"exact, across classes", "exact, across splits"}
        or finding["kind"] == "near"
        for finding in failed
    ):
        said.append("Remove copies of images in other classes and splits.")
    return " ".join(said)


def _findings(findings: Sequence[FindingCard]) -> str:
    lines = ["| property | share | shuffled labels | verdict |", "|---|---|---|---|"]
    for finding in findings:
        facts = finding["facts"]
        baseline = "-"
        if "baseline" in facts:
            baseline = f"{facts['bits']:.3f} bits against {facts['baseline']:.3f}"
        elif "shuffled" in facts:
            baseline = (
                f"accuracy {facts['accuracy']:.3f} against {facts['shuffled']:.3f}, "
                f"chance {facts['chance']:.3f}"
            )
        elif "values" in facts:
            baseline = f"{facts['values']} of {facts['of']} values of {facts['column']}"
        lines.append(
            f"| {finding['name']} | {finding['share']:.4f} | {baseline} | {finding['verdict']} |"
        )
    return "\n".join(lines)


def _classes(report: AuditReport) -> str:
    """Return a table of the properties in which classes differ, by their commonest values."""
    classes = report["classes"]
    varied = [n for n in CARRIED if len({str(sorted(c[n])) for c in classes.values()}) > 1]
    head = ["class", "images", *varied, *CONTENT]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, facts in classes.items():
        cells = [name, str(facts["images"])]
        cells += [_cell(next(iter(facts[n].items()))) for n in varied]
        cells += ["-" if facts[n]["median"] is None else f"{facts[n]['median']:g}" for n in CONTENT]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"The commonest value; {' and '.join(CONTENT)} by their median."])


def _cell(value: tuple[str, float]) -> str:
    text, share = value
    safe = html.escape(" ".join(text[:60].replace("|", "/").split()))  # files say it, strangers'
    return safe if share == 1 else f"{safe} ({share:.0%})"


def summary(findings: Sequence[Finding], **facts: Any) -> AuditReport:
    """Return the whole report as an object of JSON."""
    cards = [finding.as_json() for finding in findings]
    report: Any = {"verdict": overall(findings), "findings": cards, "limits": LIMITS, **facts}
    return report
