"""Tiles pooled into images, against sums by hand."""

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifpt.attribution.model.fusion import fused_log_probabilities
from manifpt.attribution.model.tiled import (
    SHOWN,
    means,
    pooled_columns,
    pooled_tiles,
    rows_by_probability,
)
from manifpt.attribution.unknown.known import Outputs

COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def begins_of(counts):
    return np.cumsum([0, *counts[:-1]])


@given(COUNTS, st.integers(0, 99))
def test_images_are_the_means_of_their_tiles(counts, seed):
    rng = np.random.default_rng(seed)
    rows = sum(counts)
    tiles = Outputs(
        rng.normal(0, 3, (rows, 2, 4)).astype(np.float32),
        [rng.normal(size=(rows, width)).astype(np.float32) for width in (5, 3)],
    )
    images = pooled_tiles(tiles, begins_of(counts))
    parts = np.split(np.arange(rows), np.cumsum(counts)[:-1])
    for given_values, found in zip(
        [tiles.logits, *tiles.features], [images.logits, *images.features], strict=True
    ):
        expected = np.stack([given_values[part].mean(0) for part in parts])
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found.dtype == given_values.dtype
    # The pool is the geometric mean of the tiles' probabilities.
    each = np.exp(tiles.logits) / np.exp(tiles.logits).sum(2, keepdims=True)
    weights = torch.tensor([0.7, 0.4])
    fused = fused_log_probabilities(torch.from_numpy(images.logits), weights).exp().numpy()
    for part, found in zip(parts, fused, strict=True):
        geometric = np.prod(each[part] ** (1 / len(part)), axis=0)
        geometric /= geometric.sum(1, keepdims=True)
        product = geometric[0] ** 0.7 * geometric[1] ** 0.4
        np.testing.assert_allclose(found, product / product.sum(), atol=1e-5)


def test_an_image_of_one_tile_is_that_tile():
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert means(values, np.arange(5)) is values
    mixed = means(values, np.array([0, 1, 4]))
    assert np.array_equal(mixed[[0, 2]], values[[0, 4]])


@given(COUNTS, st.integers(0, 99))
def test_the_tiles_that_decided_come_first(counts, seed):
    rng = np.random.default_rng(seed)
    rows, begins = sum(counts), begins_of(counts)
    probabilities = rng.integers(0, 4, (rows, 2)) / 4  # some are equal
    predicted = rng.integers(0, 2, len(counts))
    table = pa.table({"tile_x": np.arange(rows) * 8, "tile_y": np.arange(rows) * 16})
    beside = {
        "neighbor_id": [f"n{row}" for row in range(rows)],
        "distance": np.arange(rows, dtype=float).tolist(),
        "percentile": [None] * rows,
        "in_manifold": np.repeat(np.arange(len(counts)) % 2 == 0, counts).tolist(),
    }
    found = pooled_columns(table, beside, begins, probabilities, predicted)
    for n, (begin, count) in enumerate(zip(begins, counts, strict=True)):
        mine = list(range(begin, begin + count))
        mine.sort(key=lambda row, n=n: (-probabilities[row, predicted[n]], row))
        shown = found["deciding_tiles"][n]
        assert [one["x"] // 8 for one in shown] == mine[:SHOWN]
        assert [one["y"] // 16 for one in shown] == mine[:SHOWN]
        assert [one["probability"] for one in shown] == [
            probabilities[row, predicted[n]] for row in mine[:SHOWN]
        ]
        assert found["neighbor_id"][n] == f"n{mine[0]}"
        assert found["distance"][n] == np.mean(range(begin, begin + count))
        assert found["percentile"][n] is None
        assert found["in_manifold"][n] == (n % 2 == 0)
    assert found["tiles"] == counts
    assert np.concatenate(rows_by_probability(probabilities[:, 0], begins)).tolist() == [
        row
        for begin, count in zip(begins, counts, strict=True)
        for row in sorted(range(begin, begin + count), key=lambda r: (-probabilities[r, 0], r))
    ]
