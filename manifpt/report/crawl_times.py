"""Counts of attributions by month, if the metadata of the input have a column of dates."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from manifpt.attribution.crawl.stage import ATTRIBUTIONS

# Year and month of an ISO 8601 date or time; years of other centuries are more often numbers.
_DATE = re.compile(r"((?:19|20)\d\d-(?:0[1-9]|1[0-2]))(?:-\d\d(?:[T ][^\n]{1,40})?)?")
# A column is one of dates if it has a value, and its first values up to this number are dates.
PROBED = 1000


def month_of(text: str | None) -> str | None:
    """Return the month of an ISO 8601 date; None for other texts.

    >>> month_of("2024-03-09T12:30:00Z"), month_of("9 March 2024")
    ('2024-03', None)
    """
    match = _DATE.fullmatch(text or "")
    return match[1] if match else None


def date_column(table: pa.Table) -> str | None:
    """Return the first metadata column of a table of attributions that holds dates, if any."""
    names: list[str] = table.column_names
    for name in names:
        if name not in ATTRIBUTIONS and pa.types.is_string(table.schema.field(name).type):
            values = [v for v in table[name].slice(0, PROBED).to_pylist() if v is not None]
            if values and all(map(month_of, values)):
                return name
    return None


@dataclass
class Months:
    """Counts of attributions by month and decision; the first table with dates names the column."""

    column: str | None = None
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    undated: int = 0

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        self.column = self.column or date_column(table)
        if self.column is None or self.column not in table.column_names:
            self.undated += table.num_rows
            return
        texts, decisions = table[self.column].to_pylist(), table["decision"].to_pylist()
        for text, decision in zip(texts, decisions, strict=True):
            month = month_of(text)
            if month is None:
                self.undated += 1
            else:
                self.counts.setdefault(month, Counter())[decision] += 1

    @property
    def ordered(self) -> Mapping[str, Mapping[str, int]]:
        """Counts by month, the first month first."""
        return dict(sorted(self.counts.items()))
