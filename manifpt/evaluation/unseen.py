"""The rows of a table that an evaluation may count: those that no step of the attributor has seen.

Seen images are recognised by their pixels. An image that looks like one of training or validation,
by its perceptual hash, may be a copy of it, the next frame or the same scene: splits by content put
such images on both sides. They are marked, and left out unless asked for.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from manifpt.artifacts.branches import LOOKS
from manifpt.attribution.model.near import NEAR, near_marks
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.images.perceptual import HammingIndex
from manifpt.nets.device import device_and_precision


@dataclass
class Unseen:
    """The attributor ``model`` in one process, and the rows that it has not seen."""

    model: str
    keep_near: bool

    @cached_property
    def attributor(self) -> TrainedAttributor:
        """The attributor, read at first use."""
        return TrainedAttributor.open(self.model, device_and_precision()[0])

    @cached_property
    def seen(self) -> frozenset[str]:
        """The pixel hashes of training and validation."""
        return self.attributor.seen()

    @cached_property
    def looks(self) -> HammingIndex | None:
        """The perceptual hashes of training and validation; None if the attributor has none."""
        hashes = self.attributor.seen_looks()
        return None if hashes is None else HammingIndex(hashes)

    def marked(self, table: pa.Table) -> pa.Table:
        """Return the table with a column ``near_training``, null where unknown."""
        return table.append_column(NEAR, near_marks(table[LOOKS], self.looks))

    def unusable(self, table: pa.Table, in_manifold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return masks of the seen rows, and of the unseen rows of other sources.

        ``in_manifold`` says which rows the manifold has.
        """
        hashes, sources = table["pixel_sha256"].to_pylist(), table["source"].to_pylist()
        known = in_manifold | np.array([h in self.seen for h in hashes], dtype=bool)
        classes = self.attributor.classes
        other = ~known & np.array([source not in classes for source in sources], dtype=bool)
        return known, other
