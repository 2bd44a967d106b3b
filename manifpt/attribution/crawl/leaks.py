"""Marks of images that the attributor or a manifold has seen, and of images that look like these.

An answer about a training image says nothing about other images. ``in_training`` is exact, by the
hash of the decoded pixels, as ``in_manifold`` is; near is by the perceptual hash, copies included.
Null means unknown: the image is flat, or the attributor or a manifold was made before there were
such hashes, which the summary lists as unavailable.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from manifpt.attribution.crawl.crawl_format import Leak, LeakCounts
from manifpt.attribution.model.near import near_marks
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.images.perceptual import HammingIndex
from manifpt.manifold.stored import StoredManifold

LEAKS: tuple[Leak, ...] = ("in_training", "near_training", "near_manifold")


@dataclass(frozen=True)
class Leaks:
    """Pixel hashes of training and validation, and looks of these and of the manifolds' reals."""

    seen: frozenset[str]
    near: dict[str, HammingIndex | None]

    @classmethod
    def of(
        cls, attributor: TrainedAttributor, manifolds: Sequence[StoredManifold], distance: int
    ) -> "Leaks":
        """Read the hashes of the images of an attributor and of its manifolds."""
        reals = [manifold.perceptual_hashes() for manifold in manifolds]
        known = [hashes for hashes in reals if hashes is not None]
        every = np.unique(np.concatenate(known)) if known and len(known) == len(reals) else None
        looks = {"near_training": attributor.seen_looks(), "near_manifold": every}
        index = {
            name: None if hashes is None else HammingIndex(hashes, distance)
            for name, hashes in looks.items()
        }
        return cls(attributor.seen(), index)

    def marked(self, table: pa.Table) -> tuple[pa.Table, LeakCounts]:
        """Return attributions with the columns LEAKS, and the number of rows that each marks."""
        exact = [sha in self.seen for sha in table["pixel_sha256"].to_pylist()]
        table = table.append_column("in_training", pa.array(exact, pa.bool_()))
        for name, index in self.near.items():
            table = table.append_column(name, near_marks(table["perceptual_hash"], index))
        counts = _none([name for name, index in self.near.items() if not index])
        for name in LEAKS:
            counts[name] = sum(map(bool, table[name].to_pylist()))
        return table, counts


def _none(unavailable: list[str]) -> LeakCounts:
    """Return counts of zero."""
    return {"in_training": 0, "near_training": 0, "near_manifold": 0, "unavailable": unavailable}


def total_leaks(found: Iterable[LeakCounts]) -> LeakCounts:
    """Add up the counts of ``Leaks.marked`` over chunks."""
    total = _none([])
    for counts in found:
        for name in LEAKS:
            total[name] += counts[name]
        total["unavailable"] = sorted({*total["unavailable"], *counts["unavailable"]})
    return total
