"""The images table of images with tiles: a row for each image, or for each tile to be embedded.

By a rule with tiles, the column ``image`` holds the bytes of each image's stack of tiles, and
PLACES their positions: counts, splits and hashes stay those of images. ``pixel_sha256`` is that of
the whole stack; for an image of one tile, it is the tile's. Embedding uses ``read.as_space_sees``.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifpt.images.decode import DecodeRule
from manifpt.images.tiles import Place

PLACES = "tile_places"
PLACE_LIST = pa.list_(pa.struct({"x": pa.int32(), "y": pa.int32()}))
# Beside the other columns of a row that is a tile: its number in its image, its left and top in
# native pixels, and the hash of its own pixels.
TILE = {
    "tile": pa.int32(),
    "tile_x": pa.int32(),
    "tile_y": pa.int32(),
    "tile_sha256": pa.string(),
}


def stacked(stacks: Sequence[np.ndarray]) -> pa.Array:
    """Return stacks of tiles, each tiles x size x size x 3 uint8, as a column."""
    return pa.array([stack.tobytes() for stack in stacks], pa.large_binary())


def placed(places: Sequence[Sequence[Place]]) -> pa.Array:
    """Return the places of the tiles of each image as a column."""
    return pa.array([[{"x": x, "y": y} for x, y in found] for found in places], PLACE_LIST)


def is_stacked(table: pa.Table) -> bool:
    """Tell whether an images table has a stack of tiles a row."""
    return PLACES in table.column_names


def tiles_per_row(table: pa.Table) -> np.ndarray:
    """Return the number of tiles of each row of a table of stacks."""
    counts: np.ndarray = pc.list_value_length(table[PLACES]).to_numpy()
    return counts


def image_of_each_tile(table: pa.Table) -> np.ndarray:
    """Return the image of each tile of a table of stacks: its row."""
    return np.repeat(np.arange(table.num_rows), tiles_per_row(table))


def tiles_of(table: pa.Table) -> np.ndarray:
    """Return the tiles of all rows of a table of stacks, N x size x size x 3 uint8."""
    found = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8)
    size = math.isqrt(len(found) // (3 * max(1, len(image_of_each_tile(table)))))
    return found.reshape(-1, size, size, 3)


def restacked(table: pa.Table, tiles: np.ndarray) -> pa.Table:
    """Return a table of stacks with other pixels: N x size x size x 3 uint8, in order."""
    stacks = np.split(tiles, np.cumsum(tiles_per_row(table))[:-1])
    return table.set_column(table.column_names.index("image"), "image", stacked(stacks))


def unstacked(table: pa.Table) -> pa.Table:
    """Return a table of stacks with a row a tile, its pixels in ``image``, and the columns TILE."""
    of, tiles = image_of_each_tile(table), tiles_of(table)
    fixed = [f.name for f in table.schema if isinstance(f.type, pa.FixedShapeTensorType)]
    rows = table.drop_columns(["image", PLACES, *fixed]).take(pa.array(of))
    places = pc.list_flatten(table[PLACES]).combine_chunks()
    columns = {
        "image": pa.FixedShapeTensorArray.from_numpy_ndarray(tiles),
        "tile": pa.array(np.arange(len(of)) - np.searchsorted(of, of), pa.int32()),
        "tile_x": places.field("x"),
        "tile_y": places.field("y"),
        "tile_sha256": pa.array([hashlib.sha256(t.tobytes()).hexdigest() for t in tiles]),
    }
    for name, values in columns.items():
        rows = rows.append_column(name, values)
    return rows


def image_starts(table: pa.Table) -> np.ndarray:
    """Return the rows at which images begin, in a table with a row a tile or a row an image."""
    if "tile" not in table.column_names:
        return np.arange(table.num_rows)
    return np.flatnonzero(table["tile"].to_numpy() == 0)


def own_hashes(table: pa.Table) -> list[str]:
    """Return the hash of the pixels of each row: of the tile, where rows are tiles."""
    column = "tile_sha256" if "tile_sha256" in table.column_names else "pixel_sha256"
    hashes: list[str] = table[column].to_pylist()
    return hashes


def reading_rule(rules: Sequence[DecodeRule]) -> DecodeRule:
    """Return the rule by which images are decoded for several: the first with tiles, if any."""
    return next((rule for rule in rules if rule.tiles), rules[0])


def sizes_beside(rule: DecodeRule, rules: Sequence[DecodeRule]) -> tuple[int, ...]:
    """Return the sizes of whole images that rules need beside the pixels of ``rule``."""
    whole = {one.size for one in rules if not one.tiles}
    return tuple(sorted(whole if rule.tiles else whole - {rule.size}))
