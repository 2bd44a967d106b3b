"""Rows of finished outputs, file by file; samples of them in bounded memory."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import storage
from manifpt.outputs.formats import PartEntry

# The most rows of a table that a page is made from; exact totals come from the manifest.
MOST_ROWS = 2_000_000


def files_of_folder(manifest: Mapping[str, Any], folder: str) -> list[PartEntry]:
    """Return the entries of a manifest's files in a folder."""
    return [file for file in manifest["files"] if file["folder"] == folder]


def evenly_spread(files: Sequence[PartEntry], most: int = MOST_ROWS) -> list[PartEntry]:
    """Return files of at most about ``most`` rows, evenly from first to last; all if they fit."""
    total = sum(file["rows"] for file in files)
    if total <= most:
        return list(files)
    count = max(1, len(files) * most // total)
    places = np.linspace(0, len(files) - 1, count).round().astype(int)
    return [files[place] for place in dict.fromkeys(places.tolist())]


def tables_of_files(
    output: str, files: Sequence[PartEntry], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the table of each file, with those of ``columns`` that it has."""
    names: list[str] | None = None
    for file in files:
        uri = storage.join(output, file["path"])
        if columns is not None and names is None:
            with storage.reading(uri) as opened:
                there = pq.read_schema(opened).names
            names = [name for name in columns if name in there]
        yield storage.read_parquet(uri, names)


@dataclass
class Strata:
    """Up to ``most`` rows of each stratum: those whose ids have the least hashes.

    The sample does not depend on the order of rows or on how they were cut into files. If several
    rows of a stratum have one id, the first is taken. The caller declares the type of the rows.
    """

    most: int
    _kept: dict[str, list[tuple[int, str, Any]]] = field(default_factory=dict)

    def add(self, table: pa.Table, strata: Sequence[str]) -> None:
        """Add the rows of a table, which has a column ``id``."""
        ids = np.array(table["id"].to_pylist(), dtype=object)
        hashes = pd.util.hash_array(ids, categorize=False)
        names = np.array(strata, dtype=object)
        for name in dict.fromkeys(strata):
            held = self._kept.setdefault(name, [])
            places = np.flatnonzero(names == name)
            if len(held) == self.most:
                places = places[hashes[places] < -held[0][0]]
            _, first = np.unique(hashes[places], return_index=True)  # in the order of the hashes
            places = places[first[: self.most]]
            known = {entry[:2] for entry in held}
            for place, row in zip(places, table.take(pa.array(places)).to_pylist(), strict=True):
                entry = (-int(hashes[place]), row["id"], row)
                if entry[:2] in known:
                    continue
                if len(held) < self.most:
                    heapq.heappush(held, entry)
                elif entry[:2] > held[0][:2]:
                    heapq.heapreplace(held, entry)

    @property
    def rows(self) -> dict[str, list[Any]]:
        """The rows of each stratum, those with the least hashes first."""
        return {
            name: [row for _, _, row in sorted(held, key=lambda entry: (-entry[0], entry[1]))]
            for name, held in sorted(self._kept.items())
        }

    @property
    def all(self) -> list[Any]:
        """The rows of all strata."""
        return [row for rows in self.rows.values() for row in rows]
