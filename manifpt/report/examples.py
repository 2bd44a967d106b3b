"""Examples of an evaluation: x, x* and the artifact of some test images in each space."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifpt import storage
from manifpt.artifacts.branches import ArtifactBranch, open_artifacts, read_artifacts
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule
from manifpt.images.stacks import reading_rule
from manifpt.images.tiles import Place
from manifpt.manifold.manifold_format import ManifoldManifest
from manifpt.report import charts
from manifpt.report.explanation_format import TileEvidence
from manifpt.report.fingerprints import (
    Fingerprints,
    dendrogram_chart,
    distance_chart,
    spectra_chart,
    tree_of,
)
from manifpt.report.page_pictures import Pictures, flattened, is_picture, signed, unsigned
from manifpt.report.page_provenance import readable
from manifpt.report.thumbnails import decoded_images, thumbnails, uris_of_reals
from manifpt.report.tile_overlay import (
    EXAMPLE_SIDE,
    Overlay,
    TiledImage,
    WholePicture,
    overlay,
    tile_evidence,
    whole_pictures,
)
from manifpt.storage import tensors

# Rows of artifacts that are read for fingerprints once all examples are found.
MOST_READ = 40_000
# Bytes of artifacts of tiles in memory; later examples have only their first tile there.
MOST_TILE_BYTES = 2**29
# The space whose vectors are pixels in [0, 1].
PIXELS = "rgb"


@dataclass(frozen=True)
class Seen:
    """An example, or a tile of it, in one space: its artifact, its nearest real, its distance.

    ``place`` is the tile's left and top.
    """

    artifact: np.ndarray
    neighbor_id: str | None
    distance: float | None
    percentile: float | None
    place: Place | None = None


@dataclass(frozen=True)
class View:
    """A space as a page shows it: the meaning of its colours, and whether it has places."""

    name: str
    limit: float
    unit: str
    projected: bool
    pictured: bool


class SpacePictures(TypedDict):
    """An example in one space: the pictures of x* and of the artifact, and the nearest real."""

    name: str
    star: str | None
    artifact: str | None
    neighbor_id: str | None
    distance: float | None
    percentile: float | None


class Triplet(TypedDict):
    """The pictures of an example: x, its views in each space, and its tiles, if it has several."""

    image: str | None
    views: list[SpacePictures]
    tiles: Overlay | None


class ShownExample(Triplet):
    """An example of a page; ``outcome`` and ``source`` are what it can be filtered by."""

    id: str
    outcome: str
    source: str


class SampledScore(TypedDict):
    """A row of an evaluation's scores, with the columns that a page reads."""

    id: str
    source: str
    sha256: str
    prediction: str
    probability: float
    decision: str
    unknown_score: NotRequired[float]
    unknown_p: NotRequired[float]
    distance: NotRequired[float | None]
    neighbor_id: NotRequired[str | None]
    coordinates: NotRequired[list[float]]


class ScoredExample(SampledScore, Triplet):
    """An example of an evaluation."""

    outcome: str


@dataclass
class Examples:
    """The sampled rows of an evaluation with their artifacts in each space, and fingerprints."""

    uris: Sequence[str]
    manifolds: Sequence[str]
    rows: Sequence[SampledScore]
    model: str | None = None  # the attributor, which gives the evidence of tiles

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    @cached_property
    def branches(self) -> list[ArtifactBranch]:
        """The artifacts that were evaluated; none if they are gone."""
        try:
            return open_artifacts(self.uris)
        except (ManifptError, OSError) as error:
            self.notes.append(f"Without examples and fingerprints: {error}")
            return []

    @cached_property
    def _read(
        self,
    ) -> tuple[dict[str, dict[str, list[Seen]]], dict[str, Fingerprints], dict[str, str]]:
        """Return artifacts of examples and fingerprints, each by branch, and the images' URIs."""
        seen: dict[str, dict[str, list[Seen]]] = {}
        prints: dict[str, Fingerprints] = {}
        uris: dict[str, str] = {}
        left = MOST_TILE_BYTES
        wanted = pa.array(sorted(row["id"] for row in self.rows), pa.string())
        for branch in self.branches:
            mine = seen.setdefault(branch.name, {})
            shape = tuple(branch.manifest["shape"])
            fingerprints = prints.setdefault(branch.name, Fingerprints(shape))
            count = 0
            for path in branch.files("test"):
                if count > MOST_READ and len(mine) >= len(wanted):
                    break
                table = read_artifacts(storage.join(branch.uri, path))
                count += table.num_rows
                artifacts = tensors.from_column(table["artifact"]).reshape(-1, *shape)
                fingerprints.add(artifacts, map(str, table["source"].to_pylist()))
                places = np.flatnonzero(pc.is_in(table["id"], wanted).to_numpy())
                kept = table.take(pa.array(places)).drop_columns(["artifact"]).to_pylist()
                for place, row in zip(places, kept, strict=True):
                    tiles = mine.setdefault(row["id"], [])
                    at = (row["tile_x"], row["tile_y"]) if "tile_x" in row else None
                    if tiles and (at is None or row["tile"] != len(tiles)):
                        continue
                    if tiles and left <= 0:
                        del tiles[1:]
                        continue
                    left -= artifacts[place].nbytes if tiles else 0
                    found = (row["neighbor_id"], row["distance"], row["percentile"], at)
                    tiles.append(Seen(artifacts[place].copy(), *found))
                    uris.setdefault(row["id"], row["uri"])
        return seen, prints, uris

    @cached_property
    def _evidence(self) -> dict[str, list[TileEvidence]]:
        """The evidence of tiles for the predicted source by id, for examples with several tiles."""
        by_branch = [self._read[0][branch.name] for branch in self.branches]
        several = [
            row
            for row in self.rows
            if {len(seen.get(row["id"], ())) for seen in by_branch}.isdisjoint({0, 1})
        ]
        if self.model is None or not several:
            return {}
        attributor, found = TrainedAttributor.open(self.model), {}
        for row in several:
            tiles = [seen[row["id"]] for seen in by_branch]
            if len(set(map(len, tiles))) > 1:
                continue
            artifacts = [np.stack([tile.artifact for tile in some]) for some in tiles]
            each = attributor.log_fused(attributor.outputs(artifacts).logits)
            predicted = attributor.classes.index(row["prediction"])
            places = [tile.place or (0, 0) for tile in tiles[0]]
            found[row["id"]] = tile_evidence(each[:, predicted], places, each.shape[1])
        return found

    @cached_property
    def _seen(self) -> dict[str, dict[str, Seen]]:
        """The artifact to show of each example, by branch: that of the tile with most support."""
        strongest = {id: tiles[0]["tile"] for id, tiles in self._evidence.items()}
        return {
            name: {id: tiles[strongest.get(id, 0)] for id, tiles in mine.items()}
            for name, mine in self._read[0].items()
        }

    @property
    def fingerprints(self) -> dict[str, Fingerprints]:
        """The fingerprints of all sources, by branch."""
        return {name: one for name, one in self._read[1].items() if one.counts}

    @cached_property
    def views(self) -> list[View]:
        """The view of each space: one scale for all its examples."""
        found = []
        for branch in self.branches:
            values = [self._standard(branch.name, one) for one in self._seen[branch.name].values()]
            shape = tuple(branch.manifest["shape"])
            limit = float(np.quantile(np.abs(values), 0.995)) if values else 1.0
            unit = "" if is_picture(shape) else "standard deviations"
            projected = branch.manifest["manifold"] is not None
            found.append(View(branch.name, limit, unit, projected, is_picture(shape)))
        return found

    def _standard(self, branch: str, seen: Seen) -> np.ndarray:
        """Return an artifact to be drawn: vectors in standard deviations of each number."""
        fingerprints = self._read[1][branch]
        if is_picture(fingerprints.shape):
            return flattened(seen.artifact)
        return flattened(standardised(seen.artifact, fingerprints.std))

    @property
    def _rule(self) -> DecodeRule:
        return reading_rule([DecodeRule.from_card(b.manifest["decode"]) for b in self.branches])

    @cached_property
    def _images(self) -> dict[str, TiledImage]:
        """The examples as they are decoded, whole images as one tile, by id."""
        if not self.branches:
            return {}
        uris = self._read[2]
        found = {
            uri: TiledImage.of(decoded)
            for uri, decoded in decoded_images(uris.values(), self._rule)
        }
        missing = len(set(uris.values()) - found.keys())
        if missing:
            self.notes.append(
                f"{missing} examples have no picture: their images could not be read."
            )
        return {id: found[uri] for id, uri in uris.items() if uri in found}

    @cached_property
    def _wholes(self) -> dict[str, WholePicture]:
        """Pictures of examples with the evidence of tiles, by URI."""
        uris, images = self._read[2], self._images
        wanted = {uris[id]: images[id] for id in self._evidence if id in images}
        return whole_pictures(wanted, self._rule, EXAMPLE_SIDE) if wanted else {}

    @cached_property
    def _reals(self) -> dict[str, dict[str, np.ndarray]]:
        """The pixels of the nearest reals, by branch and id."""
        found: dict[str, dict[str, np.ndarray]] = {}
        moved = list(self.manifolds)
        for branch in self.branches:
            uri = branch.manifest["manifold"]
            if uri is None:
                continue
            uri = storage.absolute(moved.pop(0) if moved else uri)
            ids = [seen.neighbor_id for seen in self._seen[branch.name].values()]
            found[branch.name] = pictures_of_reals(uri, ids, branch.manifest["manifold_sha256"])
        return found

    def by_source(
        self, pictures: Pictures, outcome: Callable[[SampledScore], str]
    ) -> dict[str, list[ScoredExample]]:
        """Return the examples of each source as values for the page."""
        found: dict[str, list[ScoredExample]] = {}
        for row in self.rows:
            shown = self._shown(row, pictures)
            if shown:
                entry: ScoredExample = {**row, "outcome": outcome(row), **shown}
                found.setdefault(str(row["source"]), []).append(entry)
        return found

    def _shown(self, row: SampledScore, pictures: Pictures) -> Triplet | None:
        if not any(row["id"] in self._seen.get(b.name, ()) for b in self.branches):
            return None
        evidence, uri = self._evidence.get(row["id"], []), self._read[2].get(row["id"])
        image = self._images.get(row["id"])
        pixels = None if image is None else image.tiles[evidence[0]["tile"] if evidence else 0]
        whole, size = self._wholes.get(uri or ""), self._rule.size
        tiles = overlay(evidence, size, whole, row["prediction"], pictures, EXAMPLE_SIDE)
        views: list[SpacePictures] = []
        for view in self.views:
            seen = self._seen[view.name].get(row["id"])
            if seen is None:
                continue
            beside = self._reals.get(view.name, {}).get(seen.neighbor_id or "")
            star = projected_pixels(pixels, seen.artifact, view.name)
            drawn = signed(self._standard(view.name, seen), view.limit)
            views.append(
                {
                    "name": view.name,
                    "star": pictures.uri(beside if star is None else star),
                    "artifact": pictures.uri(drawn) if view.projected else None,
                    "neighbor_id": seen.neighbor_id,
                    "distance": seen.distance,
                    "percentile": seen.percentile,
                }
            )
        return {"image": pictures.uri(pixels), "views": views, "tiles": tiles}


def standardised(artifact: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return a vector in standard deviations, without the numbers that are the same for all."""
    used = std > 1e-9 * max(float(std.max()), 1e-12)
    found: np.ndarray = artifact[used] / std[used]
    return found


def projected_pixels(
    image: np.ndarray | None, artifact: np.ndarray, space: str
) -> np.ndarray | None:
    """Return x* as H x W x 3 uint8, of an image and its artifact in the space of pixels."""
    if image is None or space.partition("-")[0] != PIXELS or artifact.ndim != 3:
        return None
    moved = artifact.transpose(1, 2, 0)
    if moved.shape != image.shape:
        return None
    star: np.ndarray = np.clip(np.rint(image - 255.0 * moved), 0, 255)
    return star.astype(np.uint8)


def pictures_of_reals(
    manifold: str, ids: Sequence[str | None], content: str | None
) -> dict[str, np.ndarray]:
    """Return the pixels of reals of a manifold by id; none if it is gone or another one by now."""
    manifest: ManifoldManifest | None = readable(manifold, "manifold")
    if manifest is None or manifest["content_sha256"] != content:
        return {}
    files = [entry["rows"]["path"] for entry in manifest["shards"]]
    uris = uris_of_reals(manifold, files, ids)
    found = thumbnails(uris.values(), DecodeRule.from_card(manifest["decode"]))
    return {id: found[uri] for id, uri in uris.items() if uri in found}


class SourcePrint(NamedTuple):
    """A row of fingerprints: a source, its images, and pictures of its mean and its spectrum."""

    source: str
    images: int
    mean: str | None
    spectrum: str | None


@dataclass(frozen=True)
class Prints:
    """The fingerprints of a space as a page shows them; ``leaves`` are in the tree's order."""

    rows: list[SourcePrint]
    limit: float
    unit: str
    charts: dict[str, charts.Chart]
    leaves: list[str]


def fingerprint_rows(found: Mapping[str, Fingerprints], pictures: Pictures) -> dict[str, Prints]:
    """Return by space the mean artifacts of all sources, their spectra and their distances."""
    made = {}
    for name, one in found.items():
        pictured = is_picture(one.shape)
        means = {
            source: flattened(mean if pictured else standardised(mean, one.std))
            for source, mean in one.means.items()
        }
        limit = float(np.quantile(np.abs(list(means.values())), 0.995))
        rows = []
        for source, mean in means.items():
            spectrum = np.log10(np.abs(np.fft.fftshift(np.fft.fft2(mean))) ** 2 + 1e-9)
            drawn_mean = pictures.uri(signed(mean, limit))
            drawn_spectrum = pictures.uri(unsigned(spectrum)) if pictured else None
            rows.append(SourcePrint(source, one.counts[source], drawn_mean, drawn_spectrum))
        drawn = {}
        if one.spectra:
            drawn["spectra"] = spectra_chart(one.spectra)
        names, distances = one.distances
        leaves = names
        if len(names) > 1:
            tree = tree_of(distances, names)
            leaves = list(tree["ivl"])
            order = [names.index(leaf) for leaf in leaves]
            drawn["distances"] = distance_chart(distances[np.ix_(order, order)], leaves)
            drawn["tree"] = dendrogram_chart(tree)
        unit = "" if pictured else "standard deviations"
        made[name] = Prints(rows, limit, unit, drawn, leaves)
    return made
