"""Arrays in Parquet: fixed-size lists, which every Parquet reader knows."""

import numpy as np
import pyarrow as pa


def to_column(arrays: np.ndarray) -> pa.Array:
    """Return N x shape as a column of N fixed-size lists, each array flattened in C order."""
    flat = np.ascontiguousarray(arrays).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), int(np.prod(arrays.shape[1:])))


def from_column(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of N fixed-size lists of d values as N x d."""
    array = column.combine_chunks()
    return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)
