"""A manifold on disk: shards of vectors with ids, and the files for search, in one manifest."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Literal, Self

import faiss
import numpy as np
import pyarrow as pa
import torch

from manifpt import outputs, storage
from manifpt.errors import DamageError
from manifpt.images import DecodeRule
from manifpt.manifold.basis import Basis
from manifpt.manifold.denoiser import Denoiser
from manifpt.manifold.geometry import Geometry
from manifpt.manifold.manifold_format import ManifoldManifest, ShardEntry
from manifpt.manifold.metric import Metric, Whitening
from manifpt.manifold.search import SearchPlan
from manifpt.manifold.shard import Shard
from manifpt.nets.device import device_and_precision
from manifpt.outputs.formats import FileEntry
from manifpt.spaces import Space, space_from_card

READ_BYTES = 8 * 2**20
# The kind of a folder that holds one manifold a space.
MANIFOLDS = "manifolds"


@dataclass(frozen=True)
class StoredManifold:
    """A finished manifold; its shards are read when they are asked for."""

    uri: str
    manifest: ManifoldManifest

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open a finished manifold without reading its shards."""
        uri = storage.absolute(uri)
        return cls(uri, outputs.require(uri, "manifold", "--manifold"))

    @property
    def sha256(self) -> str:
        """The hash by which attributors know the manifold of their training."""
        sha: str = self.manifest["content_sha256"]
        return sha

    @property
    def space(self) -> Space:
        """The space that its reals were embedded in; its weights lie beside the shards."""
        entry = self.manifest.get("weights")
        weights = storage.join(self.uri, entry["path"]) if entry else ""
        return space_from_card(self.manifest["space"], weights)

    @property
    def rule(self) -> DecodeRule:
        """The rule by which reals were decoded, and queries must be."""
        return DecodeRule.from_card(self.manifest["decode"])

    @cached_property
    def metric(self) -> Metric:
        """The metric; the covariance of ``whitened`` is read at first use."""
        name = self.manifest["metric"]
        return Metric(name, self._whitening() if name == "whitened" else None)

    def _whitening(self) -> Whitening:
        data = self._checked(self.manifest["whitening"])
        return Whitening.of_lines(np.load(io.BytesIO(data), allow_pickle=False))

    @cached_property
    def geometry(self) -> Geometry | None:
        """The geometry that was learned of its vectors, if it was built with one."""
        entry = self.manifest.get("geometry")
        if entry is None:
            return None
        state = torch.load(io.BytesIO(self._checked(entry)), weights_only=True)
        return Geometry.from_state(state)

    @cached_property
    def denoiser(self) -> Denoiser | None:
        """The denoiser that was trained on its reals, if it was built with one."""
        entry = self.manifest.get("denoiser")
        if entry is None:
            return None
        state = torch.load(io.BytesIO(self._checked(entry)), weights_only=True, map_location="cpu")
        return Denoiser.from_state(state).to(device_and_precision()[0])

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return int(np.prod(self.manifest["shape"]))

    @property
    def real_bytes(self) -> int:
        """Bytes of memory that a real takes: its vector, and its point if that differs."""
        arrays = 1 if self.manifest["metric"] == "euclidean" else 2
        return self.dimension * 4 * arrays

    @property
    def size(self) -> int:
        """Bytes of memory that all reals take."""
        return int(self.manifest["reals"]) * self.real_bytes

    @cached_property
    def basis(self) -> Basis | None:
        """The principal directions of search by bounds, if it was built for it."""
        entry = self.manifest["search"]["basis"]
        if entry is None:
            return None
        lines = np.load(io.BytesIO(self._checked(entry)), allow_pickle=False)
        return Basis(lines[:-1], lines[-1])

    def percentile(self, distances: np.ndarray) -> np.ndarray:
        """Return the percentage of held-out reals with a smaller distance, for each distance."""
        marks = self.manifest["held_out"]["distances"]
        out: np.ndarray = np.interp(distances, marks, np.linspace(0, 100, len(marks)), left=0)
        return out

    def read(self, plan: SearchPlan, numbers: Sequence[int] | None = None) -> Shard:
        """Read all shards, or some, as one, with the data for ``plan``."""
        every = self.manifest["shards"]
        entries = every if numbers is None else [every[number] for number in numbers]
        ids, hashes = self._rows(entries)
        vectors = self._array(entries, "vectors", self.dimension)
        keys = None
        if plan.method == "bounds" and self.basis is not None:
            keys = self._array(entries, "keys", len(self.basis.directions) + 1)
        shard = Shard(vectors, ids, hashes, self.metric, self.basis, keys)
        if not plan.exact and (index := self.manifest["search"]["index"]) is not None:
            data = np.frombuffer(self._checked(index), np.uint8)
            shard.indexes[plan.factory] = faiss.deserialize_index(data), np.zeros_like
        return shard

    def blocks(self, most_bytes: int) -> Iterator[Shard]:
        """Read all shards in order, in blocks with at most ``most_bytes`` bytes of reals.

        The last block of a shard whose content differs from its hash raises instead of coming.
        """
        step = max(1, most_bytes // self.real_bytes)
        for entry in self.manifest["shards"]:
            ids, hashes = self._rows([entry])
            for start, vectors in self._pieces(entry["vectors"], step):
                part = slice(start, start + step)
                yield Shard(vectors, ids[part], hashes[part], self.metric)

    def shard_pieces(self, number: int, step: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield a shard's table of reals and their vectors n x d float32, ``step`` at a time.

        The last piece of a shard whose content differs from its hash raises instead of coming.
        """
        entry = self.manifest["shards"][number]
        table = self._table(entry)
        for start, vectors in self._pieces(entry["vectors"], step):
            yield table.slice(start, step), vectors

    def _rows(self, entries: Sequence[ShardEntry]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and the pixel hashes of some shards."""
        tables = [self._table(entry) for entry in entries]
        columns = ("id", "pixel_sha256")
        ids, hashes = (
            np.array([v for table in tables for v in table[name].to_pylist()], dtype=object)
            for name in columns
        )
        return ids, hashes

    def perceptual_hashes(self) -> np.ndarray | None:
        """Return the hashes of all reals that have one, uint64; None if a shard has none."""
        found = []
        for entry in self.manifest["shards"]:
            table = self._table(entry)
            if "perceptual_hash" not in table.column_names:
                return None
            found.append(table["perceptual_hash"].drop_null().to_numpy())
        return np.concatenate(found)

    def _array(
        self, entries: Sequence[ShardEntry], name: Literal["vectors", "keys"], width: int
    ) -> np.ndarray:
        """Return the array of that name of some shards as one."""
        out = np.empty((sum(entry["reals"] for entry in entries), width), np.float32)
        start = 0
        for entry in entries:
            end = start + entry["reals"]
            for _ in self._pieces(entry[name], end - start, out[start:end]):
                start = end
        return out

    def _pieces(
        self, entry: FileEntry, step: int, into: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``step`` rows of an .npy file at a time; raise at the last if it is damaged."""
        uri = storage.join(self.uri, entry["path"])
        sha = hashlib.sha256()
        with storage.reading(uri) as file:
            try:
                total, width = _header(file, sha)
            except (ValueError, SyntaxError, EOFError):
                raise _damaged(uri) from None
            for start in range(0, total, step):
                shape = (min(step, total - start), width)
                piece = np.empty(shape, np.float32) if into is None else into
                _fill(piece.reshape(-1).view(np.uint8), file, sha)
                if start + step >= total and sha.hexdigest() != entry["sha256"]:
                    raise _damaged(uri)
                yield start, piece

    def _table(self, entry: ShardEntry) -> pa.Table:
        return storage.parquet_table(entry["rows"]["path"], self._checked(entry["rows"]))

    def _checked(self, entry: FileEntry) -> bytes:
        uri = storage.join(self.uri, entry["path"])
        data = storage.read_bytes(uri)
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise _damaged(uri)
        return data


def open_manifolds(uris: Sequence[str]) -> list[StoredManifold]:
    """Open manifolds; a folder that holds one a space stands for all of them."""
    opened = []
    for uri in map(storage.absolute, uris):
        manifest = outputs.read(uri) or {}
        if manifest.get("kind") == MANIFOLDS:
            opened += [StoredManifold.open(storage.join(uri, name)) for name in manifest["members"]]
        else:
            opened.append(StoredManifold.open(uri))
    return opened


def _damaged(uri: str) -> DamageError:
    return DamageError(f"{uri}: differs from its manifest's hash; build the manifold again")


def _header(file: IO[bytes], sha: Any) -> tuple[int, int]:
    """Read the head of an .npy file of float32; return its rows and columns."""
    start = file.tell()
    np.lib.format.read_magic(file)
    shape, _, kind = np.lib.format.read_array_header_1_0(file)
    if kind != np.float32 or len(shape) != 2:
        raise ValueError(f"an array of {kind} {shape}, not N x d float32")
    end = file.tell()
    file.seek(start)
    sha.update(file.read(end - start))
    return shape[0], shape[1]


def _fill(out: np.ndarray, file: IO[bytes], sha: Any) -> None:
    """Fill an array of bytes from a file, a piece at a time; a missing end stays as it was."""
    for start in range(0, len(out), READ_BYTES):
        data = file.read(min(READ_BYTES, len(out) - start))
        out[start : start + len(data)] = np.frombuffer(data, np.uint8)
        sha.update(data)
