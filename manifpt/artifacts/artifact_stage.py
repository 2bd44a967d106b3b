"""The stage of the pipeline that makes artifacts of images, and counts them by split and source."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from manifpt.artifacts.artifacts_format import (
    ArtifactChunkFacts,
    ChannelMoments,
    ChannelSums,
    SplitByCounts,
    SplitCounts,
)
from manifpt.artifacts.projection import Projected, Projector, project_images
from manifpt.engine import chunk_work
from manifpt.engine.columns import ColumnTypes
from manifpt.errors import ManifptError
from manifpt.images import IMAGES
from manifpt.images.degraded_copies import COLUMN, Augmentation
from manifpt.images.read import pixel_columns
from manifpt.images.splits import split_columns, splits_of
from manifpt.images.stacks import TILE, image_of_each_tile, image_starts, is_stacked
from manifpt.outputs.formats import ChunkRecord
from manifpt.storage import tensors

EVALUATED = ("train", "validation", "test")

ARTIFACTS = {
    "id": pa.string(),
    "uri": pa.string(),
    "source": pa.string(),
    "split": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "perceptual_hash": pa.uint64(),
    "neighbor_id": pa.string(),
    "distance": pa.float64(),
    "percentile": pa.float64(),
    "in_manifold": pa.bool_(),
}
# The degradation of each copy, where artifacts have degraded copies.
AUGMENTED = {COLUMN: pa.string()}


@dataclass
class ArtifactStage:
    """Images -> one artifacts table a split, for each of the projectors.

    The tables of a projector go to the folder of its name; the name of a single projector is "".
    ``augmentation`` puts degraded copies beside images before they are embedded. ``undeclared`` and
    ``split_by`` are those of ``splits.splits_of``. Where images have tiles, rows are tiles. With
    ``embedded`` tables have embeddings, as ``artifact``, in place of images.
    """

    projectors: dict[str, Projector]
    undeclared: str
    float16: bool
    augmentation: Augmentation | None = None
    split_by: str | None = None
    embedded: bool = False

    @property
    def takes(self) -> ColumnTypes:
        """The columns of an images table, or of a table of embeddings."""
        names = ("id", "uri", "source", "sha256", "pixel_sha256", "perceptual_hash")
        types = {name: IMAGES[name] for name in names} | split_columns(self.split_by)
        if self.embedded:
            return {**types, "artifact": None}
        return types | pixel_columns([one.rule for one in self.projectors.values()])

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """The columns of artifacts, the same for all projectors and splits."""
        types: ColumnTypes = ARTIFACTS | {"artifact": None}
        if self.augmentation is not None:
            types |= AUGMENTED
        if any(projector.rule.tiles for projector in self.projectors.values()):
            types |= TILE
        return {posixpath.join(name, s): types for name in self.projectors for s in EVALUATED}

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Project, and note the moments of the training artifacts for their normalisation."""
        split, *counted = splits_of(table, self.undeclared, self.split_by)
        if self.augmentation is not None:
            filter_name = next(iter(self.projectors.values())).rule.filter
            table, split = self.augmentation.extended(table, split, filter_name)
        projections = project_images(list(self.projectors.values()), table)
        if is_stacked(table):
            split = [split[image] for image in image_of_each_tile(table)]
        masks = {name: np.array([s == name for s in split]) for name in EVALUATED}
        masks = {name: mask for name, mask in masks.items() if mask.any()}
        tables, moments = {}, {}
        for folder, projected in zip(self.projectors, projections, strict=True):
            rows, artifacts = self._rows(projected, split), projected.artifacts
            for name, mask in masks.items():
                tables[posixpath.join(folder, name)] = rows.filter(pa.array(mask))
            by_split = {name: channel_moments(artifacts[mask]) for name, mask in masks.items()}
            moments[folder] = by_split
        facts: ArtifactChunkFacts = {"moments": moments, "split_by": counted}
        facts |= _counted(projections[0].rows, masks)
        return chunk_work.Result(tables, facts)

    def _rows(self, projected: Projected, split: list[str]) -> pa.Table:
        """Return the artifacts table of projected images; ``split`` is that of each row."""
        table, artifacts, columns = projected
        also = [name for name in (*AUGMENTED, *TILE) if name in table.column_names]
        names = ["id", "uri", "source", "sha256", "pixel_sha256", "perceptual_hash", *also]
        rows = table.select(names)
        for name, values in ({"split": split} | columns).items():
            rows = rows.append_column(name, pa.array(values, ARTIFACTS[name]))
        stored = as_float16(artifacts) if self.float16 else artifacts
        return rows.select([*ARTIFACTS, *also]).append_column("artifact", tensors.to_column(stored))


def _counted(rows: pa.Table, masks: dict[str, np.ndarray]) -> ArtifactChunkFacts:
    """Return the number of images of each source by split, and the number of tiles, if any."""
    sources, begins = rows["source"].to_pylist(), np.zeros(rows.num_rows, bool)
    begins[image_starts(rows)] = True

    def counts(selected: np.ndarray) -> SplitCounts:
        return {
            name: dict(Counter(str(sources[row]) for row in np.flatnonzero(mask & selected)))
            for name, mask in masks.items()
        }

    facts: ArtifactChunkFacts = {"classes": counts(begins)}
    if "tile" in rows.column_names:
        facts["tiles"] = counts(np.ones_like(begins))
    return facts


def as_float16(artifacts: np.ndarray) -> np.ndarray:
    """Return artifacts or embeddings as float16; raise if one is beyond its range."""
    most = np.finfo(np.float16).max
    if np.abs(artifacts).max(initial=0) > most:
        raise ManifptError(f"--float16: a number is beyond {most:.0f}; leave it out")
    return artifacts.astype(np.float16)


def chunk_facts(records: Sequence[ChunkRecord]) -> Iterator[ArtifactChunkFacts]:
    """Yield the facts of each chunk of artifacts."""
    return (record["facts"] for record in records)


def channel_moments(artifacts: np.ndarray) -> ChannelSums:
    """Return count, sum and sum of squares of each channel of N x C x H x W, in float64."""
    values = artifacts.astype(np.float64)
    axes = (0, *range(2, values.ndim))
    count = values.size // values.shape[1]
    return {
        "count": count,
        "sum": values.sum(axes).tolist(),
        "square": np.square(values).sum(axes).tolist(),
    }


def total_moments(parts: Sequence[ChannelSums]) -> ChannelMoments:
    """Return mean and standard deviation of each channel from sums of ``channel_moments``."""
    if not parts:
        return {}
    count = sum(m["count"] for m in parts)
    mean = np.sum([m["sum"] for m in parts], axis=0) / count
    square = np.sum([m["square"] for m in parts], axis=0) / count
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(square - mean**2, 0)).tolist()}


def evaluated_classes(
    records: Sequence[ChunkRecord], fact: Literal["classes", "tiles"] = "classes"
) -> SplitCounts:
    """Return the number of images, or ``tiles``, of each source in records, by split."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in EVALUATED}
    for facts in chunk_facts(records):
        for split, by_class in facts.get(fact, {}).items():
            counts[split].update(by_class)
    return {split: dict(sorted(by_class.items())) for split, by_class in counts.items()}


def counted_splits(records: Sequence[ChunkRecord]) -> SplitByCounts:
    """Return the number of images split ``by_value`` of a column, and of those without a value."""
    counts = [facts.get("split_by", [0, 0]) for facts in chunk_facts(records)]
    return {
        "by_value": sum(by_value for by_value, _ in counts),
        "without_value": sum(without for _, without in counts),
    }
