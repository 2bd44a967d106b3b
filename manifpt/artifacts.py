"""Images -> projections -> artifacts: a(x) = phi(x) - x*, x* the nearest real point.

ManiFPT (CVPR 2024), section 3. In the space ``image`` there is no manifold and the "artifact" is
the image itself: the baseline that every claim is measured against.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, pipeline, session, storage, tensors
from manifpt.errors import ManifptError
from manifpt.images import IMAGES, DecodeRule, Selection, Unit, plan, read_unit
from manifpt.images.probe import natural_size
from manifpt.images.read import pixels_of, unit_from_json, unit_to_json
from manifpt.images.sources import content_key, describe
from manifpt.manifold import Manifold
from manifpt.manifold.placement import Searcher, place
from manifpt.manifold.projector import NEAREST, Projection
from manifpt.spaces import Space, make_space

EVALUATED = ("train", "validation", "test")
# The shares of validation and test where images declare no split; the rest is train.
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2

ARTIFACTS = {
    "id": pa.string(),
    "uri": pa.string(),
    "source": pa.string(),
    "split": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "neighbor_id": pa.string(),
    "distance": pa.float64(),
    "percentile": pa.float64(),
    "in_manifold": pa.bool_(),
}


def split_by_content(pixel_sha256: str) -> str:
    """Return the split of an image that declares none: its content decides, so copies agree."""
    position = int(pixel_sha256[-15:], 16) / 16**15
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


@dataclass
class Projector:
    """Images -> embeddings -> nearest reals -> projections -> artifacts, in one process.

    ``manifold`` and ``searcher`` are None in the space ``image``.
    """

    space: Space
    manifold: Manifold | None = None
    searcher: Searcher | None = None
    projection: Projection = NEAREST

    @property
    def rows(self) -> int | None:
        """Images that it would have at once; None leaves it to the reader."""
        return self.searcher.rows if self.searcher else None

    def __call__(self, table: pa.Table) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the artifacts of an images table, N x shape float32, and the columns beside.

        No image meets a real of its own pixels, whatever its label says: a real under evaluation
        would have the artifact zero, and an exclusion by label would give the label away.
        """
        pipeline.check_columns(table, {"pixel_sha256": IMAGES["pixel_sha256"]}, "project")
        embedded = self.space.embed(pixels_of(table))
        rows = table.num_rows
        if self.manifold is None or self.searcher is None:
            nothing = dict.fromkeys(("neighbor_id", "distance", "percentile"), [None] * rows)
            return embedded, {**nothing, "in_manifold": [False] * rows}
        hashes = np.array(table["pixel_sha256"].to_pylist(), dtype=object)
        flat = embedded.reshape(rows, -1)
        found = self.searcher.nearest(flat, self.projection.neighbours, hashes)
        artifacts = flat - self.projection.project(flat, found.vector)
        return artifacts.reshape(embedded.shape), {
            "neighbor_id": found.id[:, 0].tolist(),
            "distance": found.distance[:, 0].tolist(),
            "percentile": self.manifold.percentile(found.distance[:, 0]).tolist(),
            "in_manifold": found.seen.tolist(),
        }


@dataclass
class ArtifactStage:
    """Images -> one artifacts table a split."""

    projector: Projector
    undeclared: str
    float16: bool

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Project, and note the moments of the training artifacts for their normalisation."""
        artifacts, beside = self.projector(table)
        hashes = table["pixel_sha256"].to_pylist()
        chosen = [
            split_by_content(h) if self.undeclared == "content" else self.undeclared for h in hashes
        ]
        split = pa.array([s or c for s, c in zip(table["split"].to_pylist(), chosen, strict=True)])
        rows = table.select(["id", "uri", "source", "sha256", "pixel_sha256"])
        rows = rows.append_column("split", split)
        for name, values in beside.items():
            rows = rows.append_column(name, pa.array(values, ARTIFACTS[name]))
        rows = rows.select(list(ARTIFACTS))
        stored = artifacts.astype(np.float16) if self.float16 else artifacts
        rows = rows.append_column("artifact", tensors.to_column(stored))
        tables, moments, classes = {}, {}, {}
        for name in EVALUATED:
            mine = np.array(split.to_pylist()) == name
            if mine.any():
                tables[name] = rows.filter(pa.array(mine))
                moments[name] = channel_moments(artifacts[mine])
                sources = tables[name]["source"].to_pylist()
                classes[name] = {str(s): sources.count(s) for s in set(sources)}
        return pipeline.Result(tables, {"moments": moments, "classes": classes})


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


def _total_moments(facts: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    found = [f["moments"][split] for f in facts if split in f.get("moments", {})]
    if not found:
        return {}
    count = sum(m["count"] for m in found)
    mean = np.sum([m["sum"] for m in found], axis=0) / count
    square = np.sum([m["square"] for m in found], axis=0) / count
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(square - mean**2, 0)).tolist()}


def _class_counts(facts: Sequence[dict[str, Any]], split: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for fact in facts:
        for source, number in fact.get("classes", {}).get(split, {}).items():
            counts[source] = counts.get(source, 0) + number
    return dict(sorted(counts.items()))


def _read(text: str, rule: DecodeRule, selection: Selection, rows: int | None) -> Any:
    return read_unit(unit_from_json(text), rule, selection, rows)


def _target(
    units: Sequence[Unit], selection: Selection, manifold: Manifold | None, image_size: int | None
) -> tuple[Space, DecodeRule]:
    """Return the space and the decode rule of the manifold, or those of the images themselves."""
    if manifold is None:
        rule = DecodeRule(image_size or natural_size(units, selection))
        return make_space("image", rule.size), rule
    if image_size not in (None, manifold.rule.size):
        raise ManifptError(
            f"--image-size {image_size}: the manifold's reals have {manifold.rule.size}; "
            "leave it out"
        )
    return manifold.space, manifold.rule


def compute_artifacts(
    inputs: Sequence[str],
    output: str,
    *,
    manifold: str | None,
    image_size: int | None = None,
    sources: Sequence[str] | None = None,
    undeclared: str = "content",
    float16: bool = False,
    projection: Projection = NEAREST,
    search: session.SearchDemand = session.ANY_SEARCH,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compute the artifacts of all images and publish them, one folder a split.

    Args:
        inputs: ``URI`` or ``NAME=URI``; a benchmark's reals of its manifold are left out.
        output: folder of the artifacts.
        manifold: URI of a manifold, or None for the images themselves.
        image_size: of the images themselves; a manifold has its own.
        sources: of images that declare a source, as a benchmark's, only these.
        undeclared: the split of images that declare none: ``content`` (70 % train, 10 %
            validation, 20 % test by pixel hash) or the name of one split for all of them.
        float16: halve the storage; artifacts are float32 otherwise.
        projection: what x* is, from how many neighbours.
        search: how to find them, and where the manifold lies; the artifacts do not depend on it.
        demand: how many processes, with how many GPUs.
        overwrite: replace an output of other settings.

    """
    output = storage.absolute(output)
    reals = Manifold.open(manifold) if manifold else None
    selection = Selection(EVALUATED, tuple(sources) if sources else None)
    units = plan(inputs, selection, labelled=True)
    space, rule = _target(units, selection, reals, image_size)
    target = [space.card(), rule.card(), reals and reals.sha256, reals and projection.card()]
    key = storage.digest([content_key(units), selection.sources, *target, undeclared, float16])
    pool = session.pool(demand, uses_gpu=False)
    finished = outputs.begin(output, "artifacts", key, overwrite=overwrite)
    if finished:
        return finished
    projector = Projector(space)
    if reals is not None:
        placement, pool = place(reals, search, pool)
        print(f"artifacts {space.name}: {placement}", file=sys.stderr, flush=True)
        projector = Projector(space, reals, placement.searcher(), projection)
    records = pipeline.run(
        f"artifacts {space.name}",
        [unit_to_json(unit) for unit in units],
        partial(_read, rule=rule, selection=selection, rows=projector.rows),
        partial(ArtifactStage, projector, undeclared, float16),
        output,
        pool,
    )
    counts = pipeline.totals(records)
    if counts["ok"] == 0:
        outputs.abandon(output)
        reason = counts["by_error"] or f"no image of the splits {EVALUATED}"
        raise ManifptError(
            f"--input: none of {counts['rows_in']} images could be used ({reason}); check the input"
        )
    facts = [record["facts"] for record in records]
    manifest = outputs.publish(
        output,
        "artifacts",
        key,
        {
            "space": space.card(),
            "shape": list(space.shape),
            "decode": rule.card(),
            "manifold": reals and reals.uri,
            "manifold_sha256": reals and reals.sha256,
            "projection": reals and projection.card(),
            **counts,
            "inputs": describe(inputs, units),
            "files": pipeline.parts(records),
            "classes": {split: _class_counts(facts, split) for split in EVALUATED},
            "moments": {split: _total_moments(facts, split) for split in EVALUATED},
        },
    )
    pipeline.clear_records(output)
    return manifest


def artifacts_of(
    inputs: Sequence[str],
    output: str,
    *,
    manifold: str | None,
    space: str | None,
    undeclared: str = "content",
    image_size: int | None = None,
    projection: Projection = NEAREST,
    demand: session.Demand = session.ANY,
) -> tuple[str, dict[str, Any]]:
    """Return URI and manifest of the artifacts that ``inputs`` are, or that are made of them.

    One input that is an artifacts folder is used as it is. Images become artifacts in ``output``,
    projected onto ``manifold`` or, where ``space`` is ``image``, as they are.
    """
    first = storage.absolute(inputs[0])
    if len(inputs) == 1 and outputs.read(first) is not None:
        return first, outputs.require(first, "artifacts", "--input")
    if (manifold is None) == (space is None):
        raise ManifptError("--manifold: images need a manifold, or --space image to do without")
    made = compute_artifacts(
        inputs,
        output,
        manifold=manifold,
        image_size=image_size,
        undeclared=undeclared,
        projection=projection,
        demand=demand,
    )
    return storage.absolute(output), made


def read_artifacts(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Return one Parquet file of artifacts, checked against the table's schema."""
    table = storage.read_parquet(uri, columns)
    expected = {name: kind for name, kind in ARTIFACTS.items() if name in (columns or ARTIFACTS)}
    pipeline.check_columns(table, expected, "artifacts")
    return table
