"""A manifold on disk and in memory: shards of vectors with ids, under one manifest."""

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from manifpt import outputs, storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule
from manifpt.spaces import Space, space_from_card

ROWS = {
    "id": pa.string(),
    "uri": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
}


@dataclass(frozen=True)
class Shard:
    """Part of a manifold: ``vectors`` N x d float32, ids and pixel hashes of its N reals."""

    vectors: np.ndarray
    ids: np.ndarray
    pixel_sha256: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=object))

    @cached_property
    def centre(self) -> np.ndarray:
        """The mean vector, d float32. Distances do not change with the origin; rounding does."""
        mean: np.ndarray = self.vectors.mean(0, dtype=np.float64).astype(np.float32)
        return mean

    @cached_property
    def index(self) -> faiss.Index:
        """FAISS's flat index of the centred vectors."""
        index = faiss.IndexFlatL2(self.vectors.shape[1])
        index.add(np.ascontiguousarray(self.vectors - self.centre))
        return index

    @cached_property
    def radius(self) -> float:
        """The largest distance of a vector from the centre."""
        centred = (self.vectors - self.centre).astype(np.float64)
        return float(np.sqrt((centred * centred).sum(1).max()))


@dataclass(frozen=True)
class Manifold:
    """All shards of a manifold, with its space and the hash that names its content."""

    shards: tuple[Shard, ...]
    space: Space
    manifest: dict[str, Any]

    @property
    def sha256(self) -> str:
        """The hash that attributors keep of the manifold that they were trained with."""
        sha: str = self.manifest["content_sha256"]
        return sha

    @property
    def rule(self) -> DecodeRule:
        """How the reals were decoded, and so how queries must be."""
        return DecodeRule.from_card(self.manifest["decode"])

    @cached_property
    def pixel_hashes(self) -> frozenset[str]:
        """The pixel hashes of all reals."""
        return frozenset(h for shard in self.shards for h in shard.pixel_sha256)

    def vectors_at(self, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the vectors at (shard, row) pairs, N x d float32."""
        out = np.empty((len(rows), self.shards[0].vectors.shape[1]), np.float32)
        for number, shard in enumerate(self.shards):
            mine = shards == number
            out[mine] = shard.vectors[rows[mine]]
        return out

    @classmethod
    def load(cls, uri: str) -> "Manifold":
        """Read a finished manifold and check its shards against the manifest's hashes."""
        manifest = outputs.require(uri, "manifold", "--manifold")
        shards = []
        for entry in manifest["shards"]:
            vectors = _checked(uri, entry["vectors"])
            rows = storage_table(_checked(uri, entry["rows"]))
            shards.append(
                Shard(
                    np.load(io.BytesIO(vectors), allow_pickle=False),
                    np.array(rows["id"].to_pylist(), dtype=object),
                    np.array(rows["pixel_sha256"].to_pylist(), dtype=object),
                )
            )
        return cls(tuple(shards), space_from_card(manifest["space"]), manifest)


def storage_table(data: bytes) -> pa.Table:
    """Return the table in the bytes of a Parquet file."""
    return pa.parquet.read_table(io.BytesIO(data))


def _checked(folder: str, entry: dict[str, Any]) -> bytes:
    uri = storage.join(folder, entry["path"])
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ManifptError(f"{uri}: differs from its manifest's hash; build the manifold again")
    return data
