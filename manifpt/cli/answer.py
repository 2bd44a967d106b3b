"""The last lines of a job, for people: a short table, the output's place, the next command."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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

# Decisions on a terminal, in the colours of a crawl's page.
COLOURS = {"generator": "red", "real": "green", "unknown": "bright_black", "unsure": "yellow"}
Part = str | Table  # of the last lines
WIDE = 1000  # columns of text that is no terminal's: no line is broken

# Jobs whose output is a page.
PAGES = ("report", "explain")


def address_of(page: str) -> str:
    """Return the address of a page for a browser; that of a bucket is its URI.

    >>> address_of("/data/my run/report.html")
    'file:///data/my%20run/report.html'
    """
    uri = storage.absolute(page)
    return uri if storage.is_remote(uri) else Path(uri).as_uri()


def aligned(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table without lines: its first column to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        cells = zip(head, map(value_text, row), strict=True)
        table.add_row(
            *(Text(text, COLOURS[text] if name == "decision" else "") for name, text in cells)
        )
    return table


def value_text(value: object) -> str:
    """Return a value as text: 12,345 or 0.9731."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def summed(counts: Mapping[str, object]) -> str:
    """Return counts by name in one line."""
    return ", ".join(f"{name} {value_text(count)}" for name, count in counts.items())


def show(parts: Iterable[Part], file: IO[str]) -> None:
    """Print an answer; on a terminal in colours, with tables no wider than the window."""
    width = None if file.isatty() else WIDE
    console = Console(file=file, width=width, markup=False, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def answer(job: str, summary: Mapping[str, Any]) -> list[Part]:
    """Return the last lines of a job, from its summary; a dry run has no next command."""
    if summary.get("dry_run"):
        return [plain(summary)]
    if job == "attribute":
        return attributions(summary)
    lines = plain(summary)
    if job in PAGES and summary.get("output"):
        lines += f"\npage: {address_of(summary['output'])}"
    if job in NEXT:
        lines += f"\nnext: manifpt {NEXT[job].format(**summary)}"
    return [lines]


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


def attributions(summary: Mapping[str, Any]) -> list[Part]:
    """Return the counts, extremes, quarantine and tables of ``attribute``, and the next command."""
    from manifpt.attribution.unknown.decision import DECISIONS  # not needed for --help

    output, left = summary["output"], summary["quarantined"]
    why = f": {summed(summary['by_error'])}" if left else ""
    parts: list[Part] = [
        f"{value_text(summary['ok'])} images attributed, {value_text(left)} quarantined{why}\n"
    ]
    if summary.get("predictions"):
        head = ("nearest source", "images", *DECISIONS)
        counts = sorted(summary["predictions"].items(), key=lambda item: -sum(item[1].values()))
        rows = [(n, sum(c.values()), *(c.get(d, 0) for d in DECISIONS)) for n, c in counts]
        parts += [aligned(head, rows), ""]
    columns = ("prediction", "probability", "decision", "unknown_p")
    for name in ("surest", "strangest"):
        if summary.get(name):
            found = [(row["id"], *(row[c] for c in columns)) for row in summary[name]]
            parts += [aligned((name, *columns), found), ""]
    tables = ["attributions", *(["quarantine"] if left else [])]
    tables += [name for name in ("duplicates", "groups") if name in summary]
    places = ", ".join(f"{output}/{name}/" for name in tables)
    look = f"import pandas; print(pandas.read_parquet('{output}/attributions'))"
    parts.append(
        f"tables: {places} (Parquet); counts: {output}/summary.json\n"
        f"next: manifpt report {output}\n      manifpt view {output}\n"
        f'      python -c "{look}"'
    )
    return parts
