"""Manifolds and artifacts -> pairs of .npy and Parquet files, for vector search programs.

The layout is that of clip-retrieval (Beaumont, "clip-retrieval", 2022), whose folder of arrays
autofaiss reads, too: ``img_emb/img_emb_N.npy`` has vectors, and row i of
``metadata/metadata_N.parquet`` names the image of row i. N has as many digits as the number of
pairs, so that readers that sort names get the rows in order.

A unit of work is a shard of a manifold, or some consecutive files of artifacts. Its record is
written after its files; a unit with a record and whole files is not written again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifpt import outputs, storage
from manifpt.artifacts.artifact_stage import as_float16
from manifpt.artifacts.artifacts_format import ExportManifest
from manifpt.artifacts.branches import stored_columns
from manifpt.artifacts.compute import COMBINATION
from manifpt.engine import pipeline, pools, shuffle
from manifpt.engine.columns import ColumnTypes
from manifpt.engine.progress import Progress
from manifpt.errors import ManifptError
from manifpt.manifold import StoredManifold
from manifpt.manifold.embed import write_array
from manifpt.manifold.stored import MANIFOLDS
from manifpt.outputs import claims, records
from manifpt.outputs.formats import ChunkRecord, FileEntry, PartEntry
from manifpt.outputs.integrity import checked_bytes
from manifpt.outputs.verified import entries, wrong
from manifpt.storage import tensors

KIND = "export"
ARRAYS, METADATA = "img_emb", "metadata"
COLUMNS = ("id", "uri", "source", "split")
# The columns of artifacts without which there is no export.
EXPORTED: ColumnTypes = {"id": pa.string(), "uri": pa.string(), "artifact": None}
PAIR_BYTES = 128 * 2**20  # of the vectors of a pair, as float32

Pieces = Iterator[tuple[pa.Table, np.ndarray]]


class VectorSource(NamedTuple):
    """A finished output of a ``kind``, with vectors of ``dimension`` numbers; a space's card.

    ``units`` has a JSON value for each unit of work, and its number of pairs of files; ``read``
    yields rows and vectors, n x d, of each of these pairs. ``first`` is the first file of
    artifacts.
    """

    kind: str
    space: Any
    dimension: int
    units: list[tuple[Any, int]]
    read: Callable[[Any], Pieces]
    content: list[tuple[str, str]]
    first: str | None = None


def vector_source(uri: str, pair_bytes: int = PAIR_BYTES) -> VectorSource:
    """Open a manifold, or artifacts of one space; anything else is an error."""
    manifest: Any = outputs.read(uri) or {}
    kind = manifest.get("kind")
    if kind in (MANIFOLDS, COMBINATION):
        inside = storage.join(uri, manifest["members"][0])
        raise ManifptError(f"INPUT {uri}: holds several spaces; give one of them, such as {inside}")
    if kind not in ("manifold", "artifacts"):
        raise ManifptError(
            f"INPUT {uri}: holds {kind or 'nothing finished'}; give a finished output of "
            "build_manifold or compute_artifacts"
        )
    dimension = int(np.prod(manifest["shape"]))
    rows = max(1, pair_bytes // (4 * dimension))
    if kind == "manifold":
        shards = manifest["shards"]
        units: list[tuple[Any, int]] = [(n, -(-s["reals"] // rows)) for n, s in enumerate(shards)]
        read: Callable[[Any], Pieces] = partial(_shard_pieces, StoredManifold(uri, manifest), rows)
        content = sorted(entries(shards))
        return VectorSource(kind, manifest["space"], dimension, units, read, content)
    files: list[PartEntry] = [file for file in manifest["files"] if file["folder"] != "quarantine"]
    units = [(group, 1) for group in file_groups(files, rows)]
    read = partial(_artifact_pieces, uri)
    content = sorted(entries(files))
    first = storage.join(uri, files[0]["path"]) if files else None
    return VectorSource(kind, manifest["space"], dimension, units, read, content, first)


def file_groups(files: Sequence[PartEntry], rows: int) -> Iterator[list[PartEntry]]:
    """Yield consecutive files in groups of at most ``rows`` rows; a larger file is alone.

    >>> files = [{"rows": 3}, {"rows": 2}, {"rows": 4}, {"rows": 9}]
    >>> [[file["rows"] for file in group] for group in file_groups(files, 5)]
    [[3, 2], [4], [9]]
    """
    group: list[PartEntry] = []
    count = 0
    for file in files:
        if group and count + file["rows"] > rows:
            yield group
            group, count = [], 0
        group.append(file)
        count += file["rows"]
    if group:
        yield group


def _shard_pieces(manifold: StoredManifold, rows: int, number: int) -> Pieces:
    return manifold.shard_pieces(number, rows)


def _artifact_pieces(uri: str, files: Sequence[FileEntry]) -> Pieces:
    """Yield the rows and flat vectors of some files of artifacts, as one piece."""
    tables = []
    for file in files:
        place = storage.join(uri, file["path"])
        data = checked_bytes(place, file["sha256"], "make the artifacts again")
        tables.append(storage.parquet_table(place, data, [*COLUMNS, "artifact"]))
    table = pa.concat_tables(tables)
    yield table.drop_columns(["artifact"]), tensors.from_column(table["artifact"])


def metadata_table(rows: pa.Table) -> pa.Table:
    """Return the metadata of rows: ``image_path``, and those of ``COLUMNS`` that are there.

    ``image_path`` is the URI of the image, or its id where it has no URI.

    >>> rows = pa.table({"id": ["a", "b"], "uri": ["/x/a.png", None]})
    >>> metadata_table(rows).to_pydict()
    {'image_path': ['/x/a.png', 'b'], 'id': ['a', 'b']}
    """
    uris = rows["uri"]
    paths = pc.if_else(pc.fill_null(pc.not_equal(uris, ""), False), uris, rows["id"])
    there = [name for name in COLUMNS if name != "uri" and name in rows.column_names]
    return pa.table({"image_path": paths, **{name: rows[name] for name in there}})


@dataclass(frozen=True)
class PairWriter:
    """Writes the files of one unit of work, in any process of the run with this ``token``."""

    output: str
    token: str
    read: Callable[[Any], Pieces]
    digits: int
    float16: bool

    def write(self, unit: int, first: int, spec: Any) -> ChunkRecord:
        """Write a unit's pairs, the first of which has number ``first``; return its record."""
        uri = records.uri_of(self.output, unit, 0)
        if storage.exists(uri):
            stored: ChunkRecord = storage.read_json(uri)
            if not wrong(self.output, entries(stored["parts"])):
                return stored
        claims.check(self.output, self.token)
        started, parts = time.time(), list[PartEntry]()
        for number, (rows, vectors) in enumerate(self.read(spec), start=first):
            parts += self._pair(number, rows, vectors)
        count = sum(part["rows"] for part in parts) // 2
        record: ChunkRecord = {
            "unit": unit,
            "chunk": 0,
            "last": True,
            "rows_in": count,
            "ok": count,
            "by_error": {},
            "started": started,
            "seconds": time.time() - started,
            "written": time.time(),
            "parts": parts,
            "facts": {},
        }
        claims.check(self.output, self.token)
        storage.write_json(uri, record)
        return record

    def _pair(self, number: int, rows: pa.Table, vectors: np.ndarray) -> list[PartEntry]:
        name = f"{number:0{self.digits}}"
        stored = as_float16(vectors) if self.float16 else vectors.astype(np.float32, copy=False)
        array = write_array(self.output, f"{ARRAYS}/{ARRAYS}_{name}.npy", stored)
        path = f"{METADATA}/{METADATA}_{name}.parquet"
        data = storage.parquet_bytes(metadata_table(rows))
        table = storage.write_bytes(storage.join(self.output, path), data)
        return [
            {"folder": ARRAYS, "rows": len(stored), **array},
            {"folder": METADATA, "rows": len(stored), "path": path, **table},
        ]


def export(
    uri: str,
    output: str,
    *,
    float16: bool = False,
    pair_bytes: int = PAIR_BYTES,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> ExportManifest:
    """Write all vectors of a manifold or of artifacts as pairs of files; return the manifest.

    Args:
        uri: folder of ``build_manifold`` or ``compute_artifacts``, of one space.
        output: folder of ``img_emb/`` and ``metadata/``.
        float16: store vectors as float16; they are float32 otherwise.
        pair_bytes: the most bytes of a pair's vectors as float32; a file of artifacts that has
            more stays in one pair. A process holds a small multiple of them.
        demand: the number of processes.
        terms: whether to replace an output of other settings, or a run that seems alive.

    """
    uri, output = storage.absolute(uri), storage.absolute(output)
    source = vector_source(uri, pair_bytes)
    key = storage.digest([source.content, float16, pair_bytes])
    pool = pools.pool(demand, uses_gpu=False)
    with claims.claim(output, KIND, key, apart=[("INPUT", uri)], terms=terms) as claim:
        if claim.finished:
            return claim.finished
        if source.first is not None:
            stored_columns([source.first]).check("export", EXPORTED)
        counts = [count for _, count in source.units]
        firsts = np.cumsum([0, *counts]).tolist()
        digits = len(str(firsts[-1]))
        writer = PairWriter(output, claims.token_of(output), source.read, digits, float16)
        pool.wait(len(counts))
        each: shuffle.Each = shuffle.call_here if pool.here else shuffle.OnRay(pool.num_cpus)
        calls = ((n, firsts[n], spec) for n, (spec, _) in enumerate(source.units))
        progress, made = Progress("export", len(counts)), []
        for record in each(writer.write, calls):
            progress.add(record)
            made.append(record)
        body: ExportManifest = {
            "input": uri,
            "of": source.kind,
            "space": source.space,
            "rows": sum(record["rows_in"] for record in made),
            "dimension": source.dimension,
            "dtype": "float16" if float16 else "float32",
            "files": pipeline.parts(made),
        }
        manifest = claim.publish(body)
        records.clear(output)
        return manifest
