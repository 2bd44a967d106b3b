"""The tiles that decided about a large image, as outlines over a picture of the whole image.

An outline's strength is the tile's support for the predicted source (see ``tiled.tile_support``).
The picture is put together from tiles, which may be several times as large as the space's, so that
few decoded pixels are needed and places need no orientation of the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
from PIL import Image

from manifpt.attribution.model.tiled import tile_support
from manifpt.images.decode import Decoded, DecodeRule
from manifpt.images.stacks import PLACES, is_stacked, tiles_of, tiles_per_row
from manifpt.images.tiles import MOST, Place
from manifpt.report.explanation_format import TileEvidence
from manifpt.report.page_pictures import Pictures
from manifpt.report.thumbnails import decoded_images

# Pixels of a side of the picture of a whole image: alone on its page, and among examples.
LARGE_SIDE, EXAMPLE_SIDE = 448, 176
# Bytes of an outline in a page, at most about.
OUTLINE_BYTES = 256
GREY = 128  # where a picture has no tile
LEGEND = (0.0, 0.25, 0.5, 0.75, 1.0)


class TiledImage(NamedTuple):
    """The native tiles of an image, N x size x size x 3 uint8, their places, and the file's size.

    ``width`` and ``height`` may be exchanged, if the file's orientation turns the image.
    """

    tiles: np.ndarray
    places: Sequence[Place]
    width: int
    height: int

    @classmethod
    def of(cls, decoded: Decoded) -> "TiledImage":
        """Return a decoded image; an image without tiles is a single tile."""
        tiles, places = decoded.pixels, decoded.places
        if tiles.ndim == 3:
            tiles, places = tiles[None], ((0, 0),)
        return cls(tiles, places, decoded.width, decoded.height)


class WholePicture(NamedTuple):
    """A picture of an image, h x w x 3 uint8, and the native rectangle that it shows."""

    pixels: np.ndarray
    left: int
    top: int
    width: int
    height: int


class OutlinedTile(TypedDict):
    """The outline of a tile, in per cent of the picture, its strength, and its text."""

    left: float
    top: float
    width: float
    height: float
    support: float
    says: str


class Overlay(TypedDict):
    """A picture of a whole image, the outlines of its tiles, and their evidence."""

    image: str
    boxes: list[OutlinedTile]
    alt: str
    evidence: list[TileEvidence]
    size: int


def tile_evidence(
    log_probability: np.ndarray, places: Sequence[Place], classes: int
) -> list[TileEvidence]:
    """Return the place of each tile and its support for a class, the strongest first.

    ``log_probability`` is that of the class, by each tile alone. ``tile`` is a tile's number.
    """
    support = tile_support(log_probability, classes)
    return [
        {
            "tile": int(n),
            "x": int(places[n][0]),
            "y": int(places[n][1]),
            "probability": float(np.exp(log_probability[n])),
            "log_probability": float(log_probability[n]),
            "support": float(support[n]),
        }
        for n in np.argsort(-log_probability, kind="stable")
    ]


def tiled_images(table: pa.Table) -> dict[str, TiledImage]:
    """Return the images of an images table that have several tiles, by URI."""
    if not is_stacked(table):
        return {}
    counts = tiles_per_row(table)
    stacks = np.split(tiles_of(table), np.cumsum(counts)[:-1])
    names = ("uri", "width", "height", PLACES)
    rows = table.select(names).to_pylist()
    return {
        row["uri"]: TiledImage(
            stack, [(p["x"], p["y"]) for p in row[PLACES]], row["width"], row["height"]
        )
        for row, stack in zip(rows, stacks, strict=True)
        if len(stack) > 1
    }


def picture_rule(width: int, height: int, rule: DecodeRule) -> DecodeRule:
    """Return the rule by which an image is decoded so that at most MOST tiles cover its picture.

    The tiles are a whole multiple of the size of ``rule``, and leave out less than one tile at the
    edges.
    """
    times = 1
    while (width // (times * rule.size)) * (height // (times * rule.size)) > MOST:
        if (times + 1) * rule.size > min(width, height):
            break
        times += 1
    return replace(rule, size=times * rule.size, tiles=MOST)


def whole_pictures(
    images: Mapping[str, TiledImage], rule: DecodeRule, side: int
) -> dict[str, WholePicture]:
    """Return pictures of at most ``side`` pixels a side of whole images, by URI.

    The images are read again. If one cannot be read, as one on the web, its picture has only its
    own tiles, on grey.
    """
    wanted: dict[DecodeRule, list[str]] = {}
    for uri, image in images.items():
        wanted.setdefault(picture_rule(image.width, image.height, rule), []).append(uri)
    found = {}
    for coarse, uris in wanted.items():
        for uri, decoded in decoded_images(uris, coarse):
            own = images[uri]
            parts = [(decoded.pixels, decoded.places), (own.tiles, own.places)]
            found[uri] = assembled(parts, side)
    missing = images.keys() - found.keys()
    return found | {
        uri: assembled([(images[uri].tiles, images[uri].places)], side) for uri in sorted(missing)
    }


def assembled(parts: Iterable[tuple[np.ndarray, Sequence[Place]]], side: int) -> WholePicture:
    """Return tiles at their places as one picture, later ones over earlier ones, reduced."""
    placed = [
        (tile, x, y) for tiles, places in parts for tile, (x, y) in zip(tiles, places, strict=True)
    ]
    left, top = min(x for _, x, _ in placed), min(y for _, _, y in placed)
    width = max(x + tile.shape[1] for tile, x, _ in placed) - left
    height = max(y + tile.shape[0] for tile, _, y in placed) - top
    canvas = np.full((height, width, 3), GREY, np.uint8)
    for tile, x, y in placed:
        canvas[y - top : y - top + tile.shape[0], x - left : x - left + tile.shape[1]] = tile
    picture = Image.fromarray(canvas)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return WholePicture(np.asarray(picture), left, top, width, height)


def legend_of(classes: int) -> list[dict[str, float]]:
    """Return the strengths in a page's legend, with the probabilities that they stand for."""
    count = max(classes, 2)
    return [{"support": s, "probability": float(count ** (s - 1))} for s in LEGEND]


def overlay(
    evidence: Sequence[TileEvidence],
    size: int,
    whole: WholePicture | None,
    source: str,
    pictures: Pictures,
    side: int,
) -> Overlay | None:
    """Return the outlines of an image's tiles; None for an image of one tile, or no picture.

    ``evidence`` is that of ``tile_evidence`` for the predicted ``source``; outlines are in per cent
    of the picture. Their text counts as bytes of pictures.
    """
    if whole is None or len(evidence) < 2:
        return None
    uri = pictures.uri(whole.pixels, side)
    if uri is None:
        return None
    pictures.left -= OUTLINE_BYTES * len(evidence)
    boxes: list[OutlinedTile] = [
        {
            "left": 100 * (one["x"] - whole.left) / whole.width,
            "top": 100 * (one["y"] - whole.top) / whole.height,
            "width": 100 * size / whole.width,
            "height": 100 * size / whole.height,
            "support": one["support"],
            "says": f"x {one['x']}, y {one['y']}: {source} {one['probability']:.3f}",
        }
        for one in reversed(evidence)  # so that the strongest is drawn last, over all others
    ]
    first, last = evidence[0], evidence[-1]
    alt = (
        f"The image with {len(evidence)} tiles outlined. The strongest for {source} is at "
        f"x {first['x']}, y {first['y']}, probability {first['probability']:.3f}; the weakest at "
        f"x {last['x']}, y {last['y']}, probability {last['probability']:.3f}."
    )
    return {"image": uri, "boxes": boxes, "alt": alt, "evidence": list(evidence), "size": size}
