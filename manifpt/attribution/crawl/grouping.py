"""The table of groups, from the evidence that the attribution writes beside its rows.

A shuffle (see ``engine.shuffle``): a task for each run of evidence files sorts their rows into
buckets by a hash of the group; then a task for each bucket reads it and judges its groups. No
process holds more than a run or the distinct images of a bucket, for any corpus.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.attribution.crawl.crawl_format import GroupCounts, GroupRow
from manifpt.attribution.crawl.pooling import MOST, ImageEvidence, Pooling
from manifpt.engine import shuffle
from manifpt.engine.columns import ColumnTypes
from manifpt.engine.shuffle import Each, Scratch
from manifpt.outputs.formats import PartEntry
from manifpt.storage import tensors

# Files of EVIDENCE are an output of the pipeline; GROUPS is the table.
EVIDENCE, GROUPS = "evidence", "groups"
RUN_ROWS, BUCKET_ROWS = 2**19, 2**18
# The pseudo-column: the folder that holds an image, or the tar, from its id.
FOLDER = "folder"
COORDINATES = "coordinates"

GROUP_ROWS = {
    "group": pa.string(),
    "images": pa.int64(),
    "counted": pa.int64(),
    "prediction": pa.string(),
    "probability": pa.float64(),
    "probability_low": pa.float64(),
    "probability_high": pa.float64(),
    "agreeing": pa.float64(),
    "unknown": pa.float64(),
    "unknown_p": pa.float64(),
    "decision": pa.string(),
}

# Where the attributor knows the unknown, COORDINATES are beside.
EVIDENCE_ROWS: ColumnTypes = {
    "group": pa.string(),
    "sha256": pa.string(),
    "decision": pa.string(),
    "probabilities": None,
}


def evidence_of(
    images: pa.Table,
    by: str,
    rows: pa.Table,
    probabilities: np.ndarray,
    coordinates: np.ndarray | None,
) -> pa.Table:
    """Return the evidence of some images for their groups; images without a group are left out.

    A group is the value of the column ``by``, or with FOLDER the image's folder. ``images``
    is their images table, ``rows`` their attributions; ``probabilities`` are N x K, of several
    views if there is an ensemble, and ``coordinates`` N x D, of the image itself.
    """
    if by == FOLDER and FOLDER not in images.column_names:
        groups = [row_id.rpartition("/")[0] or "." for row_id in images["id"].to_pylist()]
        column = pa.array(groups, pa.string())
    else:
        column = images[by].cast(pa.string())
    made = pa.table(
        {
            "group": column,
            "sha256": images["sha256"],
            "decision": rows["decision"],
            "probabilities": tensors.to_column(probabilities.astype(np.float32)),
        }
    )
    if coordinates is not None:
        made = made.append_column(COORDINATES, tensors.to_column(coordinates.astype(np.float32)))
    return made.filter(made["group"].is_valid())


def bucket_of(group: str, buckets: int) -> int:
    """Return the bucket of a group, by a hash of its name."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % buckets


@dataclass
class _Group:
    """A group's distinct images so far: by hash, the other fields of ``ImageEvidence``."""

    images: int = 0
    found: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def add(self, sha: str, image: tuple[Any, ...]) -> None:
        """Count an image, and keep it if its hash is new."""
        self.images += 1
        self.found.setdefault(sha, image)
        if len(self.found) >= 2 * MOST:
            self.found = {sha: self.found[sha] for sha in sorted(self.found)[:MOST]}

    def judged(self, name: str, pooling: Pooling) -> GroupRow:
        """Return the group's row of the table."""
        probabilities, decisions, *beside = zip(*self.found.values(), strict=True)
        images = ImageEvidence(
            list(self.found),
            np.stack(probabilities).astype(np.float64),
            decisions,
            *(np.stack(one).astype(np.float64) for one in beside),
        )
        return pooling.judge(name, images, self.images)


@dataclass(frozen=True)
class _Evidence:
    """The evidence of an output, by run and by bucket."""

    scratch: Scratch
    runs: Sequence[Sequence[str]]
    buckets: int
    pooling: Pooling

    def sort(self, run: int) -> None:
        """Sort the rows of a run into buckets."""
        uris = [storage.join(self.scratch.output, path) for path in self.runs[run]]
        # Earlier versions wrote further columns.
        parts = [storage.read_parquet(uri) for uri in uris]
        table = pa.concat_tables(parts, promote_options="default")
        groups = table["group"].combine_chunks().dictionary_encode()
        buckets = [bucket_of(group, self.buckets) for group in groups.dictionary.to_pylist()]
        places = np.array(buckets, np.int64)[groups.indices.to_numpy()]
        self.scratch.write("evidence", run, table, places, self.buckets)

    def judge(self, bucket: int, path: str) -> PartEntry:
        """Write the table of the groups of one bucket, by name; return its entry."""
        groups: defaultdict[str, _Group] = defaultdict(_Group)
        for run in range(len(self.runs)):
            table = self.scratch.gather("evidence", [run], bucket)
            if table.num_rows == 0:
                continue
            names = [n for n in ("probabilities", COORDINATES) if n in table.column_names]
            beside = [tensors.from_column(table[name]) for name in names]
            columns = (table[n].to_pylist() for n in ("group", "sha256", "decision"))
            for row, (group, sha, decision) in enumerate(zip(*columns, strict=True)):
                first, *others = (one[row].copy() for one in beside)
                groups[group].add(sha, (first, decision, *others))
        rows = [group.judged(name, self.pooling) for name, group in sorted(groups.items())]
        table = pa.Table.from_pylist(rows, schema=pa.schema(GROUP_ROWS))
        uri = storage.join(self.scratch.output, path)
        written = storage.write_bytes(uri, storage.parquet_bytes(table))
        return {"path": path, "folder": GROUPS, "rows": len(rows), **written}


def write_groups(
    output: str,
    files: Sequence[PartEntry],
    pooling: Pooling,
    each: Each = shuffle.call_here,
    generation: str = "",
) -> tuple[list[PartEntry], GroupCounts]:
    """Write the table of groups; return its files, and its numbers of groups and images.

    ``files`` are the pipeline's parts, in order, of which those of EVIDENCE count; ``generation``
    is in the names.
    """
    parts = [file for file in files if file["folder"] == EVIDENCE]
    images = sum(file["rows"] for file in parts)
    buckets = max(1, -(-images // BUCKET_ROWS))
    runs = [[file["path"] for file in run] for run in shuffle.runs(parts, RUN_ROWS)]
    listed = [[file["path"], file.get("sha256")] for file in parts]
    scratch = Scratch.of(output, "groups", listed, len(runs), buckets)
    evidence = _Evidence(scratch, runs, buckets, pooling)
    scratch.run(each, "evidence", evidence.sort, len(runs))
    paths = [f"{GROUPS}/{bucket:06d}{generation}.parquet" for bucket in range(buckets)]
    made = list(each(evidence.judge, list(enumerate(paths))))
    scratch.clear()
    return made, {"groups": sum(entry["rows"] for entry in made), "images": images}
