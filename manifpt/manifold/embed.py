"""Real images -> embedded chunks -> shards: each real is embedded once, and copies are kept once.

A real goes to the shard that its pixel hash names, so that exact copies meet in one shard, for any
order of input. Each chunk is first written as one Parquet file with one row group a shard, so that
a shard's task reads only its own rows.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import storage
from manifpt.engine import chunk_work, pipeline, pools, prometheus
from manifpt.engine.columns import ColumnTypes
from manifpt.engine.tasks import results, task
from manifpt.images import DecodeRule, Unit
from manifpt.images.ids import tile_id
from manifpt.images.read import (
    ImageReader,
    as_space_sees,
    metadata_of_units,
    pixel_columns,
    pixels_of,
    unit_to_json,
)
from manifpt.images.sources import MANIFOLD_REALS, REAL
from manifpt.images.splits import CONTENT, split_columns, splits_of
from manifpt.images.stacks import own_hashes
from manifpt.manifold.manifold_format import ShardEntry
from manifpt.manifold.shard import ROWS
from manifpt.outputs.formats import ChunkRecord, FileEntry
from manifpt.outputs.records import Records
from manifpt.spaces import Space
from manifpt.storage import tensors

EMBEDDED = "_embedded"


class TrainingReals(NamedTuple):
    """A filter for reals of training, by the split by a column or by content."""

    split_by: str | None = None


@dataclass
class EmbedStage:
    """Images -> rows with their vectors in each space, sorted by shard.

    ``rules`` are those of the spaces. Each tile of an image is a row, with an id and a hash of its
    own. With ``training`` reals that declare no split are embedded if they are for training.
    """

    spaces: Sequence[Space]
    rules: Sequence[DecodeRule]
    shards: int
    output: str
    training: TrainingReals | None = None

    @property
    def takes(self) -> ColumnTypes:
        """The columns of an images table."""
        types = ROWS | pixel_columns(self.rules)
        if self.training is None:
            return types
        return types | {"source": pa.string()} | split_columns(self.training.split_by)

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """No tables: the facts name the files."""
        return {}

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Write one file a space; the record names them."""
        if self.training is not None:
            splits = splits_of(table, CONTENT, self.training.split_by).names
            kept = [
                source == REAL and split in {"manifold", "train"}
                for source, split in zip(table["source"].to_pylist(), splits, strict=True)
            ]
            table = table.filter(pa.array(kept))
        paths = {
            space.name: self._write(space, points_of(table, rule))
            for space, rule in zip(self.spaces, self.rules, strict=True)
        }
        return chunk_work.Result({}, {"embedded": paths})

    def _write(self, space: Space, table: pa.Table) -> str:
        """Write one row group a shard; return the path."""
        with prometheus.timed("embed"):
            vectors = space.embed(pixels_of(table)).reshape(table.num_rows, -1)
        shard = np.array([shard_of(h, self.shards) for h in table["pixel_sha256"].to_pylist()])
        rows = table.select(list(ROWS)).append_column("vector", tensors.to_column(vectors))
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
            for number in range(self.shards):
                writer.write_table(rows.filter(pa.array(shard == number)), row_group_size=2**30)
        data = sink.getvalue()
        path = f"{EMBEDDED}/{hashlib.sha256(data).hexdigest()}.parquet"
        storage.write_bytes(storage.join(self.output, path), data)
        return path


def points_of(table: pa.Table, rule: DecodeRule) -> pa.Table:
    """Return an images table with a row for each point of a space with this rule."""
    rows = as_space_sees(table, rule)
    if "tile" not in rows.column_names:
        return rows
    ids = map(tile_id, rows["id"].to_pylist(), rows["tile"].to_pylist())
    for name, values in (("id", list(ids)), ("pixel_sha256", own_hashes(rows))):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    return rows


def clear_embedded(output: str) -> None:
    """Remove the files of ``EmbedStage`` once the shards are written."""
    storage.remove_files(storage.join(output, EMBEDDED), r"[0-9a-f]{64}\.parquet")


def remove_shard(folder: str) -> None:
    """Remove the files of a shard."""
    storage.remove_files(folder, r"rows\.parquet|vectors\.npy|keys\.npy")


def shard_of(pixel_sha256: str, shards: int) -> int:
    """Return the shard that a pixel hash names."""
    return int(pixel_sha256[:15], 16) % shards


def embed_units(
    units: Sequence[Unit],
    spaces: Sequence[Space],
    rules: Sequence[DecodeRule],
    shards: int,
    output: str,
    pool: pools.Pool,
    training: TrainingReals | None = None,
) -> Records:
    """Embed all images of ``units`` into chunks under ``output``; return the pipeline's records.

    Each image is decoded once for all spaces, whose rules are ``rules``.
    """
    return pipeline.run(
        f"embed {'+'.join(space.name for space in spaces)}",
        [unit_to_json(unit) for unit in units],
        ImageReader(rules, MANIFOLD_REALS, metadata_of_units(units)),
        partial(EmbedStage, spaces, rules, shards, output, training),
        output,
        pool,
    )


def _row_group(uri: str, number: int) -> pa.Table:
    with storage.reading(uri) as file:
        return pq.ParquetFile(file).read_row_group(number)


def write_array(output: str, path: str, array: np.ndarray) -> FileEntry:
    """Write an array as .npy; return its entry of a manifest."""
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return {"path": path, **storage.write_bytes(storage.join(output, path), sink.getvalue())}


def write_rows(output: str, folder: str, rows: pa.Table, vectors: np.ndarray) -> ShardEntry:
    """Write a shard's rows and vectors; return its entry of a manifest."""
    path = f"{folder}/rows.parquet"
    data = storage.parquet_bytes(rows.select([name for name in ROWS if name in rows.column_names]))
    return {
        "reals": rows.num_rows,
        "content": content_of(rows["id"].to_pylist(), vectors),
        "vectors": write_array(output, f"{folder}/vectors.npy", vectors),
        "rows": {"path": path, **storage.write_bytes(storage.join(output, path), data)},
    }


def content_of(ids: Sequence[str], vectors: np.ndarray) -> str:
    """Return a hash of a set of reals: neither their order nor their shards change it.

    It is the sum modulo 2^256 of the sha256 of each real (Bellare & Micciancio, "A new paradigm for
    collision-free hashing", EUROCRYPT 1997, AdHash): it guards against mistakes, not attackers.
    """
    total = 0
    for name, vector in zip(ids, vectors, strict=True):
        sha = hashlib.sha256(name.encode() + b"\0" + vector.tobytes())
        total += int.from_bytes(sha.digest(), "big")
    return f"{total % 2**256:064x}"


def write_shard(
    output: str, scratch: str, paths: Sequence[str], number: int, folder: str, known: Sequence[str]
) -> ShardEntry:
    """Gather a shard's rows from the embedded chunks, drop copies, write it; return its entry.

    ``known`` are URIs of tables of the reals of earlier shards.
    """
    table = pa.concat_tables([_row_group(storage.join(scratch, path), number) for path in paths])
    table = table.sort_by("id")
    hashes = np.array(table["pixel_sha256"].to_pylist(), dtype=str)
    _, first = np.unique(hashes, return_index=True)
    there = {h for uri in known for h in pixel_hashes(uri)}
    new = [row for row in np.sort(first) if hashes[row] not in there]
    kept = table.take(pa.array(new, pa.int64()))
    duplicates = table.num_rows - kept.num_rows
    if not new:
        return {"reals": 0, "duplicates": duplicates}
    vectors = tensors.from_column(kept["vector"])
    return {"duplicates": duplicates, **write_rows(output, folder, kept, vectors)}


def pixel_hashes(uri: str) -> list[str]:
    """Return the pixel hashes of the reals in a shard's table."""
    hashes: list[str] = storage.read_parquet(uri, ["pixel_sha256"])["pixel_sha256"].to_pylist()
    return hashes


def write_shards(
    output: str,
    scratch: str,
    records: Sequence[ChunkRecord],
    shards: int,
    pool: pools.Pool,
    name: str,
    prefix: str = "shard",
    known: Sequence[str] = (),
) -> list[ShardEntry]:
    """Write all shards of the space ``name`` in parallel tasks; return their entries.

    Some may hold no real.
    """
    paths = [r["facts"]["embedded"][name] for r in records if "embedded" in r["facts"]]
    return results(
        pool,
        [
            task(pool, write_shard, output, scratch, paths, n, f"{prefix}-{n:05d}", known)
            for n in range(shards)
        ],
    )
