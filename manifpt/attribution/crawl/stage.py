"""Images -> attributions in one process, with the hashes of the attributor's training images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from manifpt.artifacts.projection import Projector, project_images
from manifpt.attribution.crawl import grouping
from manifpt.attribution.crawl.crawl_format import AttributionFacts
from manifpt.attribution.crawl.ensemble import pooled_views
from manifpt.attribution.crawl.leaks import LEAKS, Leaks
from manifpt.attribution.crawl.verdicts import verdicts
from manifpt.attribution.model.tiled import TILED, pooled_columns, pooled_tiles
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import USUAL, Rule, decide
from manifpt.engine import chunk_work
from manifpt.engine.columns import ColumnTypes
from manifpt.errors import ManifptError
from manifpt.images.degrade import Degradation
from manifpt.images.degraded_copies import view
from manifpt.images.perceptual import DISTANCE
from manifpt.images.read import IMAGES, is_own, pixel_columns
from manifpt.images.stacks import image_starts
from manifpt.nets.device import device_and_precision

TOP_K = 3
# Columns of the images table that are kept.
GIVEN = ("id", "uri", "sha256", "pixel_sha256", "perceptual_hash", "source")

ATTRIBUTIONS = {
    "id": pa.string(),
    "uri": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "perceptual_hash": pa.uint64(),
    "status": pa.string(),
    "source": pa.string(),
    "prediction": pa.string(),
    "probability": pa.float64(),
    "decision": pa.string(),
    "top_k": pa.list_(pa.struct({"source": pa.string(), "probability": pa.float64()})),
    "neighbor_id": pa.string(),
    "distance": pa.float64(),
    "percentile": pa.float64(),
    "in_manifold": pa.bool_(),
    "unknown_score": pa.float64(),
    "unknown_p": pa.float64(),
}
# The number of views that gave the answer, with an ensemble.
AGREEMENT = {"agreement": pa.int32()}


@dataclass
class AttributeStage:
    """Images -> attributions, in one process.

    ``views`` are those of an ensemble, the image itself first; without views there is none.
    """

    model: str
    projectors: list[Projector]
    columns: tuple[str, ...] = ()
    near_distance: int = DISTANCE
    rule: Rule = USUAL
    views: tuple[Degradation, ...] = ()
    group_by: str | None = None

    @property
    def takes(self) -> ColumnTypes:
        """The columns of an images table."""
        types = {name: IMAGES[name] for name in GIVEN} | dict.fromkeys(self.columns, pa.string())
        types |= pixel_columns([projector.rule for projector in self.projectors])
        named = self.group_by not in (None, grouping.FOLDER)
        return {**types, str(self.group_by): None} if named else types

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """The columns of attributions, and of the evidence of groups if there are any."""
        tiled = any(projector.rule.tiles for projector in self.projectors)
        columns = self._schema(tiled=tiled) | dict.fromkeys(LEAKS, pa.bool_())
        grouped = {} if self.group_by is None else {grouping.EVIDENCE: grouping.EVIDENCE_ROWS}
        return {"attributions": columns, **grouped}

    def _schema(self, *, tiled: bool) -> dict[str, pa.DataType]:
        """Return the columns of attributions, without the marks of images that were seen."""
        schema = ATTRIBUTIONS | (AGREEMENT if self.views else {}) | (TILED if tiled else {})
        return schema | dict.fromkeys(self.columns, pa.string())

    @cached_property
    def attributor(self) -> TrainedAttributor:
        """The attributor, read at first use."""
        return TrainedAttributor.open(self.model, device_and_precision()[0])

    @cached_property
    def leaks(self) -> Leaks:
        """The hashes of images that the attributor has seen, read at first use."""
        manifolds = [p.manifold for p in self.projectors if p.manifold]
        return Leaks.of(self.attributor, manifolds, self.near_distance)

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Attribute the rows of an images table, and mark those that were in training."""
        rows, probabilities, coordinates = self._attributed(table)
        attributions, leaks = self.leaks.marked(rows)
        decisions = dict(Counter(attributions["decision"].to_pylist()))
        facts: AttributionFacts = {
            "leaks": leaks,
            "decisions": decisions,
            **verdicts(attributions),
        }
        tables = {"attributions": attributions}
        if self.group_by is not None:
            by = self.group_by
            evidence = grouping.evidence_of(table, by, rows, probabilities, coordinates)
            tables[grouping.EVIDENCE] = evidence
        return chunk_work.Result(tables, facts)

    def attributions(self, table: pa.Table) -> pa.Table:
        """Return the attributions table of an images table; ``source`` is that of the input.

        An image in tiles has one row, too, with the columns TILED. Neighbour and distance are those
        of the first space with a manifold.
        """
        return self._attributed(table)[0]

    def _attributed(self, table: pa.Table) -> tuple[pa.Table, np.ndarray, np.ndarray | None]:
        """Return the attributions table, all probabilities, N x classes, and coordinates."""
        classes = self.attributor.classes
        made = project_images(self.projectors, table)
        reals = [m.columns for p, m in zip(self.projectors, made, strict=True) if p.manifold]
        beside = dict(reals[0] if reals else made[0].columns)
        beside["in_manifold"] = np.any([m.columns["in_manifold"] for m in made], axis=0).tolist()
        tiles, begins = (
            self.attributor.outputs([m.artifacts for m in made]),
            image_starts(made[0].rows),
        )
        found = pooled_tiles(tiles, begins)
        probabilities = self.attributor.fused(found.logits)
        unknown = self.attributor.unknown(found)
        unknown_p = unknown.p_value if unknown else None
        if self.views:
            probabilities, agreement = pooled_views(self._seen_by_views(table, probabilities))
        if self.attributor.tiled:
            each, predicted = self.attributor.fused(tiles.logits), probabilities.argmax(1)
            beside = pooled_columns(made[0].rows, beside, begins, each, predicted)
        if self.views:
            beside["agreement"] = agreement.tolist()
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_K]
        ranked = [
            [{"source": classes[i], "probability": float(p[i])} for i in line]
            for p, line in zip(probabilities, order, strict=True)
        ]
        columns = {
            **{name: table[name].to_pylist() for name in GIVEN},
            "status": ["ok"] * table.num_rows,
            "prediction": [line[0]["source"] for line in ranked],
            "probability": [line[0]["probability"] for line in ranked],
            "decision": decide(probabilities, classes, unknown_p, self.rule),
            "top_k": ranked,
            **beside,
            "unknown_score": unknown.score if unknown else [None] * table.num_rows,
            "unknown_p": unknown_p if unknown else [None] * table.num_rows,
            **{name: table[name].to_pylist() for name in self.columns},
        }
        schema = self._schema(tiled=self.attributor.tiled)
        rows = pa.table({name: pa.array(columns[name], kind) for name, kind in schema.items()})
        return rows, probabilities, unknown.coordinates if unknown else None

    def _seen_by_views(self, table: pa.Table, itself: np.ndarray) -> np.ndarray:
        """Return views x N x classes probabilities; those of the image itself are there."""
        found = [itself]
        for how in self.views[1:]:
            seen = view(table, how, self.projectors[0].rule.filter)
            made = project_images(self.projectors, seen)
            artifacts, begins = [m.artifacts for m in made], image_starts(made[0].rows)
            found.append(self.attributor.probabilities(artifacts, begins))
        return np.stack(found)


def check_metadata_names(columns: Sequence[str]) -> None:
    """Raise if metadata columns have names that the tables of the output have themselves."""
    own = {*ATTRIBUTIONS, *AGREEMENT, *TILED, *LEAKS, *chunk_work.QUARANTINE}
    taken = [c for c in columns if c in own or is_own(c)]
    if taken:
        raise ManifptError(f"--columns {' '.join(taken)}: taken by the output; leave it out")
    if len(set(columns)) < len(columns):
        raise ManifptError(f"--columns {' '.join(columns)}: name each only once")
