"""Images -> x, x* and artifact in each space of an attributor, as a page shows them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from manifpt.artifacts.projection import Projected, Projector, decoding_of
from manifpt.images.read import as_space_sees, pixels_of
from manifpt.images.stacks import image_starts
from manifpt.report.examples import (
    SpacePictures,
    Triplet,
    View,
    pictures_of_reals,
    projected_pixels,
    standardised,
)
from manifpt.report.explanation import Explainer
from manifpt.report.explanation_format import TileEvidence
from manifpt.report.page_pictures import Pictures, flattened, is_picture, signed
from manifpt.report.tile_overlay import (
    EXAMPLE_SIDE,
    Overlay,
    overlay,
    tiled_images,
    whole_pictures,
)

# With fewer images a standard deviation is not reliable, and vectors are drawn as they are.
LEAST_SPREAD = 8


def displayable(artifacts: np.ndarray) -> list[np.ndarray]:
    """Return N artifacts, N x shape, to be drawn; those of vectors in standard deviations."""
    if not is_picture(artifacts.shape[1:]) and len(artifacts) >= LEAST_SPREAD:
        std = artifacts.std(0)
        return [flattened(standardised(one, std)) for one in artifacts]
    return [flattened(one) for one in artifacts]


def triplets(
    explainer: Explainer,
    table: pa.Table,
    sources: Sequence[str],
    pictures: Pictures,
    side: int = EXAMPLE_SIDE,
) -> tuple[list[View], list[Triplet]]:
    """Return the view of each space, and the pictures of each image of an images table.

    ``sources`` are the predicted ones. For an image in tiles, the tile with most support for its
    source is shown, beside a picture of the whole with at most ``side`` pixels a side.
    """
    made = explainer.projected(table)
    evidence = explainer.tiles(made, sources)
    strongest = [tiles[0]["tile"] if tiles else 0 for tiles in evidence]
    shown_rows = image_starts(made[0].rows) + np.array(strongest, np.int64)
    names = [branch["name"] for branch in explainer.attributor.branches]
    views: list[View] = []
    overlays = _overlays(explainer, table, evidence, sources, pictures, side)
    rows: list[Triplet] = [{"image": None, "views": [], "tiles": o} for o in overlays]
    for name, projector, one in zip(names, explainer.projectors, made, strict=True):
        pixels = _pixels(projector, table, shown_rows)
        for row, image in zip(rows, pixels, strict=True):
            row["image"] = row["image"] or pictures.uri(image)
        if projector.manifold is None:
            continue
        view, found = _in_space(name, projector, one, shown_rows, pixels, pictures)
        views.append(view)
        for row, seen in zip(rows, found, strict=True):
            row["views"].append(seen)
    return views, rows


def _overlays(
    explainer: Explainer,
    table: pa.Table,
    evidence: Sequence[list[TileEvidence]],
    sources: Sequence[str],
    pictures: Pictures,
    side: int,
) -> list[Overlay | None]:
    """Return for each image the outlines of its tiles; None for an image of one tile."""
    images = tiled_images(table)
    rule, _ = decoding_of(explainer.projectors)
    whole = whole_pictures(images, rule, side) if images else {}
    return [
        overlay(tiles, rule.size, whole.get(uri), source, pictures, side)
        for uri, tiles, source in zip(table["uri"].to_pylist(), evidence, sources, strict=True)
    ]


def _pixels(projector: Projector, table: pa.Table, shown_rows: np.ndarray) -> list[np.ndarray]:
    seen = pixels_of(as_space_sees(table, projector.rule))
    places = shown_rows if len(seen) > table.num_rows else np.arange(table.num_rows)
    return list(seen[places])


def _in_space(
    name: str,
    projector: Projector,
    one: Projected,
    shown_rows: np.ndarray,
    pixels: Sequence[np.ndarray],
    pictures: Pictures,
) -> tuple[View, list[SpacePictures]]:
    assert projector.manifold is not None
    artifacts = one.artifacts[shown_rows]
    shapes, pictured = displayable(artifacts), is_picture(artifacts.shape[1:])
    limit = float(np.quantile(np.abs(shapes), 0.995))
    scaled = not pictured and len(artifacts) >= LEAST_SPREAD
    view = View(name, limit, "standard deviations" if scaled else "", True, pictured)
    beside = {key: [one.columns[key][n] for n in shown_rows] for key in one.columns}
    stars = [projected_pixels(x, a, name) for x, a in zip(pixels, artifacts, strict=True)]
    reals: dict[str, np.ndarray] = {}
    if any(star is None for star in stars):
        manifold = projector.manifold
        reals = pictures_of_reals(manifold.uri, beside["neighbor_id"], manifold.sha256)
    found: list[SpacePictures] = []
    for n, star in enumerate(stars):
        neighbour = beside["neighbor_id"][n]
        found.append(
            {
                "name": name,
                "star": pictures.uri(reals.get(neighbour) if star is None else star),
                "artifact": pictures.uri(signed(shapes[n], limit)),
                "neighbor_id": neighbour,
                "distance": beside["distance"][n],
                "percentile": beside["percentile"][n],
            }
        )
    return view, found
