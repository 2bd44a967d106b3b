"""Images -> embeddings -> projections x* onto a manifold, in one space or in several at once."""

import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from manifpt.artifacts.artifacts_format import ArtifactFacts
from manifpt.engine import chunk_work, pipeline, pools, prometheus
from manifpt.engine.work import Work
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, Unit
from manifpt.images.probe import natural_size, usual_tiles
from manifpt.images.read import ImageReader, as_space_sees, chunk_rows, pixels_of, unit_to_json
from manifpt.images.stacks import (
    PLACES,
    TILE,
    image_of_each_tile,
    image_starts,
    is_stacked,
    own_hashes,
    reading_rule,
    sizes_beside,
)
from manifpt.manifold import StoredManifold
from manifpt.manifold.metric import EUCLIDEAN
from manifpt.manifold.placement import Searcher, alone, place_all
from manifpt.manifold.projector import NEAREST, Projection
from manifpt.manifold.stored import open_manifolds
from manifpt.outputs.records import Records
from manifpt.spaces import Space, make_space
from manifpt.spaces.learned import compiled
from manifpt.spaces.space import LARGEST, LEARNED
from manifpt.storage import tensors


@dataclass
class Projector:
    """Images -> embeddings -> nearest reals -> projections -> artifacts, in one process.

    ``manifold`` and ``searcher`` are None in the space ``image``.
    """

    space: Space
    rule: DecodeRule
    manifold: StoredManifold | None = None
    searcher: Searcher | None = None
    projection: Projection = NEAREST

    @property
    def rows(self) -> int | None:
        """The preferred number of images of a call; None leaves it to the reader."""
        return self.searcher.rows if self.searcher else None

    def __call__(self, table: pa.Table) -> tuple[np.ndarray, dict[str, list[Any]]]:
        """Return the artifacts of an images table, N x shape float32, and the columns beside.

        A table that has embeddings already, as ``artifact``, is not embedded again. Rows may be
        tiles; each is projected by itself.

        No image is compared with a real of its own pixels, for any label: a real under evaluation
        would have the artifact zero, and an exclusion by label would give the label away.
        """
        rows = table.num_rows
        if "artifact" in table.column_names:
            embedded = tensors.from_column(table["artifact"]).reshape(rows, *self.space.shape)
        else:
            with prometheus.timed("embed"):
                embedded = self.space.embed(pixels_of(table))
        if self.manifold is None or self.searcher is None:
            nothing = dict.fromkeys(("neighbor_id", "distance", "percentile"), [None] * rows)
            return embedded, {**nothing, "in_manifold": [False] * rows}
        hashes = np.array(own_hashes(table), dtype=object)
        flat = embedded.reshape(rows, -1)
        with prometheus.timed("search"):
            neighbours = self.searcher.nearest(flat, self.projection.neighbours, hashes)
        return self._artifacts(embedded, neighbours.vector, self.manifold), {
            "neighbor_id": neighbours.id[:, 0].tolist(),
            "distance": neighbours.distance[:, 0].tolist(),
            "percentile": self.manifold.percentile(neighbours.distance[:, 0]).tolist(),
            "in_manifold": neighbours.seen.tolist(),
        }

    def _artifacts(
        self, embedded: np.ndarray, neighbours: np.ndarray, manifold: StoredManifold
    ) -> np.ndarray:
        """Return phi(x) - x* of N embedded images with N x k x d neighbours."""
        if self.projection.kind == "denoiser":
            if manifold.denoiser is None:
                raise ValueError("a manifold without a denoiser can't project by it")
            return manifold.denoiser.artifacts(embedded)
        projection, flat = self.projection, embedded.reshape(len(embedded), -1)
        # The covariance is read only where it is needed: sharded reals have it elsewhere, too.
        metric = manifold.metric if projection.whitened else EUCLIDEAN
        artifacts = projection.artifacts(flat, neighbours, metric, manifold.geometry)
        return artifacts.reshape(embedded.shape)


class Projected(NamedTuple):
    """Images in one space: rows without pixels, their artifacts, and the columns beside.

    Where images have tiles, there is a row a tile, with the columns TILE.
    """

    rows: pa.Table
    artifacts: np.ndarray
    columns: dict[str, list[Any]]


def project_images(projectors: Sequence[Projector], table: pa.Table) -> list[Projected]:
    """Return the images of a table in each space, row for row alike.

    Spaces that take whole images have the same artifact for all tiles of an image. An image is in
    a manifold if all its tiles are: other images may share a blank one.
    """
    tiles = next((as_space_sees(table, p.rule) for p in projectors if p.rule.tiles), None)
    if tiles is None or not is_stacked(table):
        return [_whole(_projected(p, as_space_sees(table, p.rule))) for p in projectors]
    projections = []
    for projector in projectors:
        if projector.rule.tiles:
            projections.append(_whole(_projected(projector, tiles)))
        else:
            whole = _projected(projector, as_space_sees(table, projector.rule))
            projections.append(_repeated(whole, image_of_each_tile(table), tiles))
    return projections


def _projected(projector: Projector, table: pa.Table) -> Projected:
    artifacts, columns = projector(table)
    pixels = [f.name for f in table.schema if isinstance(f.type, pa.FixedShapeTensorType)]
    names = [name for name in table.column_names if name not in {*pixels, "artifact", PLACES}]
    return Projected(table.select(names), artifacts, columns)


def _whole(projected: Projected) -> Projected:
    """Mark an image as part of the manifold only if all its tiles are."""
    begin = image_starts(projected.rows)
    if len(begin) == projected.rows.num_rows:
        return projected
    every = np.logical_and.reduceat(np.array(projected.columns["in_manifold"]), begin)
    counts = np.diff([*begin, projected.rows.num_rows])
    return projected._replace(
        columns=projected.columns | {"in_manifold": np.repeat(every, counts).tolist()}
    )


def _repeated(whole: Projected, of: np.ndarray, tiles: pa.Table) -> Projected:
    """Return whole images with a row for each of their ``tiles``, whose images are ``of``."""
    rows = whole.rows.take(pa.array(of))
    for name in TILE:
        rows = rows.append_column(
            name, rows["pixel_sha256"] if name == "tile_sha256" else tiles[name]
        )
    columns = {name: [values[row] for row in of] for name, values in whole.columns.items()}
    return Projected(rows, whole.artifacts[of], columns)


@dataclass(frozen=True)
class Target:
    """A space to make artifacts in: its manifold, or None for the images themselves."""

    space: Space
    rule: DecodeRule
    manifold: StoredManifold | None = None
    projection: Projection | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image's artifact: the space's, but for a denoiser's."""
        manifold = self.manifold
        if manifold and manifold.denoiser and self.projection and self.projection.learned:
            return manifold.denoiser.shape(self.space.shape)
        return self.space.shape

    def facts(self) -> ArtifactFacts:
        """Return the settings that decide the artifacts of an image, for manifests."""
        manifold = self.manifold
        return {
            "space": self.space.card(),
            "shape": list(self.shape),
            "decode": self.rule.card(),
            "manifold": manifold.uri if manifold else None,
            "manifold_sha256": manifold.sha256 if manifold else None,
            "projection": self.projection.card() if self.projection else None,
        }

    def projector(self, searcher: Searcher | None) -> Projector:
        """Return the projector of a process, which searches by ``searcher``."""
        projection = self.projection or NEAREST
        return Projector(self.space, self.rule, self.manifold, searcher, projection)

    def projector_alone(self) -> Projector:
        """Return the projector of a process that has no cluster."""
        return self.projector(alone(self.manifold) if self.manifold else None)


def targets_of(
    units: Sequence[Unit],
    selection: Selection,
    manifolds: Sequence[str],
    projection: Projection,
    *,
    plain: Sequence[str],
    image_size: int | None,
    tiles: int | None = None,
) -> dict[str, Target]:
    """Return the spaces to make artifacts in, by name; all decode images by one rule.

    Spaces with tiles come first, then those of manifolds, then ``plain`` spaces without a manifold.
    The images of plain spaces have ``image_size``, else the size of the first manifold, else their
    own up to 64 pixels. Plain spaces have up to ``tiles`` native tiles; if that is None, as many as
    the reals of a manifold of pixels, else the usual number (see ``probe``).
    """
    targets: dict[str, Target] = {}
    for manifold in open_manifolds(manifolds):
        on = projection.on(manifold.manifest)
        target = Target(manifold.space, manifold.rule, manifold, on)
        name, count = target.space.name, 1
        while name in targets:
            count += 1
            name = f"{target.space.name}-{count}"
        targets[name] = target
    first = next(iter(targets.values()), None)
    if plain:
        rule = reading_rule([target.rule for target in targets.values()] or [DecodeRule(0)])
        size = image_size or rule.size or min(LARGEST, natural_size(units, selection))
        if tiles is None:
            given = any(target.space.name not in LEARNED for target in targets.values())
            tiles = rule.tiles if given else usual_tiles(units, selection, size)
        rule = replace(rule, size=size, tiles=tiles)
        targets |= {plain_name(n, targets): Target(make_space(n, size), rule) for n in plain}
    elif image_size is not None and first is not None and image_size != first.rule.size:
        raise ManifptError(
            f"--image-size {image_size}: the manifold's reals have {first.rule.size}; leave it out"
        )
    elif tiles is not None:
        raise ManifptError("--tiles: a manifold's images have the tiles of its reals; leave it out")
    rules = [target.rule for target in targets.values()]
    if len({replace(rule, size=1, tiles=0) for rule in rules}) > 1:
        raise ManifptError("--manifold: they decode images by different rules; build them alike")
    if len({rule for rule in rules if rule.tiles}) > 1:
        raise ManifptError(
            "--manifold: their images have tiles of several sizes or numbers; build them with one "
            "--image-size and --tiles"
        )
    return dict(sorted(targets.items(), key=lambda item: not item[1].rule.tiles))


def plain_name(name: str, taken: Container[str]) -> str:
    """Return the name of a space without a manifold, beside those of manifolds."""
    if name in LEARNED:
        raise ManifptError(
            f"--space {name}: needs a manifold; build one, and give --projector none"
        )
    return f"{name}-plain" if name in taken else name


class PlacedProjectors(NamedTuple):
    """The projectors of a run, and the pool of processes that their manifolds leave to it."""

    projectors: list[Projector]
    pool: pools.Pool


def projectors_of(
    targets: dict[str, Target], search: pools.SearchDemand, pool: pools.Pool
) -> PlacedProjectors:
    """Place the manifolds of all targets; return their projectors, and the pool that is left."""
    if pool.here:
        return PlacedProjectors([t.projector_alone() for t in targets.values()], pool)
    reals = [target.manifold for target in targets.values() if target.manifold is not None]
    if reals:
        pool.wait()  # the memory of a node is known once one is up
    placements, pool = place_all(reals, search, pool) if reals else ([], pool)
    for manifold, placement in zip(reals, placements, strict=True):
        print(f"{manifold.space.name}: {placement}", file=sys.stderr, flush=True)
    searchers = iter([placement.searcher() for placement in placements])
    projectors = [t.projector(next(searchers) if t.manifold else None) for t in targets.values()]
    if pool.compiled:
        projectors = [replace(p, space=compiled(p.space)) for p in projectors]
    return PlacedProjectors(projectors, pool)


def run_projection(
    title: str,
    units: Sequence[Unit] | Work,
    read: Callable[..., ImageReader],
    build: Callable[[], chunk_work.Stage],
    placed: PlacedProjectors,
    output: str,
    chunk: int | None = None,
    **options: Any,
) -> Records:
    """Run a stage that projects over all images; return the pipeline's records.

    Each image is decoded once, in the sizes of all projectors. ``chunk`` is the number of images of
    a part of the output; by default, it depends on their size. ``read`` makes the reader by the
    rules and the chunk; other ``options`` are the pipeline's.
    """
    stored = units if isinstance(units, Work) else Work.store(output, map(unit_to_json, units))
    projectors, pool = placed
    rows = stored.pinned("chunk", rows_of_chunk(projectors, chunk))
    reader = read([projector.rule for projector in projectors], chunk=rows)
    names = "+".join(projector.space.name for projector in projectors)
    return pipeline.run(f"{title} {names}", stored, reader, build, output, pool, **options)


def decoding_of(projectors: Sequence[Projector]) -> tuple[DecodeRule, tuple[int, ...]]:
    """Return the rule by which images are decoded for all projectors, and the other sizes."""
    rules = [projector.rule for projector in projectors]
    rule = reading_rule(rules)
    return rule, sizes_beside(rule, rules)


def rows_of_chunk(projectors: Sequence[Projector], asked: int | None = None) -> int:
    """Return the images or tiles of a chunk: as asked, or by the search, or by their size."""
    wanted = [rows for rows in (asked, *(p.rows for p in projectors)) if rows]
    rule, other_sizes = decoding_of(projectors)
    return min(wanted, default=chunk_rows(max(rule.size, *other_sizes, 1)))
