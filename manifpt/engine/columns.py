"""The columns of tables on their way: what a reader gives, and what a stage takes and gives.

Each reader and each stage of a pipeline declares them, beside its code. The pipeline compares them
before it starts a process. A table without a column, such as that of a foreign Parquet file, then
gives an error of one line instead of a KeyError in an actor.
"""

from dataclasses import dataclass

import pyarrow as pa

from manifpt.errors import ManifptError

# The types of columns by name; None is any type.
ColumnTypes = dict[str, pa.DataType | None]


@dataclass(frozen=True)
class GivenColumns:
    """The columns of tables that are read, their place, and the remedy for a missing column."""

    columns: ColumnTypes
    place: str
    remedy: str

    def check(self, stage: str, takes: ColumnTypes) -> None:
        """Raise if a column that ``stage`` takes is missing, or has another type."""
        for name, kind in takes.items():
            if name not in self.columns:
                raise ManifptError(f"{stage}: {self.place} has no column {name!r}; {self.remedy}")
            actual = self.columns[name]
            if None not in (kind, actual) and kind != actual:
                raise ManifptError(
                    f"{stage}: {self.place} has the column {name!r} as {actual}, not {kind}; "
                    f"{self.remedy}"
                )
