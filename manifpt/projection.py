"""Images -> embeddings -> projections x* onto a manifold, in one space or in several at once."""

import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import pipeline, session, tensors
from manifpt.errors import ManifptError
from manifpt.images import IMAGES, DecodeRule, Selection, Unit
from manifpt.images.probe import natural_size
from manifpt.images.read import chunk_rows, pixels_of, read_unit_text, unit_to_json
from manifpt.manifold import Manifold
from manifpt.manifold.embed import other_sizes
from manifpt.manifold.manifold import open_manifolds
from manifpt.manifold.metric import EUCLIDEAN
from manifpt.manifold.placement import Searcher, alone, place_all
from manifpt.manifold.projector import NEAREST, Projection
from manifpt.records import Records
from manifpt.spaces import Space, make_space
from manifpt.spaces.learned import compiled
from manifpt.spaces.space import LARGEST, LEARNED
from manifpt.work import Work


@dataclass
class Projector:
    """Images -> embeddings -> nearest reals -> projections -> artifacts, in one process.

    ``manifold`` and ``searcher`` are None in the space ``image``.
    """

    space: Space
    rule: DecodeRule
    manifold: Manifold | None = None
    searcher: Searcher | None = None
    projection: Projection = NEAREST

    @property
    def rows(self) -> int | None:
        """Images that it would have at once; None leaves it to the reader."""
        return self.searcher.rows if self.searcher else None

    def __call__(self, table: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the artifacts of an images table, N x shape float32, and the columns beside.

        A table that has embeddings already, as ``artifact``, is not embedded again.

        No image meets a real of its own pixels, whatever its label says: a real under evaluation
        would have the artifact zero, and an exclusion by label would give the label away.
        """
        pipeline.check_columns(table, {"pixel_sha256": IMAGES["pixel_sha256"]}, "project")
        rows = table.num_rows
        if "artifact" in table.column_names:
            embedded = tensors.from_column(table["artifact"]).reshape(rows, *self.space.shape)
        else:
            embedded = self.space.embed(pixels_of(table))
        if self.manifold is None or self.searcher is None:
            nothing = dict.fromkeys(("neighbor_id", "distance", "percentile"), [None] * rows)
            return embedded, {**nothing, "in_manifold": [False] * rows}
        hashes = np.array(table["pixel_sha256"].to_pylist(), dtype=object)
        flat = embedded.reshape(rows, -1)
        found = self.searcher.nearest(flat, self.projection.neighbours, hashes)
        return self._artifacts(embedded, found.vector, self.manifold), {
            "neighbor_id": found.id[:, 0].tolist(),
            "distance": found.distance[:, 0].tolist(),
            "percentile": self.manifold.percentile(found.distance[:, 0]).tolist(),
            "in_manifold": found.seen.tolist(),
        }

    def _artifacts(
        self, embedded: np.ndarray, neighbours: np.ndarray, manifold: Manifold
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


@dataclass(frozen=True)
class Target:
    """A space to make artifacts in: its manifold, or None for the images themselves."""

    space: Space
    rule: DecodeRule
    manifold: Manifold | None = None
    projection: Projection | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image's artifact: the space's, but for a denoiser's."""
        manifold = self.manifold
        if manifold and manifold.denoiser and self.projection and self.projection.learned:
            return manifold.denoiser.shape(self.space.shape)
        return self.space.shape

    def facts(self) -> dict[str, Any]:
        """Return what decides the artifacts of an image, for manifests."""
        manifold = self.manifold
        return {
            "space": self.space.card(),
            "shape": list(self.shape),
            "decode": self.rule.card(),
            "manifold": manifold and manifold.uri,
            "manifold_sha256": manifold and manifold.sha256,
            "projection": self.projection and self.projection.card(),
        }

    def projector(self, searcher: Searcher | None) -> Projector:
        """Return what makes artifacts in a process, with what finds the nearest reals."""
        projection = self.projection or NEAREST
        return Projector(self.space, self.rule, self.manifold, searcher, projection)

    def projector_alone(self) -> Projector:
        """Return what makes artifacts in a process that has no cluster."""
        return self.projector(alone(self.manifold) if self.manifold else None)


def targets_of(
    units: Sequence[Unit],
    selection: Selection,
    manifolds: Sequence[str],
    projection: Projection,
    *,
    plain: Sequence[str],
    image_size: int | None,
) -> dict[str, Target]:
    """Return the spaces to make artifacts in, by name; all decode images by one rule.

    Those of manifolds come first, then ``plain`` ones without a manifold, of images in
    ``image_size``, else the first manifold's, else their own up to 64 pixels.
    """
    found: dict[str, Target] = {}
    for manifold in open_manifolds(manifolds):
        on = projection.on(manifold.manifest)
        target = Target(manifold.space, manifold.rule, manifold, on)
        name, count = target.space.name, 1
        while name in found:
            count += 1
            name = f"{target.space.name}-{count}"
        found[name] = target
    first = next(iter(found.values()), None)
    if plain:
        rule = first.rule if first else DecodeRule(0)
        size = image_size or rule.size or min(LARGEST, natural_size(units, selection))
        for name in plain:
            found[plain_name(name, found)] = Target(
                make_space(name, size), replace(rule, size=size)
            )
    elif image_size is not None and first is not None and image_size != first.rule.size:
        raise ManifptError(
            f"--image-size {image_size}: the manifold's reals have {first.rule.size}; leave it out"
        )
    if len({replace(target.rule, size=1) for target in found.values()}) > 1:
        raise ManifptError("--manifold: they decode images by different rules; build them alike")
    return found


def plain_name(name: str, taken: Container[str]) -> str:
    """Return the name of a space without a manifold, beside those of manifolds."""
    if name in LEARNED:
        raise ManifptError(
            f"--space {name}: needs a manifold; build one, and give --projector none"
        )
    return f"{name}-plain" if name in taken else name


def projectors_of(
    targets: dict[str, Target], search: session.SearchDemand, pool: session.Pool
) -> tuple[list[Projector], session.Pool]:
    """Place the manifolds of all targets; return their projectors, and the pool that is left."""
    reals = [target.manifold for target in targets.values() if target.manifold is not None]
    placements, pool = place_all(reals, search, pool) if reals else ([], pool)
    for manifold, placement in zip(reals, placements, strict=True):
        print(f"{manifold.space.name}: {placement}", file=sys.stderr, flush=True)
    searchers = iter([placement.searcher() for placement in placements])
    made = [t.projector(next(searchers) if t.manifold else None) for t in targets.values()]
    if pool.compiled:
        made = [replace(p, space=compiled(p.space)) for p in made]
    return made, pool


def project(
    title: str,
    units: Sequence[Unit] | Work,
    selection: Selection,
    projectors: Sequence[Projector],
    build: Callable[[], pipeline.Stage],
    output: str,
    pool: session.Pool,
    chunk: int | None = None,
    read: Callable[..., Iterator[pa.Table]] = read_unit_text,
    **options: Any,
) -> Records:
    """Run a stage that projects over all images; return the pipeline's records.

    Each image is decoded once, in the sizes of all projectors. ``chunk`` is how many images a part
    of the output has; by default, what fits their size. ``read`` takes a unit as text and the
    options of ``read_unit``; other ``options`` are the pipeline's.
    """
    stored = units if isinstance(units, Work) else Work.store(output, map(unit_to_json, units))
    read = partial(
        read,
        rule=projectors[0].rule,
        selection=selection,
        chunk=stored.pinned("chunk", rows_of_chunk(projectors, chunk)),
        other_sizes=sizes_beside(projectors),
    )
    names = "+".join(projector.space.name for projector in projectors)
    return pipeline.run(f"{title} {names}", stored, read, build, output, pool, **options)


def sizes_beside(projectors: Sequence[Projector]) -> tuple[int, ...]:
    """Return the sizes that projectors need images in, beside that of their rule."""
    return other_sizes(projectors[0].rule, [projector.space for projector in projectors])


def rows_of_chunk(projectors: Sequence[Projector], asked: int | None = None) -> int:
    """Return how many images a chunk has: what was asked for, or suits the search, or fits."""
    wanted = [rows for rows in (asked, *(p.rows for p in projectors)) if rows]
    largest = max(projectors[0].rule.size, *sizes_beside(projectors), 1)
    return min(wanted, default=chunk_rows(largest))
