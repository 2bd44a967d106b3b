"""A summary of attributions: counts by source and decision, the surest and the strangest rows."""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from manifpt.attribution.crawl.crawl_format import VerdictRow, Verdicts

MOST = 3
SHOWN = ("id", "prediction", "probability", "decision", "unknown_p")
DIGITS = 6  # so that rows which differ by rounding alone are in the order of their ids


def verdicts(attributions: pa.Table) -> Verdicts:
    """Return the counts of a table, and its surest and its strangest rows.

    The strangest rows are those least like images of any known source, by ``unknown_p``; an
    attributor without that score has none.
    """
    pairs = Counter(
        zip(
            attributions["prediction"].to_pylist(),
            attributions["decision"].to_pylist(),
            strict=True,
        )
    )
    predictions: dict[str, dict[str, int]] = {}
    for (prediction, decision), count in sorted(pairs.items()):
        predictions.setdefault(prediction, {})[decision] = count
    rows: list[VerdictRow] = attributions.select(list(SHOWN)).to_pylist()
    for row in rows:
        row["probability"] = round(row["probability"], DIGITS)
        if row["unknown_p"] is not None:
            row["unknown_p"] = round(row["unknown_p"], DIGITS)
    return {"predictions": predictions, "surest": _surest(rows), "strangest": _strangest(rows)}


def total_verdicts(found: Iterable[Verdicts]) -> Verdicts:
    """Return the ``verdicts`` of several tables together, from an iterator over those of each."""
    counts: dict[str, Counter[str]] = {}
    sure: list[VerdictRow] = []
    strange: list[VerdictRow] = []
    for part in found:
        for prediction, decisions in part.get("predictions", {}).items():
            counts.setdefault(prediction, Counter()).update(decisions)
        sure = _surest([*sure, *part.get("surest", ())])
        strange = _strangest([*strange, *part.get("strangest", ())])
    predictions = {name: dict(sorted(counts[name].items())) for name in sorted(counts)}
    return {"predictions": predictions, "surest": sure, "strangest": strange}


def _surest(rows: list[VerdictRow]) -> list[VerdictRow]:
    known = [row for row in rows if row["decision"] not in ("unknown", "unsure")]
    return sorted(known, key=lambda row: (-row["probability"], row["id"]))[:MOST]


def _strangest(rows: list[VerdictRow]) -> list[VerdictRow]:
    scored = [row for row in rows if row["unknown_p"] is not None]
    return sorted(scored, key=lambda row: (row["unknown_p"], row["id"]))[:MOST]
