"""Tiles -> images: a network's output for an image is the mean of those for its tiles.

The mean of logits is a logarithmic opinion pool of the tiles (see ``fusion``), each to the power of
one over their number: more tiles do not make an image surer, since tiles depend on each other. The
temperature is fitted on validation images, pooled in the same way (see ``attributor_calibration``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt.attribution.unknown.known import Outputs

# The largest number of tiles that are named as the evidence of an image.
SHOWN = 3

TILED = {
    "tiles": pa.int32(),
    "deciding_tiles": pa.list_(
        pa.struct({"x": pa.int32(), "y": pa.int32(), "probability": pa.float64()})
    ),
}


def rows_per_image(begins: np.ndarray, rows: int) -> np.ndarray:
    """Return the number of N ``rows`` of each image; ``begins`` are the first of each, rising."""
    return np.diff(np.append(begins, rows))


def means(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Return the mean of each image's rows, images x ..., of N x ..., in the type of these."""
    if len(begins) == len(values):
        return values
    sums = np.add.reduceat(values.astype(np.float64), begins)
    counts = rows_per_image(begins, len(values)).reshape(-1, *(1,) * (values.ndim - 1))
    found: np.ndarray = (sums / counts).astype(values.dtype)
    return found


def pooled_tiles(outputs: Outputs, begins: np.ndarray) -> Outputs:
    """Return a network's outputs for images from those for their tiles."""
    features = [means(head, begins) for head in outputs.features]
    return Outputs(means(outputs.logits, begins), features)


def tile_support(log_probability: np.ndarray, classes: int) -> np.ndarray:
    """Return the support of each tile for a class, 0 to 1, from its log-probability of the class.

    Up to a constant, an image's log-probability of a class is the mean of its tiles' (see above),
    so that equal differences of a log-probability weigh equally. 1 is certainty; 0 is a guess among
    ``classes``, or less.

    >>> tile_support(np.log([1.0, 0.5, 0.25, 0.1]), 4).round(6).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """
    found: np.ndarray = np.clip(1 + log_probability / np.log(max(classes, 2)), 0.0, 1.0)
    return found


def rows_by_probability(probability: np.ndarray, begins: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each image, those with the greatest of N probabilities first."""
    parts = np.split(probability, begins[1:])
    orders = (np.argsort(-part, kind="stable") for part in parts)
    return [begin + order for begin, order in zip(begins, orders, strict=True)]


def pooled_columns(
    rows: pa.Table,
    beside: Mapping[str, Sequence[Any]],
    begins: np.ndarray,
    probabilities: np.ndarray,
    predicted: np.ndarray,
) -> dict[str, list[Any]]:
    """Return the columns ``beside`` of images, of those of their tiles, and TILED.

    ``rows`` are the tiles' own columns. The neighbour is that of the first deciding tile: the one
    with the greatest of ``probabilities``, N x classes, for the image's ``predicted`` class.
    Distance and percentile are means.
    """
    counts = rows_per_image(begins, rows.num_rows)
    its_own = probabilities[np.arange(rows.num_rows), np.repeat(predicted, counts)]
    order = rows_by_probability(its_own, begins)
    x, y = rows["tile_x"].to_pylist(), rows["tile_y"].to_pylist()
    shown = [
        [{"x": x[row], "y": y[row], "probability": float(its_own[row])} for row in image[:SHOWN]]
        for image in order
    ]
    return {
        "neighbor_id": [beside["neighbor_id"][image[0]] for image in order],
        "distance": mean_or_none(beside["distance"], begins),
        "percentile": mean_or_none(beside["percentile"], begins),
        "in_manifold": [beside["in_manifold"][row] for row in begins],
        "tiles": counts.tolist(),
        "deciding_tiles": shown,
    }


def mean_or_none(values: Sequence[float | None], begins: np.ndarray) -> list[float | None]:
    """Return the mean of each image's values; None for an image without, as without a manifold."""
    found = means(np.array(values, dtype=np.float64), begins).tolist()
    return [None if np.isnan(value) else value for value in found]
