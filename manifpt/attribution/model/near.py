"""Marks of images that look like images of another table, by their perceptual hashes."""

import numpy as np
import pyarrow as pa

from manifpt.images.perceptual import HammingIndex

# The column of images that look like an image of training or validation.
NEAR = "near_training"


def near_marks(hashes: pa.ChunkedArray, index: HammingIndex | None) -> pa.BooleanArray:
    """Tell for each of N hashes, uint64 or null, whether one of ``index`` lies near it.

    Null means unknown: the image has no hash, or there is no index.
    """
    known = hashes.is_valid().to_numpy(zero_copy_only=False)
    if index is None:
        known = np.zeros_like(known)
    marks = index.meets(hashes.fill_null(0).to_numpy()) if index else known
    return pa.array(marks, pa.bool_(), mask=~known)
