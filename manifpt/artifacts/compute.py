"""Images -> projections -> artifacts: a(x) = phi(x) - x*, x* the nearest real point.

ManiFPT (CVPR 2024), section 3. In the space ``image`` there is no manifold and the "artifact" is
the image itself: the baseline that every claim is measured against.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.artifacts.projection import (
    Projected,
    Projector,
    Target,
    project_images,
    projectors_of,
    run_projection,
    targets_of,
)
from manifpt.engine import pipeline, session
from manifpt.errors import ManifptError
from manifpt.images import Selection, plan
from manifpt.images.degraded_copies import COLUMN, Augmentation
from manifpt.images.places import input_places
from manifpt.images.read import chunk_rows
from manifpt.images.sources import AS_FOUND, Reading, content_key, describe
from manifpt.images.splits import (
    CONTENT,
    Splits,
    check_column,
    no_values,
    reading_with_split,
    splits_of,
)
from manifpt.images.stacks import TILE, image_of_each_tile, image_starts, is_stacked, reading_rule
from manifpt.manifold.projector import NEAREST, Projection
from manifpt.outputs import claims
from manifpt.spaces.space import LEARNED
from manifpt.storage import tensors

# The kind of a folder that holds the artifacts of several spaces.
COMBINATION = "combination"
EVALUATED = ("train", "validation", "test")

ARTIFACTS = {
    "id": pa.string(),
    "uri": pa.string(),
    "source": pa.string(),
    "split": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "perceptual_hash": pa.uint64(),
    "neighbor_id": pa.string(),
    "distance": pa.float64(),
    "percentile": pa.float64(),
    "in_manifold": pa.bool_(),
}
# What was done to a degraded copy, where artifacts have some.
AUGMENTED = {COLUMN: pa.string()}


@dataclass
class ArtifactStage:
    """Images -> one artifacts table a split, for each of the projectors.

    The tables of a projector go to the folder of its name; of a single one, "" is that name.
    ``augmentation`` puts degraded copies beside images before they are embedded. ``undeclared`` and
    ``split_by`` are those of ``splits.splits_of``. Where images have tiles, rows are tiles.
    """

    projectors: dict[str, Projector]
    undeclared: str
    float16: bool
    augmentation: Augmentation | None = None
    split_by: str | None = None

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Project, and note the moments of the training artifacts for their normalisation."""
        split, *counted = splits_of(table, self.undeclared, self.split_by)
        if self.augmentation is not None:
            filter_name = next(iter(self.projectors.values())).rule.filter
            table, split = self.augmentation.extended(table, split, filter_name)
        projections = project_images(list(self.projectors.values()), table)
        if is_stacked(table):
            split = [split[image] for image in image_of_each_tile(table)]
        masks = {name: np.array([s == name for s in split]) for name in EVALUATED}
        masks = {name: mask for name, mask in masks.items() if mask.any()}
        tables, moments = {}, {}
        for folder, projected in zip(self.projectors, projections, strict=True):
            rows, artifacts = self._rows(projected, split), projected.artifacts
            for name, mask in masks.items():
                tables[posixpath.join(folder, name)] = rows.filter(pa.array(mask))
            by_split = {name: channel_moments(artifacts[mask]) for name, mask in masks.items()}
            moments[folder] = by_split
        facts = {"moments": moments, **_counted(projections[0].rows, masks), "split_by": counted}
        return pipeline.Result(tables, facts)

    def _rows(self, projected: Projected, split: list[str]) -> pa.Table:
        """Return the artifacts table of what was projected; ``split`` is that of each row."""
        table, artifacts, columns = projected
        also = [name for name in (*AUGMENTED, *TILE) if name in table.column_names]
        names = ["id", "uri", "source", "sha256", "pixel_sha256", "perceptual_hash", *also]
        rows = table.select(names)
        for name, values in ({"split": split} | columns).items():
            rows = rows.append_column(name, pa.array(values, ARTIFACTS[name]))
        stored = as_float16(artifacts) if self.float16 else artifacts
        return rows.select([*ARTIFACTS, *also]).append_column("artifact", tensors.to_column(stored))


def _counted(rows: pa.Table, masks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return how many images of each source there are by split, and how many tiles, if any."""
    sources, begins = rows["source"].to_pylist(), np.zeros(rows.num_rows, bool)
    begins[image_starts(rows)] = True

    def counts(selected: np.ndarray) -> dict[str, dict[str, int]]:
        return {
            name: dict(Counter(str(sources[row]) for row in np.flatnonzero(mask & selected)))
            for name, mask in masks.items()
        }

    facts = {"classes": counts(begins)}
    if "tile" in rows.column_names:
        facts["tiles"] = counts(np.ones_like(begins))
    return facts


def as_float16(artifacts: np.ndarray) -> np.ndarray:
    """Return artifacts or embeddings as float16; raise if one is beyond its range."""
    most = np.finfo(np.float16).max
    if np.abs(artifacts).max(initial=0) > most:
        raise ManifptError(f"--float16: a number is beyond {most:.0f}; leave it out")
    return artifacts.astype(np.float16)


def channel_moments(artifacts: np.ndarray) -> dict[str, Any]:
    """Return count, sum and sum of squares of each channel of N x C x H x W, in float64."""
    values = artifacts.astype(np.float64)
    axes = (0, *range(2, values.ndim))
    count = values.size // values.shape[1]
    return {
        "count": count,
        "sum": values.sum(axes).tolist(),
        "square": np.square(values).sum(axes).tolist(),
    }


def total_moments(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation a channel, of what ``channel_moments`` counted."""
    if not parts:
        return {}
    count = sum(m["count"] for m in parts)
    mean = np.sum([m["sum"] for m in parts], axis=0) / count
    square = np.sum([m["square"] for m in parts], axis=0) / count
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(square - mean**2, 0)).tolist()}


def evaluated_classes(
    records: Sequence[dict[str, Any]], fact: str = "classes"
) -> dict[str, dict[str, int]]:
    """Return how many images, or ``tiles``, of each source a pipeline's records count, by split."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in EVALUATED}
    for record in records:
        for split, by_class in record["facts"].get(fact, {}).items():
            counts[split].update(by_class)
    return {split: dict(sorted(by_class.items())) for split, by_class in counts.items()}


def counted_splits(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many images were split ``by_value`` of a column, and how many had none."""
    counts = [record["facts"].get("split_by", (0, 0)) for record in records]
    return {name: sum(count[n] for count in counts) for n, name in enumerate(Splits._fields[1:])}


def compute_artifacts(
    inputs: Sequence[str],
    output: str,
    *,
    manifolds: Sequence[str] = (),
    plain: Sequence[str] = (),
    image_size: int | None = None,
    tiles: int | None = None,
    sources: Sequence[str] | None = None,
    undeclared: str = CONTENT,
    split_by: str | None = None,
    labels: Reading = AS_FOUND,
    float16: bool = False,
    projection: Projection = NEAREST,
    search: session.SearchDemand = session.ANY_SEARCH,
    demand: session.Demand = session.ANY,
    chunk: int | None = None,
    targets: dict[str, Target] | None = None,
    augmentation: Augmentation | None = None,
    terms: claims.Terms = claims.AS_IS,
) -> dict[str, Any]:
    """Compute the artifacts of all images and publish them, one folder a split.

    With several spaces each has a folder of its own, complete in itself; their rows are in the
    same order, and each image is decoded once for all of them.

    Args:
        inputs: ``URI`` or ``NAME=URI``; a benchmark's reals of its manifold are left out.
        output: folder of the artifacts.
        manifolds: URIs of manifolds, or of folders that hold some.
        plain: spaces to embed in without a manifold, such as ``image``, the images themselves.
        image_size: of those spaces; a manifold has its own.
        tiles: the most native tiles of a larger image in those spaces; see ``targets_of``.
        sources: of images that declare a source, as a benchmark's, only these.
        undeclared: the split of images that declare none: ``content`` (70 % train, 10 %
            validation, 20 % test by pixel hash) or the name of one split for all of them.
        split_by: a metadata column of the inputs, or ``folder``: of the images that declare no
            split, those of one value are on one side; those without a value are split by content.
        labels: the columns that name sources and splits.
        float16: halve the storage; artifacts are float32 otherwise.
        projection: what x* is, from how many neighbours.
        search: how to find them, and where the manifold lies; the artifacts do not depend on it.
        demand: how many processes, with how many GPUs.
        chunk: images of a file, or tiles; artifacts made apart can be read together if theirs are
            alike.
        targets: the spaces and projections themselves, such as an attributor's, instead of
            ``manifolds``, ``plain`` and ``projection``.
        augmentation: put degraded copies beside training images; counts of images leave them out,
            ``classes`` count them, too, and ``tiles`` the tiles of all.
        terms: whether to replace an output of other settings, or a run that seems alive.

    """
    output = storage.absolute(output)
    selection = Selection(EVALUATED, tuple(sources) if sources else None)
    if split_by is not None and undeclared != CONTENT:
        raise ManifptError(f"--split-by {split_by}: --split {undeclared} puts all on one side")
    reading = reading_with_split(split_by, [*ARTIFACTS, *AUGMENTED, *pipeline.QUARANTINE], labels)
    units = plan(inputs, selection, labelled=True, reading=reading, quiet=demand.here)
    check_column(units, split_by)
    targets = targets or targets_of(
        units,
        selection,
        manifolds,
        projection,
        plain=plain,
        image_size=image_size,
        tiles=tiles,
    )
    facts = {name: target.facts() for name, target in targets.items()}
    made_of = [
        [f[k] for k in ("space", "decode", "manifold_sha256", "projection")] for f in facts.values()
    ]
    made_by = [content_key(units), selection.sources, made_of, undeclared, float16]
    first = reading_rule([target.rule for target in targets.values()])
    augment = augmentation and {**augmentation.card(), "size": first.size}
    if augment and first.tiles:
        augment["tiles"] = first.tiles
    by = {"split_by": split_by} if split_by else None
    key = storage.digest(made_by + [option for option in (augment, by) if option])
    learned = any(target.space.name in LEARNED for target in targets.values())
    pool = session.pool(demand, uses_gpu=learned)
    kind = "artifacts" if len(targets) == 1 else COMBINATION
    read = [*input_places(inputs, output), *(("--manifold", uri) for uri in manifolds)]
    with claims.claim(output, kind, key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        projectors, pool = projectors_of(targets, search, pool)
        names = [""] if len(targets) == 1 else list(targets)
        by_folder = dict(zip(names, projectors, strict=True))
        if augmentation is not None:
            sizes = [target.space.size for target in targets.values()]
            chunk = chunk or chunk_rows(max(first.size, *sizes)) // (1 + augmentation.copies) + 1
        build = partial(ArtifactStage, by_folder, undeclared, float16, augmentation, split_by)
        records = run_projection(
            "artifacts", units, selection, projectors, build, output, pool, chunk
        )
        counts = pipeline.totals(records)
        if counts["ok"] == 0:
            claim.abandon()
            reason = counts["by_error"] or f"no image of the splits {EVALUATED}"
            raise ManifptError(
                f"--input: none of {counts['rows_in']} images could be used ({reason}); "
                "check the input"
            )
        by_value = counted_splits(records)
        if split_by and by_value["without_value"] and not by_value["by_value"]:
            claim.abandon()
            raise no_values(split_by)
        classes = evaluated_classes(records)
        copies = sum(sum(by_class.values()) for by_class in classes.values()) - counts["ok"]
        common = {**counts, "inputs": describe(inputs, units, labels), "classes": classes}
        if first.tiles:
            common["tiles"] = evaluated_classes(records, "tiles")
        if augment:
            common |= {"augment": augment, "copies": copies}
        if split_by:
            common["split_by"] = {"column": split_by, **by_value}
        return publish_artifacts(
            claim, dict(zip(names, facts.values(), strict=True)), records, common
        )


def publish_artifacts(
    claim: claims.Claim,
    facts: dict[str, dict[str, Any]],
    records: Sequence[dict[str, Any]],
    common: dict[str, Any],
) -> dict[str, Any]:
    """Publish each space's artifacts and, if there are several, the folder that holds them."""
    files = pipeline.parts(records)
    recorded = [record["facts"]["moments"] for record in records if record["facts"]]
    for folder, fact in facts.items():
        mine = [moments[folder] for moments in recorded]
        moments = {s: total_moments([m[s] for m in mine if s in m]) for s in EVALUATED}
        start = storage.join(folder, "")
        inside = [_inside(folder, file) for file in files if file["path"].startswith(start)]
        body = {**fact, **common, "files": inside, "moments": moments}
        manifest = claim.publish(body, folder, "artifacts")
    if len(facts) > 1:
        quarantined = [file for file in files if file["folder"] == "quarantine"]
        body = {**common, "members": list(facts), "files": quarantined}
        manifest = claim.publish(body)
    pipeline.clear_records(claim.folder)
    return manifest


def _inside(folder: str, file: dict[str, Any]) -> dict[str, Any]:
    """Return a file's entry with its paths relative to a folder."""
    return file | {
        name: posixpath.relpath(file[name], folder or ".") for name in ("path", "folder")
    }
