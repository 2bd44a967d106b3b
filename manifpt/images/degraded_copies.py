"""Degraded images of an images table: views of every row, and copies beside training images.

The random degradation of an image depends on a seed, its pixels and the number of the copy, and
neither on the batch nor on the order. A degraded image keeps its original's pixel hash: it counts
as seen if the original does, and is never compared with it in a manifold.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from manifpt.images.degrade import Degradation, StrengthRange, generator
from manifpt.images.stacks import image_of_each_tile, is_stacked, restacked, tiles_of, unstacked

# The column of an augmented table with the degradation of a copy; null for originals.
COLUMN = "degradation"


def degraded(
    table: pa.Table, how: Sequence[Degradation], keys: Sequence[str], filter_name: str
) -> pa.Table:
    """Return an images table, all its sizes, with each row's image degraded by its key.

    Tiles of an image are degraded by the same kind and strength, each by itself: the influence of
    the pixels around it, at its edges, is left out. JPEG's blocks stay where they were.
    """
    if table.num_rows == 0:
        return table
    if is_stacked(table):
        table = restacked(table, _tiles(table, how, keys, filter_name))
    for place, name in enumerate(table.column_names):
        if isinstance(table.schema.field(name).type, pa.FixedShapeTensorType):
            images = table[name].combine_chunks().to_numpy_ndarray()
            rows = zip(images, how, keys, strict=True)
            made = np.stack([one(image, key, filter_name) for image, one, key in rows])
            tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(made)
            table = table.set_column(place, name, tensor)
    return table


def _tiles(
    table: pa.Table, how: Sequence[Degradation], keys: Sequence[str], filter_name: str
) -> np.ndarray:
    """Return the tiles of a table of stacks degraded; the first of each has the image's key."""
    rows = unstacked(table)
    made = [
        how[row](tile, f"{keys[row]} {number}" if number else keys[row], filter_name)
        for row, number, tile in zip(
            image_of_each_tile(table), rows["tile"].to_pylist(), tiles_of(table), strict=True
        )
    ]
    return np.stack(made)


def view(table: pa.Table, how: Degradation, filter_name: str, seed: int = 0) -> pa.Table:
    """Return an images table with every image degraded alike."""
    keys = [f"{seed} {sha}" for sha in table["pixel_sha256"].to_pylist()]
    return degraded(table, [how] * table.num_rows, keys, filter_name)


def copy_id(name: str, number: int) -> str:
    """Return the id of a copy, counted from 1, of the image of an id."""
    return f"{name}~{number}"


def original_id(name: str) -> str:
    """Return the id of the original of a copy with this id."""
    return name.rpartition("~")[0]


class AugmentationCard(TypedDict):
    """An augmentation in a manifest, its ranges as text."""

    ranges: list[str]
    copies: int
    validation: bool
    seed: int


@dataclass(frozen=True)
class Augmentation:
    """Degraded copies: ``copies`` of each training image of any class, one of a validation image.

    Each copy has one kind out of ``ranges``, all equally often, with a strength drawn from its
    range. With ``validation``, half of the images that choose the epoch and fit the calibration are
    degraded; without it, all are clean. Test images are never degraded.
    """

    ranges: tuple[StrengthRange, ...]
    copies: int = 1
    validation: bool = True
    seed: int = 0

    def card(self) -> AugmentationCard:
        """Return all settings that decide the copies, as JSON values."""
        return {
            "ranges": [str(one) for one in self.ranges],
            "copies": self.copies,
            "validation": self.validation,
            "seed": self.seed,
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Augmentation":
        """Return the augmentation that a manifest carries."""
        ranges = tuple(StrengthRange.parse(text) for text in card["ranges"])
        return cls(ranges, card["copies"], card["validation"], card["seed"])

    def count(self, split: str) -> int:
        """Return the number of copies of an image of a split."""
        return {"train": self.copies, "validation": int(self.validation)}.get(split, 0)

    def extended(
        self, table: pa.Table, split: Sequence[str], filter_name: str
    ) -> tuple[pa.Table, list[str]]:
        """Return an images table with its copies after its rows, and the split of each row."""
        made = [
            (row, number)
            for row, name in enumerate(split)
            for number in range(1, self.count(name) + 1)
        ]
        clean = table.append_column(COLUMN, pa.nulls(table.num_rows, pa.string()))
        both = pa.concat_tables([clean, self._made(table, made, filter_name)])
        return both, [*split, *(split[row] for row, _ in made)]

    def copies_again(self, table: pa.Table, wanted: Container[str], filter_name: str) -> pa.Table:
        """Return the copies of an images table whose ids are wanted, as they were made before."""
        made = [
            (row, number)
            for row, name in enumerate(table["id"].to_pylist())
            for number in range(1, max(self.copies, 1) + 1)
            if copy_id(name, number) in wanted
        ]
        return self._made(table, made, filter_name)

    def _made(self, table: pa.Table, made: Sequence[tuple[int, int]], filter_name: str) -> pa.Table:
        """Return copies, each given by the row of its original and its number."""
        table = table.take(pa.array([row for row, _ in made], pa.int64()))
        numbers = [number for _, number in made]
        hashes, names = table["pixel_sha256"].to_pylist(), table["id"].to_pylist()
        keys = [f"{self.seed} {n} {sha}" for n, sha in zip(numbers, hashes, strict=True)]
        how = [self._drawn(key) for key in keys]
        ids = pa.array(map(copy_id, names, numbers), pa.string())
        table = table.set_column(table.column_names.index("id"), "id", ids)
        texts = pa.array(map(str, how), pa.string())
        return degraded(table, how, keys, filter_name).append_column(COLUMN, texts)

    def _drawn(self, key: str) -> Degradation:
        rng = generator(key)
        return self.ranges[rng.integers(len(self.ranges))].draw(rng)
