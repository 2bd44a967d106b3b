"""The manifold of real images from Python: fit it, load it, and take artifacts of images."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import pyarrow as pa

from manifpt import storage
from manifpt.api.embedding import space_options
from manifpt.api.given import (
    Given,
    Images,
    decoded,
    demand_of,
    inputs_of,
    is_dataset,
    mapped,
    of_batch,
)
from manifpt.artifacts.projection import Projected, Projector, Target, project_images
from manifpt.errors import ManifptError
from manifpt.manifold import stored
from manifpt.manifold.build import ManifoldSettings, build_manifold
from manifpt.manifold.copy import copy_manifold
from manifpt.manifold.placement import Searcher, alone
from manifpt.manifold.projector import PROJECTORS, projection_of
from manifpt.outputs import claims
from manifpt.spaces import SPACES, Space

if TYPE_CHECKING:
    import ray.data

    Scratch = tempfile.TemporaryDirectory[str]

RIDGE = 0.1


@dataclass(frozen=True, repr=False)
class Manifold(stored.StoredManifold):
    """Real images in an embedding space, with the search for the nearest of them.

    A manifold that was fitted without ``uri`` lies in a temporary folder, which is removed with
    this object.
    """

    scratch: "Scratch | None" = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        found = self.manifest
        return f"Manifold({self.uri!r}: {found['reals']} reals in {found['space']['name']})"

    @classmethod
    def fit(
        cls,
        images: Images,
        space: str | Space = "rgb",
        *,
        uri: str | None = None,
        shards: int = 4,
        metric: str = "euclidean",
        geometry: bool = False,
        denoiser: int = 0,
        **options: Any,
    ) -> "Manifold":
        """Embed real images; return their manifold, the same as that of ``build_manifold``.

        Args:
            images: see ``Images``; every one is taken for real.
            space: a ``Space``, or its name; then its image size is that of the first images.
            uri: the folder of the manifold, local or remote; by default, a temporary folder.
            shards: the number of files of reals.
            metric: ``euclidean``, ``cosine`` or ``whitened``.
            geometry: whether to learn a geometry, for ``projector="riemannian"``.
            denoiser: steps to train a denoiser on the reals, for ``projector="denoiser"``; or 0.
            options: options of the space by name, see ``space``.

        """
        if isinstance(space, str) and space not in SPACES:
            raise ManifptError(f"space {space!r}: unknown; choose one of {', '.join(SPACES)}")
        _check_no_dataset(images)
        scratch = tempfile.TemporaryDirectory(prefix="manifpt-")
        inputs = inputs_of(images, scratch.name)
        demand, output = demand_of(inputs, scratch.name), uri or f"{scratch.name}/manifold"
        if uri is None and not demand.here:
            raise ManifptError(
                "uri: missing; images of this size are embedded by Ray, so name a folder"
            )
        settings = ManifoldSettings(
            shards,
            metric=metric,
            geometry=geometry,
            denoiser=denoiser,
            spaces=space_options(options),
        )
        build_manifold(inputs, output, space=space, settings=settings, demand=demand)
        if uri is not None:
            scratch.cleanup()
        made = stored.StoredManifold.open(output)
        return cls(made.uri, made.manifest, None if uri else scratch)

    @classmethod
    def load(cls, uri: str) -> "Manifold":
        """Open a manifold that a job or ``save`` wrote; its reals are read when they are needed."""
        return cls.open(uri)

    def save(self, uri: str) -> "Manifold":
        """Copy the manifold to a folder, local or remote; return the copy."""
        uri = storage.absolute(uri)
        claims.check_place(uri, "manifold", [("the manifold", self.uri)])
        if storage.exists(storage.join(uri, "manifest.json")):
            if Manifold.load(uri).sha256 == self.sha256:
                return Manifold.load(uri)
            raise ManifptError(f"{uri}: holds another manifold; choose a new or an empty folder")
        copy_manifold(self, uri)
        return Manifold.load(uri)

    @overload
    def artifacts(
        self,
        images: Images,
        projector: str = "nearest",
        *,
        neighbors: int | None = None,
        ridge: float = RIDGE,
    ) -> np.ndarray: ...

    @overload
    def artifacts(
        self,
        images: "ray.data.Dataset",
        projector: str = "nearest",
        *,
        neighbors: int | None = None,
        ridge: float = RIDGE,
    ) -> "ray.data.Dataset": ...

    def artifacts(
        self,
        images: Any,
        projector: str = "nearest",
        *,
        neighbors: int | None = None,
        ridge: float = RIDGE,
    ) -> Any:
        """Return phi(x) - x*, N x the space's shape, float32, in the order of the images.

        They equal those of ``compute_artifacts``. Where the manifold has tiles, there is a row for
        each tile of an image, as in ``nearest``.

        Args:
            images: see ``Images``; or a dataset of Ray Data with a column ``image``, for which a
                dataset with ``artifact`` in its place is returned.
            projector: the rule for x*: nearest, mean, tangent, riemannian, denoiser or none.
            neighbors: the number of reals from which x* is computed.
            ridge: the regularisation of ``tangent``.

        """
        target = self._target(projector, neighbors, ridge)
        if is_dataset(images):
            return mapped(images, _Artifacts, target)
        made = [found.artifacts for found in _projected(self._projector(target), images)]
        return np.concatenate(made)

    def nearest(self, images: Images) -> pd.DataFrame:
        """Return the nearest real of each image: its ``neighbor_id`` and ``distance``.

        ``percentile`` is the percentage of held-out reals that lie nearer to their nearest real;
        ``in_manifold`` marks images that are reals of it: these never meet themselves.
        """
        found = [_nearest_of(part) for part in _projected(self._projector(self._target()), images)]
        return pa.concat_tables(found).to_pandas()

    def _target(
        self, projector: str = "nearest", neighbors: int | None = None, ridge: float = RIDGE
    ) -> Target:
        """Return the space, the rule and the projection."""
        if projector not in PROJECTORS:
            raise ManifptError(
                f"projector {projector!r}: unknown; choose one of {', '.join(PROJECTORS)}"
            )
        projection = projection_of(projector, neighbors, ridge).on(self.manifest)
        plain = stored.StoredManifold(
            self.uri, self.manifest
        )  # without the folder, for other processes
        return Target(self.space, self.rule, plain, projection)

    @cached_property
    def _searcher(self) -> Searcher:
        """The searcher of this process; it reads the reals once."""
        return alone(self)

    def _projector(self, target: Target) -> Projector:
        """Return the projector of this process."""
        return target.projector(self._searcher)


def _projected(projector: Projector, images: Images) -> Iterator[Projected]:
    if is_dataset(images):
        raise ManifptError("images: a dataset has artifacts alone; give arrays, paths or a folder")
    for table in decoded(Given.of(images), projector.rule):
        yield project_images([projector], table)[0]


def _nearest_of(found: Projected) -> pa.Table:
    also = [name for name in ("tile", "tile_x", "tile_y") if name in found.rows.column_names]
    rows = found.rows.select(["id", *also])
    for name, values in found.columns.items():
        rows = rows.append_column(name, pa.array(values))
    return rows


class _Artifacts:
    """Batches of a dataset -> the same with artifacts, in an actor."""

    def __init__(self, target: Target) -> None:
        self.projector = target.projector_alone()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given, rest = of_batch(batch)
        made = [
            project_images([self.projector], table)[0].artifacts
            for table in decoded(given, self.projector.rule)
        ]
        return {**rest, "artifact": np.concatenate(made)}


def _check_no_dataset(images: Any) -> None:
    """Raise for a dataset: its images may be embedded on another machine."""
    if is_dataset(images):
        raise ManifptError(
            "images: a dataset can't be fitted; write its images with write_parquet, and give "
            "the folder"
        )
