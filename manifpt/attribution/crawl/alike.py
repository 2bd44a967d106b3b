"""Images of a partition with the same pixels or the same perceptual hash: see ``duplicates``."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

NONE = np.iinfo(np.int64).max


def first_alike(pixels: np.ndarray) -> np.ndarray:
    """Return for N pixel hashes, N x 2 uint64, the row of the first that is the same."""
    order = np.lexsort((pixels[:, 1], pixels[:, 0]))  # stable: the first comes first
    line = pixels[order]
    starts = np.ones(len(line), bool)
    starts[1:] = (line[1:] != line[:-1]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def numbers_of(hexadecimal: pa.ChunkedArray) -> np.ndarray:
    """Return the first 128 bits of hashes, N x 2 uint64."""
    data = b"".join(bytes.fromhex(text[:32]) for text in hexadecimal.to_pylist())
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class PixelGroups:
    """The images of a partition by pixel hash: the first of each run, by position.

    ``first`` is the row of the first image of the same pixels. ``shown`` are the rows of images
    that are no copies and have a perceptual hash, the look; ``alike`` is the row of the first of
    these with the same look.
    """

    position: np.ndarray
    look: np.ndarray
    first: np.ndarray
    shown: np.ndarray
    alike: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "PixelGroups":
        """Return the groups of a table of the step ``pixels``."""
        pixels = np.stack([table[name].to_numpy() for name in ("high", "low")], 1)
        look, first = table["look"].fill_null(0).to_numpy(), first_alike(pixels)
        has = table["look"].is_valid().to_numpy()
        shown = np.flatnonzero((first == np.arange(len(first))) & has)
        _, start, place = np.unique(look[shown], return_index=True, return_inverse=True)
        return cls(table["position"].to_numpy(), look, first, shown, shown[start[place]])

    def near(self, answers: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return for each image the position of the first near image, or NONE, and the bits."""
        near, bits = np.full(len(self.first), NONE), np.zeros(len(self.first), np.int32)
        rows = np.searchsorted(self.position, answers["position"].to_numpy())
        near[rows], bits[rows] = answers["near"].to_numpy(), answers["bits"].to_numpy()
        again = self.alike != self.shown
        ours, theirs = self.shown[again], self.alike[again]
        found = near[theirs]
        near[ours] = np.where(found == NONE, self.position[theirs], found)
        bits[ours] = bits[theirs]
        return near[self.first], bits[self.first]


def earliest(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the looks in a table, the earliest position of each, and the place of each row's."""
    looks, positions = table["look"].to_numpy(), table["position"].to_numpy()
    values, place = np.unique(looks, return_inverse=True)
    first = np.full(len(values), NONE)
    np.minimum.at(first, place, positions)
    return values, first, place
