"""The table of groups, from the evidence that attribution has written beside its rows.

An external shuffle: a task a run of evidence files sorts their rows into buckets by a hash of the
group, a row group of a Parquet file each; then a task a bucket reads its row groups and judges its
groups. No process holds more than a run or a bucket, whatever the corpus. It takes little
beside the attribution: one that was interrupted begins again.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import storage
from manifpt.attribution.crawl.groups import MOST, Images, Pooling
from manifpt.engine import session
from manifpt.storage import tensors

# Files of EVIDENCE are an output of the pipeline; GROUPS is the table; SCRATCH is removed.
EVIDENCE, GROUPS, SCRATCH = "evidence", "groups", "_buckets"
RUN_ROWS, BUCKET_ROWS = 2**18, 2**18
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


def evidence_of(
    images: pa.Table,
    by: str,
    rows: pa.Table,
    probabilities: np.ndarray,
    coordinates: np.ndarray | None,
) -> pa.Table:
    """Return what grouping needs of some images; those whose group is null are left out.

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
    """Return the bucket of a group: a hash of its name decides."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % buckets


def _runs(files: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield runs of files' paths, of about RUN_ROWS rows each."""
    run: list[str] = []
    rows = 0
    for file in files:
        run.append(file["path"])
        rows += file["rows"]
        if rows >= RUN_ROWS:
            yield run
            run, rows = [], 0
    if run:
        yield run


def sort_run(output: str, paths: Sequence[str], target: str, buckets: int) -> None:
    """Write the rows of a run of evidence files as one file with a row group a bucket."""
    # Earlier versions had other columns beside those that are needed.
    parts = [storage.read_parquet(storage.join(output, path)) for path in paths]
    table = pa.concat_tables(parts, promote_options="default")
    places = np.array([bucket_of(group, buckets) for group in table["group"].to_pylist()])
    with (
        storage.writing(target) as file,
        pq.ParquetWriter(file, table.schema, compression="zstd") as writer,
    ):
        for bucket in range(buckets):
            rows = table.filter(pa.array(places == bucket))
            writer.write_table(rows, row_group_size=max(1, rows.num_rows))


@dataclass
class _Group:
    """A group's distinct images so far: of each hash all that ``Images`` has besides."""

    images: int = 0
    found: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def add(self, sha: str, image: tuple[Any, ...]) -> None:
        """Count an image, and keep it if none of its hash is there."""
        self.images += 1
        self.found.setdefault(sha, image)
        if len(self.found) >= 2 * MOST:
            self.found = {sha: self.found[sha] for sha in sorted(self.found)[:MOST]}

    def judged(self, name: str, pooling: Pooling) -> dict[str, Any]:
        """Return its row of the table."""
        probabilities, decisions, *beside = zip(*self.found.values(), strict=True)
        images = Images(
            list(self.found),
            np.stack(probabilities).astype(np.float64),
            decisions,
            *(np.stack(one).astype(np.float64) for one in beside),
        )
        return pooling.judge(name, images, self.images)


def judge_bucket(
    sorted_files: Sequence[str], bucket: int, target: str, pooling: Pooling
) -> dict[str, Any]:
    """Write the table of the groups of one bucket, by name; return its rows, bytes and sha256."""
    groups: defaultdict[str, _Group] = defaultdict(_Group)
    for uri in sorted_files:
        with storage.reading(uri) as file:
            table = pq.ParquetFile(file).read_row_group(bucket)
        if table.num_rows == 0:
            continue
        probabilities = tensors.from_column(table["probabilities"])
        beside = [tensors.from_column(table[n]) for n in (COORDINATES,) if n in table.column_names]
        columns = (table[n].to_pylist() for n in ("group", "sha256", "decision"))
        for row, (group, sha, decision) in enumerate(zip(*columns, strict=True)):
            image = probabilities[row].copy(), decision, *(one[row].copy() for one in beside)
            groups[group].add(sha, image)
    rows = [group.judged(name, pooling) for name, group in sorted(groups.items())]
    table = pa.Table.from_pylist(rows, schema=pa.schema(GROUP_ROWS))
    return {"rows": len(rows), **storage.write_bytes(target, storage.parquet_bytes(table))}


def write_groups(
    output: str,
    files: Sequence[dict[str, Any]],
    pooling: Pooling,
    pool: session.Pool,
    generation: str = "",
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Write the table of groups; return its files, and how many groups and images are in it.

    ``files`` are the pipeline's parts, in order, of which those of EVIDENCE count; ``generation``
    is in the names.
    """
    import ray

    evidence = [file for file in files if file["folder"] == EVIDENCE]
    images = sum(file["rows"] for file in evidence)
    buckets = max(1, -(-images // BUCKET_ROWS))
    runs = list(_runs(evidence))
    scratch = [storage.join(output, SCRATCH, f"{n:06d}.parquet") for n in range(len(runs))]
    sort = ray.remote(num_cpus=pool.num_cpus)(sort_run)
    ray.get([sort.remote(output, run, s, buckets) for run, s in zip(runs, scratch, strict=True)])
    judge = ray.remote(num_cpus=pool.num_cpus)(judge_bucket)
    paths = [f"{GROUPS}/{bucket:06d}{generation}.parquet" for bucket in range(buckets)]
    targets = [storage.join(output, path) for path in paths]
    shared = ray.put(pooling)
    written = ray.get(
        [judge.remote(scratch, n, target, shared) for n, target in enumerate(targets)]
    )
    storage.remove_files(storage.join(output, SCRATCH), r"\d{6}\.parquet")
    made = [
        {"path": path, "folder": GROUPS, **entry}
        for path, entry in zip(paths, written, strict=True)
    ]
    return made, {"groups": sum(entry["rows"] for entry in written), "images": images}
