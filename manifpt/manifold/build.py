"""Real images -> a manifold: embed once, deal the vectors to shards, write one manifest.

A real goes to the shard that its pixel hash names, so that exact copies meet in one shard and are
kept once (the smallest id), whatever the order of input. In between, each chunk is one Parquet
file with one row group a shard, so that a shard's task reads only its own rows.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import outputs, pipeline, session, storage, tensors
from manifpt.errors import ManifptError
from manifpt.images import IMAGES, DecodeRule, Selection, plan, read_unit
from manifpt.images.probe import natural_size
from manifpt.images.read import pixels_of, unit_from_json, unit_to_json
from manifpt.images.sources import content_key, describe
from manifpt.manifold.shard import ROWS
from manifpt.spaces import Space, make_space, space_from_card

EMBEDDED = "_embedded"
SELECTION = Selection(splits=("manifold",), sources=("real",))


@dataclass
class EmbedStage:
    """Images -> rows with their vectors, sorted by shard."""

    space: Space
    shards: int
    output: str

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Write one row group a shard; the record says which file holds them."""
        pipeline.check_columns(table, {"id": IMAGES["id"], "pixel_sha256": pa.string()}, "embed")
        vectors = self.space.embed(pixels_of(table)).reshape(table.num_rows, -1)
        shard = np.array([shard_of(h, self.shards) for h in table["pixel_sha256"].to_pylist()])
        rows = table.select(list(ROWS)).append_column("vector", tensors.to_column(vectors))
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
            for number in range(self.shards):
                writer.write_table(rows.filter(pa.array(shard == number)), row_group_size=2**30)
        data = sink.getvalue()
        path = f"{EMBEDDED}/{hashlib.sha256(data).hexdigest()}.parquet"
        storage.write_bytes(storage.join(self.output, path), data)
        return pipeline.Result({}, {"embedded": path})


def shard_of(pixel_sha256: str, shards: int) -> int:
    """Return the shard that a pixel hash names."""
    return int(pixel_sha256[:15], 16) % shards


def _row_group(uri: str, number: int) -> pa.Table:
    fs, path = storage.filesystem(uri)
    with storage.explained(uri), fs.open(path, "rb") as file:
        return pq.ParquetFile(file).read_row_group(number)


def write_shard(output: str, paths: list[str], number: int) -> dict[str, Any]:
    """Gather a shard's rows from the embedded chunks, drop copies, write it; return its entry."""
    table = pa.concat_tables([_row_group(storage.join(output, path), number) for path in paths])
    table = table.sort_by("id")
    hashes = np.array(table["pixel_sha256"].to_pylist(), dtype=object)
    _, first = np.unique(hashes.astype(str), return_index=True)
    kept = table.take(pa.array(np.sort(first)))
    vectors = tensors.from_column(kept["vector"])
    sink = io.BytesIO()
    np.save(sink, vectors, allow_pickle=False)
    folder = f"shard-{number:05d}"
    entry: dict[str, Any] = {
        "reals": kept.num_rows,
        "duplicates": table.num_rows - kept.num_rows,
        "ids_sha256": storage.digest(kept["id"].to_pylist()),
    }
    for name, file, data in (
        ("vectors", "vectors.npy", sink.getvalue()),
        ("rows", "rows.parquet", storage.parquet_bytes(kept.select(list(ROWS)))),
    ):
        path = f"{folder}/{file}"
        entry[name] = {"path": path, **storage.write_bytes(storage.join(output, path), data)}
    return entry


def _read(text: str, rule: DecodeRule) -> Any:
    return read_unit(unit_from_json(text), rule, SELECTION)


def _stage(card: dict[str, Any], shards: int, output: str) -> EmbedStage:
    return EmbedStage(space_from_card(card), shards, output)


def build_manifold(
    inputs: Sequence[str],
    output: str,
    *,
    space: str = "rgb",
    shards: int = 4,
    image_size: int | None = None,
    filter_name: str = "bicubic",
    eps: float | None = None,
    log: bool = True,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Embed the real images of ``inputs`` and publish the manifold; return its manifest.

    Of a benchmark, the reals of the split ``manifold`` are taken; other inputs are taken whole.
    """
    output = storage.absolute(output)
    units = plan(inputs, SELECTION, source="real")
    size = image_size or natural_size(units, SELECTION)
    rule = DecodeRule(size, filter_name)
    chosen = make_space(space, size, eps=eps, log=log)
    key = storage.digest([content_key(units), chosen.card(), rule.card(), shards])
    pool = session.pool(demand, uses_gpu=False)
    finished = outputs.begin(output, "manifold", key, overwrite=overwrite)
    if finished:
        return finished
    records = pipeline.run(
        f"embed {space}",
        [unit_to_json(unit) for unit in units],
        partial(_read, rule=rule),
        partial(_stage, chosen.card(), shards, output),
        output,
        pool,
    )
    counts = pipeline.totals(records)
    if counts["ok"] == 0:
        outputs.abandon(output)
        reason = counts["by_error"] or "no image of source real and split manifold"
        raise ManifptError(
            f"--input: none of {counts['rows_in']} images could be used ({reason}); check the input"
        )
    entries = _write_shards(output, records, shards, pool)
    content = [[entry["ids_sha256"], entry["vectors"]["sha256"]] for entry in entries]
    manifest = outputs.publish(
        output,
        "manifold",
        key,
        {
            "content_sha256": storage.digest([chosen.card(), rule.card(), content]),
            "space": chosen.card(),
            "shape": list(chosen.shape),
            "decode": rule.card(),
            "reals": sum(entry["reals"] for entry in entries),
            "duplicates": sum(entry["duplicates"] for entry in entries),
            **counts,
            "inputs": describe(inputs, units),
            "shards": entries,
            "quarantine": [p for p in pipeline.parts(records) if p["folder"] == "quarantine"],
        },
    )
    storage.remove(storage.join(output, EMBEDDED))
    pipeline.clear_records(output)
    return manifest


def _write_shards(
    output: str, records: list[dict[str, Any]], shards: int, pool: session.Pool
) -> list[dict[str, Any]]:
    """Write all shards in parallel tasks; return the entries of those that hold any real."""
    import ray

    paths = [r["facts"]["embedded"] for r in records if "embedded" in r["facts"]]
    write = ray.remote(num_cpus=pool.num_cpus)(write_shard)
    entries = ray.get([write.remote(output, paths, number) for number in range(shards)])
    return [entry for entry in entries if entry["reals"]]
