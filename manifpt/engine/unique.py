"""A check that the ids of a whole output are unique, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from manifpt import storage
from manifpt.engine import shuffle
from manifpt.engine.shuffle import Each, Scratch
from manifpt.errors import ManifptError
from manifpt.outputs.formats import PartEntry

RUN_ROWS = 2**20
# Two of 1e9 ids share a 64-bit hash with a probability of 3 %: far fewer than these do by chance.
MOST = 1000
SHOWN = 3


def check_ids(output: str, files: Sequence[PartEntry], each: Each = shuffle.call_here) -> None:
    """Raise if two rows of an output's parts have the same id, which ``images.ids`` rules out.

    Ids go by their 64-bit hash to partitions, of which a task sorts one. Only where hashes meet are
    the ids themselves compared.
    """
    runs = [[f["path"] for f in run] for run in shuffle.runs(files, RUN_ROWS)]
    count = shuffle.partitions(sum(file["rows"] for file in files))
    scratch = Scratch.of(output, "ids", [[f["path"], f.get("sha256")] for f in files], count)
    ids = _Ids(scratch, runs, count)
    scratch.run(each, "ids", ids.spread, len(runs))
    met = np.concatenate(list(each(ids.repeated, [(n,) for n in range(count)])))[:MOST]
    if len(met):
        found = each(ids.of, [(n, met) for n in range(len(runs))])
        _raise_if_equal(output, [id_ for some in found for id_ in some])
    scratch.clear()


@dataclass(frozen=True)
class _Ids:
    """The ids of an output's parts, by run and by partition."""

    scratch: Scratch
    runs: Sequence[Sequence[str]]
    partitions: int

    def _read(self, run: int) -> pa.ChunkedArray:
        uris = [storage.join(self.scratch.output, path) for path in self.runs[run]]
        return pa.concat_tables([storage.read_parquet(uri, ["id"]) for uri in uris])["id"]

    def spread(self, run: int) -> None:
        """Write the hashes of a run."""
        hashes = _hashes(self._read(run))
        places = (hashes % np.uint64(self.partitions)).astype(np.int64)
        self.scratch.write("ids", run, pa.table({"hash": hashes}), places, self.partitions)

    def repeated(self, partition: int) -> np.ndarray:
        """Return hashes of a partition that come twice, at most MOST."""
        table = self.scratch.gather("ids", range(len(self.runs)), partition)
        hashes = np.sort(table["hash"].to_numpy())
        return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:MOST]

    def of(self, run: int, hashes: np.ndarray) -> list[str]:
        """Return the ids of a run that have one of some hashes."""
        ids = self._read(run)
        found: list[str] = ids.filter(pa.array(np.isin(_hashes(ids), hashes))).to_pylist()
        return found


def _hashes(ids: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = pd.util.hash_array(ids.to_numpy(), categorize=False)
    return found


def _raise_if_equal(output: str, ids: Sequence[str]) -> None:
    names, counts = np.unique(np.array(ids, dtype=object), return_counts=True)
    twice = names[counts > 1][:SHOWN].tolist()
    if twice:
        raise ManifptError(
            f"--output {output}: these ids name several images: {', '.join(twice)}; please "
            "report it; inputs given apart, as NAME=URI, with another --output, may help"
        )
