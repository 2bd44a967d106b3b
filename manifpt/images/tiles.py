"""Native tiles of an image that is larger than the size of a space, without resampling.

The grid has no overlap, lies in the middle and begins at multiples of PHASE pixels, so that a tile
keeps the phase of JPEG's blocks and of a generator's upsampling. If it has more tiles than wanted,
they are ranked by texture, the mean square of a second difference; the ranks are cut into that
number of groups, and the middle tile of each group is taken. The tiles then include flat parts,
which show the noise of a generator or its absence, and rich parts, which show its upsampling. An
even grid may miss all texture of a picture on plain ground; the richest tiles alone are mostly
content, which differs between generators. Saturated tiles hold nothing but content, and are taken
only if there are no others.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

PHASE = 8
# The number of tiles if the user gives none: half of the tiles of 64 pixels in 256 pixels.
USUAL = 8
MOST = 256
# A tile is saturated if more than this share of its pixels is black or white.
SATURATED = 0.25

Place = tuple[int, int]  # left and top, in native pixels


def starts(length: int, size: int) -> range:
    """Return the starts of the tiles along a side of ``length`` >= ``size`` pixels."""
    return range(length % size // 2 // PHASE * PHASE, length - size + 1, size)


def textures(grey: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the texture of each tile of a row of tiles, and its number of black or white pixels.

    ``grey`` is size x (n * size) uint8. Texture is the sum of the squares of second differences
    along both axes, inside of the tile: whole numbers, the same on every machine.
    """
    tiles = grey.reshape(size, -1, size).swapaxes(0, 1).astype(np.int32)
    clipped = ((tiles == 0) | (tiles == 255)).sum((1, 2))
    sums = np.zeros(len(tiles), np.int64)
    for turned in (tiles, tiles.swapaxes(1, 2)):
        bent = 2 * turned[:, 1:-1] - turned[:, :-2] - turned[:, 2:]
        sums += np.square(bent).sum((1, 2), dtype=np.int64)
    return sums, clipped


def _ranked(image: Image.Image, size: int) -> Iterator[tuple[bool, int, Place]]:
    """Yield whether it is saturated, texture and place of each tile of an RGB image, row by row."""
    columns = starts(image.width, size)
    left, right = columns[0], columns[-1] + size
    for top in starts(image.height, size):  # one row at once, to bound memory
        grey = np.asarray(image.crop((left, top, right, top + size)).convert("L"))
        for x, texture, clipped in zip(columns, *textures(grey, size), strict=True):
            yield bool(clipped > SATURATED * size * size), int(texture), (x, top)


def places_of_tiles(image: Image.Image, size: int, most: int) -> list[Place]:
    """Return the places of the tiles of an RGB image, at most ``most``, row by row.

    Both sides of the image have at least ``size`` pixels. Tiles of one texture are ranked by place.
    """
    columns, rows = starts(image.width, size), starts(image.height, size)
    if len(columns) * len(rows) <= most:
        return [(x, y) for y in rows for x in columns]
    ranked = sorted(_ranked(image, size), key=lambda tile: (tile[:2], tile[2][::-1]))
    usable = [place for saturated, _, place in ranked if not saturated]
    count = len(usable)
    if count >= most:
        chosen = [usable[(2 * group + 1) * count // (2 * most)] for group in range(most)]
    else:
        chosen = [place for _, _, place in ranked[:most]]
    return sorted(chosen, key=lambda place: place[::-1])


def cut_tiles(image: Image.Image, size: int, most: int) -> tuple[np.ndarray, list[Place]]:
    """Return the tiles of an RGB image, N x size x size x 3 uint8, and their places."""
    found = places_of_tiles(image, size, most)
    tiles = [np.asarray(image.crop((x, y, x + size, y + size))) for x, y in found]
    return np.stack(tiles), found
