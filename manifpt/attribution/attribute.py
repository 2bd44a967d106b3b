"""Any images -> the attributions table: which generator, how surely, nearest to which real."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, pipeline, session, storage
from manifpt.artifacts import Projector
from manifpt.attribution.attributor import Attributor
from manifpt.device import device_and_precision
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, plan, read_unit
from manifpt.images.read import unit_from_json, unit_to_json
from manifpt.images.sources import content_key, describe
from manifpt.manifold import Manifold
from manifpt.manifold.placement import Searcher, place
from manifpt.manifold.projector import Projection
from manifpt.spaces import space_from_card

TOP_K = 3
SUMMARY = "summary.json"

ATTRIBUTIONS = {
    "id": pa.string(),
    "uri": pa.string(),
    "sha256": pa.string(),
    "status": pa.string(),
    "source": pa.string(),
    "prediction": pa.string(),
    "probability": pa.float64(),
    "top_k": pa.list_(pa.struct({"source": pa.string(), "probability": pa.float64()})),
    "neighbor_id": pa.string(),
    "distance": pa.float64(),
    "percentile": pa.float64(),
    "in_manifold": pa.bool_(),
}


@dataclass
class AttributeStage:
    """Images -> attributions, in one process."""

    model: str
    projector: Projector

    @cached_property
    def attributor(self) -> Attributor:
        """The attributor, read at first use."""
        return Attributor.open(self.model, device_and_precision()[0])

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Attribute the rows of an images table."""
        return pipeline.Result({"attributions": self.attributions(table)})

    def attributions(self, table: pa.Table) -> pa.Table:
        """Return the attributions table of an images table; ``source`` is what the input said."""
        classes = self.attributor.classes
        artifacts, beside = self.projector(table)
        probabilities = self.attributor.probabilities(artifacts)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_K]
        ranked = [
            [{"source": classes[i], "probability": float(p[i])} for i in line]
            for p, line in zip(probabilities, order, strict=True)
        ]
        columns = {
            **{name: table[name].to_pylist() for name in ("id", "uri", "sha256", "source")},
            "status": ["ok"] * table.num_rows,
            "prediction": [line[0]["source"] for line in ranked],
            "probability": [line[0]["probability"] for line in ranked],
            "top_k": ranked,
            **beside,
        }
        return pa.table(
            {name: pa.array(columns[name], kind) for name, kind in ATTRIBUTIONS.items()}
        )


def _read(text: str, rule: DecodeRule, selection: Selection, rows: int | None) -> Any:
    return read_unit(unit_from_json(text), rule, selection, rows)


def manifold_of(attributor: Attributor, manifold: str | None) -> Manifold | None:
    """Return the manifold given, else the one of training; a wrong one raises."""
    if attributor.manifest["manifold_sha256"] is None:
        if manifold is not None:
            raise ManifptError(
                "--manifold: the attributor works on images themselves; leave it out"
            )
        return None
    found = Manifold.open(manifold or attributor.manifest["manifold"])
    attributor.check_manifold(found.sha256, "--manifold")
    return found


def projector_of(
    attributor: Attributor, manifold: Manifold | None, searcher: Searcher | None
) -> Projector:
    """Return what embeds and projects as was done for the attributor's training images."""
    space = space_from_card(attributor.manifest["space"])
    if manifold is None:
        return Projector(space)
    projection = Projection(**attributor.manifest["projection"])
    return Projector(space, manifold, searcher, projection)


def attribute(
    inputs: Sequence[str],
    model: str,
    output: str,
    *,
    manifold: str | None = None,
    split: str | None = None,
    sources: Sequence[str] | None = None,
    search: session.SearchDemand = session.ANY_SEARCH,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Attribute every image of ``inputs`` and publish the table; return the summary.

    ``split`` keeps only the images of that split, and those that declare none; ``sources`` is the
    same for sources.
    """
    started = time.monotonic()
    output, model = storage.absolute(output), storage.absolute(model)
    attributor = Attributor.open(model)
    reals = manifold_of(attributor, manifold)
    rule = DecodeRule.from_card(attributor.manifest["decode"])
    selection = Selection((split,) if split else None, tuple(sources) if sources else None)
    units = plan(inputs, selection)
    key = storage.digest([content_key(units), vars(selection), attributor.manifest["key"]])
    pool = session.pool(demand, uses_gpu=True)
    if outputs.begin(output, "attributions", key, overwrite=overwrite):
        return storage.read_json(storage.join(output, SUMMARY))
    searcher = None
    if reals is not None:
        placement, pool = place(reals, search, pool)
        print(f"attribute: {placement}", file=sys.stderr, flush=True)
        searcher = placement.searcher()
    projector = projector_of(attributor, reals, searcher)
    records = pipeline.run(
        "attribute",
        [unit_to_json(unit) for unit in units],
        partial(_read, rule=rule, selection=selection, rows=projector.rows),
        partial(AttributeStage, model, projector),
        output,
        pool,
    )
    counts = pipeline.totals(records)
    seconds = time.monotonic() - started
    summary = {
        **counts,
        "seconds": seconds,
        "images_per_second": counts["rows_in"] / seconds,
        "model": model,
        "manifold": reals and reals.uri,
        "inputs": describe(inputs, units),
    }
    storage.write_json(storage.join(output, SUMMARY), summary)
    outputs.publish(output, "attributions", key, {**summary, "files": pipeline.parts(records)})
    pipeline.clear_records(output)
    return summary
