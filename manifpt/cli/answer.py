"""The last lines of a job, for people: a short table, the output's place, the next command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifpt import storage

MOST = 8  # numbers of a group that are shown
# The next command after a job; names in braces are values of its summary.
NEXT = {
    "normalize": "audit --input {output}/images",
    "pretrain_embedding": "build_manifold --space ssl --ssl-weights {output} "
    "--input real=DIR --output M",
    "build_manifold": "compute_artifacts --manifold {output} --input NAME=DIR real=DIR --output A",
    "compute_artifacts": "train_attribution --input {output} --output MODEL",
    "train_attribution": "attribute --model {output} --input IMAGES --output VERDICTS",
    "evaluate": "report {output}\n"
    "      manifpt register --model MODEL --evaluation {output} --name NAME",
    "register": "attribute --model {alias} --input IMAGES --output VERDICTS",
}

# Jobs whose output is a page.
PAGES = ("report", "explain")


def address_of(page: str) -> str:
    """Return the address of a page for a browser; that of a bucket is its URI.

    >>> address_of("/data/my run/report.html")
    'file:///data/my%20run/report.html'
    """
    uri = storage.absolute(page)
    return uri if storage.is_remote(uri) else Path(uri).as_uri()


def aligned(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as text in columns: the first to the left, the others to the right."""
    texts = [[value_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    )


def value_text(value: object) -> str:
    """Return a value as text: 12,345 or 0.9731."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def summed(counts: Mapping[str, object]) -> str:
    """Return counts by name in one line."""
    return ", ".join(f"{name} {value_text(count)}" for name, count in counts.items())


def answer(job: str, summary: Mapping[str, Any]) -> str:
    """Return the last lines of a job, from its summary; a dry run has no next command."""
    if summary.get("dry_run"):
        return plain(summary)
    lines = attributions_text(summary) if job == "attribute" else plain(summary)
    if job in PAGES and summary.get("output"):
        return f"{lines}\npage: {address_of(summary['output'])}"
    return f"{lines}\nnext: manifpt {NEXT[job].format(**summary)}" if job in NEXT else lines


def plain(summary: Mapping[str, object]) -> str:
    """Return the single values of a summary, a line each, and its short groups of numbers."""
    rows = {}
    for name, value in summary.items():
        if isinstance(value, str | int | float):
            rows[name.replace("_", " ")] = value_text(value)
        elif isinstance(value, dict) and 0 < len(value) <= MOST and _numbers(value):
            rows[name.replace("_", " ")] = summed(value)
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _numbers(values: Mapping[str, object]) -> bool:
    return all(isinstance(value, int | float) for value in values.values())


def attributions_text(summary: Mapping[str, Any]) -> str:
    """Return the counts, extremes, quarantine and tables of ``attribute``, and the next command."""
    from manifpt.attribution.unknown.decision import DECISIONS  # not needed for --help

    output, left = summary["output"], summary["quarantined"]
    why = f": {summed(summary['by_error'])}" if left else ""
    parts = [f"{value_text(summary['ok'])} images attributed, {value_text(left)} quarantined{why}"]
    if summary.get("predictions"):
        head = ("nearest source", "images", *DECISIONS)
        counts = sorted(summary["predictions"].items(), key=lambda item: -sum(item[1].values()))
        rows = [(n, sum(c.values()), *(c.get(d, 0) for d in DECISIONS)) for n, c in counts]
        parts.append(aligned([head, *rows]))
    columns = ("prediction", "probability", "decision", "unknown_p")
    for name in ("surest", "strangest"):
        if summary.get(name):
            found = [(row["id"], *(row[c] for c in columns)) for row in summary[name]]
            parts.append(aligned([(name, *columns), *found]))
    tables = ["attributions", *(["quarantine"] if left else [])]
    tables += [name for name in ("duplicates", "groups") if name in summary]
    places = ", ".join(f"{output}/{name}/" for name in tables)
    look = f"import pandas; print(pandas.read_parquet('{output}/attributions'))"
    parts.append(
        f"tables: {places} (Parquet); counts: {output}/summary.json\n"
        f"next: manifpt report {output}\n      manifpt view {output}\n"
        f'      python -c "{look}"'
    )
    return "\n\n".join(parts)
