"""Native tiles: what of an image larger than a space takes is looked at, without resampling.

The grid has no overlap, lies in the middle and begins at multiples of PHASE pixels, so that a tile
keeps the phase of JPEG's blocks and of a generator's upsampling. Where it has more tiles than are
wanted, they are ranked by texture, the mean square of a second difference; the ranks are cut into
as many groups, and the middle of each is taken. So flat parts, where the noise that a generator
leaves or lacks lies bare, and rich ones, where its upsampling shows, both count, and the tiles
stand for the whole image. An even grid may miss all texture of a picture on plain ground; the
richest alone are mostly content, and are other content for each generator. Saturated tiles hold
nothing but content, and are taken where there are no others.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

PHASE = 8
# How many an image has where the user names no number: half of the tiles of 256 pixels by 64.
USUAL = 8
MOST = 256
# A tile is saturated if more than this share of its pixels is black or white.
SATURATED = 0.25

Place = tuple[int, int]  # left and top, in native pixels


def starts(length: int, size: int) -> range:
    """Return where the tiles of a side of ``length`` pixels begin, at least ``size`` long."""
    return range(length % size // 2 // PHASE * PHASE, length - size + 1, size)


def textures(grey: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the texture of each tile of a row of them, and how many pixels are black or white.

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
    """Yield of each tile of an RGB image, row by row, whether it is saturated, texture, place."""
    columns = starts(image.width, size)
    left, right = columns[0], columns[-1] + size
    for top in starts(image.height, size):  # a row at once: of a large image all would be too many
        grey = np.asarray(image.crop((left, top, right, top + size)).convert("L"))
        for x, texture, clipped in zip(columns, *textures(grey, size), strict=True):
            yield bool(clipped > SATURATED * size * size), int(texture), (x, top)


def places_of_tiles(image: Image.Image, size: int, most: int) -> list[Place]:
    """Return where the tiles of an RGB image are, at most ``most``, row by row.

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
    """Return the tiles of an RGB image, N x size x size x 3 uint8, and where they are."""
    found = places_of_tiles(image, size, most)
    tiles = [np.asarray(image.crop((x, y, x + size, y + size))) for x, y in found]
    return np.stack(tiles), found
