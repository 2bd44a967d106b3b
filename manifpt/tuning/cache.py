"""Manifolds and artifacts, kept by their inputs, so that no trial embeds the same images again.

    embeddings   of reals and of the benchmark's images, once for each space and its options
    manifold     of those reals, once for each metric, number of reals and geometry
    artifacts    of those images, once for each manifold and projection

One actor makes them, one at a time: two trials that need the same artifacts wait for one run.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from manifpt import outputs, storage
from manifpt.artifacts.branches import open_artifacts
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.artifacts.reprojection import project_embeddings
from manifpt.engine import pools, session
from manifpt.images import Selection, plan
from manifpt.images.sources import MANIFOLD_REALS, content_key
from manifpt.manifold.build import ManifoldSettings, build_manifold
from manifpt.manifold.denoiser import STEPS
from manifpt.manifold.derive import derive_manifold
from manifpt.manifold.projector import projection_of
from manifpt.spaces.space import LEARNED
from manifpt.tuning.search_space import TrialSettings

NONE = projection_of("none", None, 0.0)
# Images of a file, the same in all spaces: they are read together, row for row.
CHUNK = 128
# The options that decide embeddings, by space.
OF_ALL = ("image_size",)
OF_SPACE = {
    "freq": ("freq_eps", "freq_log"),
    "sl": ("sl_network", "sl_weights"),
    "ssl": ("ssl_network", "ssl_weights"),
}
OF_LEARNED = ("layer", "pooled", "network_size", "precision")


def sweep_images(
    reals: Sequence[str],
    labelled: Sequence[str],
    sources: Sequence[str],
    split_by: str | None = None,
) -> "SweepImages":
    """Return the images of the inputs; raise if there are none."""
    units = plan(reals, MANIFOLD_REALS, source="real"), plan(labelled, Selection(), labelled=True)
    by = [split_by] if split_by else []
    content = storage.digest([[content_key(found) for found in units], list(sources), *by])
    return SweepImages(content, tuple(reals), tuple(labelled), tuple(sources), split_by)


@dataclass(frozen=True)
class SweepImages:
    """The images of a sweep: reals of the manifold, and those of known source.

    ``content`` is a hash of their content, and of their splits by ``split_by``.
    """

    content: str
    reals: tuple[str, ...]
    labelled: tuple[str, ...]
    sources: tuple[str, ...] = ()
    split_by: str | None = None


@dataclass
class CachedArtifacts:
    """The result of ``Cache.artifacts``: the places of artifacts, and the work done for them."""

    uris: list[str]
    embedded: int = 0
    seconds: float = 0.0
    steps: list[str] = field(default_factory=list)


def embedding_options(space: str, settings: TrialSettings) -> dict[str, object]:
    """Return the settings of a trial that decide the embeddings in one space."""
    names = (*OF_ALL, *OF_SPACE.get(space, ()), *(OF_LEARNED if space in LEARNED else ()))
    newer: dict[str, object] = {"tiles": settings.tiles} if settings.tiles else {}
    if space in LEARNED and settings.layer_summary != "mean":
        newer["layer_summary"] = settings.layer_summary
    return {name: getattr(settings, name) for name in names} | newer


class Cache:
    """Makes embeddings, manifolds and artifacts under ``folder``, unless they are there.

    ``share`` is its part of the cluster while trials train, see ``pools.limit``.
    """

    def __init__(
        self, folder: str, images: SweepImages, share: dict[str, float] | None = None
    ) -> None:
        if share is not None:  # in an actor of its own
            session.start()
            pools.limit(share)
        self.folder, self.images = folder, images

    def artifacts(self, settings: TrialSettings) -> CachedArtifacts:
        """Return the artifacts of a trial's spaces, one folder a space, made now or earlier."""
        started, made = time.monotonic(), CachedArtifacts([])
        for space in settings.space.split("+"):
            if space == "image":
                made.uris.append(self._images(settings, made))
            else:
                made.uris.append(self._projected(space, settings, made))
        made.seconds = time.monotonic() - started
        open_artifacts(made.uris)
        return made

    def _place(self, kind: str, made_of: Mapping[str, object]) -> tuple[str, bool]:
        """Return the place of an output, and whether it is finished."""
        uri = storage.join(self.folder, f"{kind}-{storage.digest(made_of)[:16]}")
        return uri, outputs.read(uri) is not None

    @property
    def _recipe(self) -> ArtifactRecipe:
        """The recipe of artifacts of the sweep's sources and splits."""
        images = self.images
        return ArtifactRecipe(sources=images.sources, split_by=images.split_by, chunk=CHUNK)

    def _images(self, settings: TrialSettings, made: CachedArtifacts) -> str:
        made_of = {"size": settings.image_size, "images": self.images.content}
        made_of |= {"tiles": settings.tiles} if settings.tiles else {}
        uri, there = self._place("image", made_of)
        if not there:
            made.steps.append("image")
            compute_artifacts(
                self.images.labelled,
                uri,
                replace(
                    self._recipe,
                    plain=("image",),
                    image_size=settings.image_size,
                    tiles=settings.tiles or 0,
                ),
            )
        return uri

    def _projected(self, space: str, settings: TrialSettings, made: CachedArtifacts) -> str:
        reals, embeddings, made_of = self._embedded(space, settings, made)
        manifold, made_of = self._manifold(reals, space, settings, made_of, made)
        projection = settings.projection.by(settings.metric)
        uri, there = self._place("artifacts", made_of | {"projection": projection.card()})
        if not there:
            made.steps.append(f"artifacts {space}")
            project_embeddings(
                open_artifacts([embeddings])[0], uri, manifold, projection=projection
            )
        return uri

    def _embedded(
        self, space: str, settings: TrialSettings, made: CachedArtifacts
    ) -> tuple[str, str, dict[str, object]]:
        """Return the manifold of all reals, and the embeddings of the labelled images."""
        options = embedding_options(space, settings)
        made_of = {"space": space, **options, "images": self.images.content}
        reals, there = self._place("reals", made_of)
        if not there:
            made.steps.append(f"embed {space}: reals")
            manifest = build_manifold(
                self.images.reals,
                reals,
                space=space,
                settings=ManifoldSettings(
                    image_size=settings.image_size,
                    tiles=settings.tiles or 0,
                    spaces=settings.spaces,
                ),
            )
            made.embedded += manifest["ok"]
        embeddings, there = self._place("embeddings", made_of)
        if not there:
            made.steps.append(f"embed {space}: images")
            recipe = replace(self._recipe, manifolds=[reals], projection=NONE)
            made.embedded += compute_artifacts(self.images.labelled, embeddings, recipe)["ok"]
        return reals, embeddings, made_of

    def _manifold(
        self,
        reals: str,
        space: str,
        settings: TrialSettings,
        made_of: dict[str, object],
        made: CachedArtifacts,
    ) -> tuple[str, dict[str, object]]:
        """Return the manifold of a trial, and the settings that decide it."""
        projector = settings.projector
        built = ManifoldSettings(
            metric=settings.metric,
            geometry=projector == "riemannian",
            denoiser=STEPS if projector == "denoiser" else 0,
        )
        chosen = {"metric": built.metric, "reals": settings.reals, "geometry": built.geometry}
        chosen |= {"denoiser": built.denoiser} if built.denoiser else {}
        made_of = made_of | chosen
        if replace(built, image_size=None) == ManifoldSettings() and settings.reals is None:
            return reals, made_of
        uri, there = self._place("manifold", made_of)
        if not there:
            made.steps.append(f"manifold {space}")
            derive_manifold(reals, uri, settings=built, reals=settings.reals)
        return uri, made_of
