"""Which images of a corpus are copies of others: exact ones, and near ones by what they look like.

The parts of the attributions are there when this can be known, so it is a table of its own,
``duplicates/``, of the images that are copies: writing all parts again would cost as much as
writing them. Nothing is dropped. "First" is by the order of the input, which never changes.

    duplicate_of       the first image of the same bytes or pixels, if it is another
    near_duplicate_of  the first image whose perceptual hash is within ``near_distance`` bits, among
                       those that are no duplicates; a duplicate's is that of its first

It is not transitive: a near duplicate of a near duplicate may lie further off.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.engine import session
from manifpt.images.perceptual import HammingIndex

FOLDER = "duplicates"
READ = ("id", "sha256", "pixel_sha256", "perceptual_hash")
NONE = np.iinfo(np.int64).max
QUERIES = 2**16

DUPLICATES = {
    "id": pa.string(),
    "sha256": pa.string(),
    "duplicate_of": pa.string(),
    "same": pa.string(),
    "near_duplicate_of": pa.string(),
    "distance": pa.int32(),
}


class Copies(NamedTuple):
    """For each of N images the position of the first it copies, or NONE, exactly and nearly."""

    exact: np.ndarray
    near: np.ndarray


def copies(pixels: np.ndarray, looks: np.ndarray, has: np.ndarray, distance: int) -> Copies:
    """Find the copies among N images in order.

    ``pixels`` are hashes of their pixels, N x 2 uint64; ``looks`` perceptual hashes, N uint64, of
    those that have one by ``has``.
    """
    order = np.lexsort((pixels[:, 1], pixels[:, 0]))  # stable: the first comes first
    line = pixels[order]
    starts = np.ones(len(line), bool)
    starts[1:] = (line[1:] != line[:-1]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    position = np.arange(len(order))
    alone = np.flatnonzero((first == position) & has)
    values, place = np.unique(looks[alone], return_index=True)
    earliest = alone[place]  # the first of each perceptual hash
    index, best = HammingIndex(values, distance), earliest.copy()
    for start in range(0, len(values), QUERIES):
        for rows, others in index.pairs(values[start : start + QUERIES]):
            np.minimum.at(best, start + rows, earliest[others])
    near = np.full(len(order), NONE)
    near[alone] = best[np.searchsorted(values, looks[alone])]
    near[near == position] = NONE
    return Copies(np.where(first == position, NONE, first), near[first])


def _tables(output: str, paths: Sequence[str]) -> Iterator[pa.Table]:
    for path in paths:
        yield storage.read_parquet(storage.join(output, path), list(READ))


def _numbers(hexadecimal: pa.ChunkedArray) -> np.ndarray:
    """Return the first 128 bits of hashes, N x 2 uint64."""
    data = b"".join(bytes.fromhex(text[:32]) for text in hexadecimal.to_pylist())
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)


def write_duplicates(
    output: str, paths: Sequence[str], distance: int, generation: str = ""
) -> dict[str, Any]:
    """Write the table of the duplicates among the attributions at ``paths``; return its entry.

    It reads the parts twice, one at a time, and holds some 80 bytes an image in between.
    """
    pixels, looks, has = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint64)], []
    for table in _tables(output, paths):
        pixels.append(_numbers(table["pixel_sha256"]))
        looks.append(table["perceptual_hash"].fill_null(0).to_numpy().astype(np.uint64))
        has.append(table["perceptual_hash"].is_valid().to_numpy())
    known = np.concatenate([np.empty(0, bool), *has])
    shown = np.concatenate(looks)
    exact, near = copies(np.concatenate(pixels), shown, known, distance)
    del pixels, looks, has
    flagged = np.minimum(exact, near) < NONE
    wanted = np.unique(np.concatenate([exact[flagged], near[flagged]]))
    names = _named(output, paths, wanted)
    parts = [pa.schema(DUPLICATES.items()).empty_table()]
    start = 0
    for table in _tables(output, paths):
        mine = np.flatnonzero(flagged[start : start + table.num_rows])
        some = table.select(["id", "sha256"]).take(pa.array(mine)).to_pylist()
        rows: dict[str, list[Any]] = {name: [] for name in DUPLICATES}
        for at, row in zip(mine + start, some, strict=True):
            copied, alike = names.get(int(exact[at])), names.get(int(near[at]))
            rows["id"].append(row["id"])
            rows["sha256"].append(row["sha256"])
            rows["duplicate_of"].append(copied and copied[0])
            same = copied and ("bytes" if copied[1] == row["sha256"] else "pixels")
            rows["same"].append(same)
            rows["near_duplicate_of"].append(alike and alike[0])
            first = at if exact[at] == NONE else exact[at]
            bits = np.bitwise_count(shown[first] ^ shown[near[at]]) if alike else None
            rows["distance"].append(bits if bits is None else int(bits))
        parts.append(pa.table(rows, parts[0].schema))
        start += table.num_rows
    table = pa.concat_tables(parts).combine_chunks()
    path = f"{FOLDER}/000000{generation}.parquet"
    written = storage.write_bytes(storage.join(output, path), storage.parquet_bytes(table))
    return {"path": path, "folder": FOLDER, "rows": table.num_rows, **written} | {
        "exact": int((exact < NONE).sum()),
        "near": int((near < NONE).sum()),
    }


def _named(
    output: str, paths: Sequence[str], wanted: np.ndarray
) -> dict[int, tuple[str, str | None]]:
    """Return id and sha256 of the images at some positions, sorted; NONE is not looked for."""
    found: dict[int, tuple[str, str | None]] = {}
    start = 0
    for table in _tables(output, paths):
        end = start + table.num_rows
        mine = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, end)]
        some = table.select(["id", "sha256"]).take(pa.array(mine - start)).to_pylist()
        found |= {int(n): (row["id"], row["sha256"]) for n, row in zip(mine, some, strict=True)}
        start = end
    return found


def find_duplicates(
    output: str,
    parts: Sequence[dict[str, Any]],
    distance: int,
    pool: session.Pool,
    generation: str = "",
) -> dict[str, Any]:
    """Write the table in a task of the cluster; return its entry for the manifest.

    ``generation`` is in its name. A job that stops here does this step again, and gets the same
    bytes.
    """
    import ray

    paths = [part["path"] for part in parts if part["folder"] == "attributions"]
    task = ray.remote(num_cpus=pool.num_cpus)(write_duplicates)
    entry: dict[str, Any] = ray.get(task.remote(output, paths, distance, generation))
    return entry
