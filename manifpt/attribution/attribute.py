"""Any images -> the attributions table: which generator, how surely, nearest to which real."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, pipeline, session, storage
from manifpt.attribution.attributor import Attributor
from manifpt.attribution.decision import DECISIONS, USUAL, Rule, decide
from manifpt.attribution.duplicates import find_duplicates
from manifpt.attribution.ensemble import pooled_views, views_of
from manifpt.attribution.leaks import LEAKS, Leaks, total_leaks
from manifpt.attribution.registered import opened
from manifpt.device import device_and_precision
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, plan
from manifpt.images.copies import view
from manifpt.images.degrade import Degradation
from manifpt.images.perceptual import DISTANCE
from manifpt.images.read import is_own, sized
from manifpt.images.sources import AS_FOUND, Reading, content_key, describe
from manifpt.manifold.manifold import Manifold, open_manifolds
from manifpt.manifold.projector import Projection
from manifpt.projection import Projector, Target, project, projectors_of
from manifpt.spaces import space_from_card

TOP_K = 3
SUMMARY = "summary.json"
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
# How many views gave the answer, where an ensemble of them was asked.
AGREEMENT = {"agreement": pa.int32()}


@dataclass
class AttributeStage:
    """Images -> attributions, in one process.

    ``views`` are an ensemble's, the image itself first; none is no ensemble.
    """

    model: str
    projectors: list[Projector]
    columns: tuple[str, ...] = ()
    near_distance: int = DISTANCE
    rule: Rule = USUAL
    views: tuple[Degradation, ...] = ()

    @cached_property
    def attributor(self) -> Attributor:
        """The attributor, read at first use."""
        return Attributor.open(self.model, device_and_precision()[0])

    @cached_property
    def leaks(self) -> Leaks:
        """What the attributor has seen, read at first use."""
        manifolds = [p.manifold for p in self.projectors if p.manifold]
        return Leaks.of(self.attributor, manifolds, self.near_distance)

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Attribute the rows of an images table, and mark those that are no news."""
        attributions, leaks = self.leaks.marked(self.attributions(table))
        decisions = dict(Counter(attributions["decision"].to_pylist()))
        facts = {"leaks": leaks, "decisions": decisions}
        return pipeline.Result({"attributions": attributions}, facts)

    def attributions(self, table: pa.Table) -> pa.Table:
        """Return the attributions table of an images table; ``source`` is what the input said.

        Neighbour and distance are those of the first space with a manifold.
        """
        classes = self.attributor.classes
        made = [p(sized(table, p.space.size)) for p in self.projectors]
        reals = [b for p, (_, b) in zip(self.projectors, made, strict=True) if p.manifold]
        beside = dict(reals[0] if reals else made[0][1])
        beside["in_manifold"] = np.any([b["in_manifold"] for _, b in made], axis=0).tolist()
        found = self.attributor.outputs([artifacts for artifacts, _ in made])
        probabilities = self.attributor.fused(found.logits)
        unknown = self.attributor.unknown(found, beside["distance"])
        unknown_p = unknown.p_value if unknown else None
        if self.views:
            probabilities, agreement = pooled_views(self._seen_by_views(table, probabilities))
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
        schema = ATTRIBUTIONS | (AGREEMENT if self.views else {})
        schema |= dict.fromkeys(self.columns, pa.string())
        return pa.table({name: pa.array(columns[name], kind) for name, kind in schema.items()})

    def _seen_by_views(self, table: pa.Table, itself: np.ndarray) -> np.ndarray:
        """Return views x N x classes probabilities; those of the image itself are there."""
        found = [itself]
        for how in self.views[1:]:
            seen = view(table, how, self.projectors[0].rule.filter)
            artifacts = [p(sized(seen, p.space.size))[0] for p in self.projectors]
            found.append(self.attributor.probabilities(artifacts))
        return np.stack(found)


def check_columns(columns: Sequence[str]) -> None:
    """Raise if metadata columns have names that the tables of the output have themselves."""
    own = {*ATTRIBUTIONS, *AGREEMENT, *LEAKS, *pipeline.QUARANTINE}
    taken = [c for c in columns if c in own or is_own(c)]
    if taken:
        raise ManifptError(f"--columns {' '.join(taken)}: taken by the output; leave it out")
    if len(set(columns)) < len(columns):
        raise ManifptError(f"--columns {' '.join(columns)}: name each only once")


def trained_targets(attributor: Attributor, manifolds: Sequence[str]) -> dict[str, Target]:
    """Return what embeds and projects as was done for the attributor's training images.

    ``manifolds`` say where its manifolds lie now; by default, where they were. Others raise.
    """
    branches = attributor.branches
    where = manifolds or [b["manifold"] for b in branches if b["manifold"]]
    opened = open_manifolds(where)
    wanted = sum(b["manifold"] is not None for b in branches)
    if len(opened) != wanted:
        raise ManifptError(f"--manifold: the attributor has {wanted}, not {len(opened)}")
    left = iter(opened)
    found: list[Manifold | None] = [next(left) if b["manifold"] else None for b in branches]
    hashes = [reals.sha256 if reals else None for reals in found]
    attributor.check_manifolds(hashes, "--manifold")
    projections = [
        Projection(**branch["projection"]).on(reals.manifest) if reals else None
        for branch, reals in zip(branches, found, strict=True)
    ]
    if [p and p.card() for p in projections] != [branch["projection"] for branch in branches]:
        raise ManifptError("--manifold: its geometry is not that of training; give that manifold")
    return {
        branch["name"]: Target(
            reals.space if reals else space_from_card(branch["space"]),
            DecodeRule.from_card(branch["decode"]),
            reals,
            projection,
        )
        for branch, reals, projection in zip(branches, found, projections, strict=True)
    }


def attribute(
    inputs: Sequence[str],
    model: str,
    output: str,
    *,
    manifolds: Sequence[str] = (),
    split: str | None = None,
    sources: Sequence[str] | None = None,
    reading: Reading = AS_FOUND,
    duplicates: bool = True,
    near_distance: int = DISTANCE,
    rule: Rule = USUAL,
    ensemble: Sequence[str] | None = None,
    search: session.SearchDemand = session.ANY_SEARCH,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Attribute every image of ``inputs`` and publish the table; return the summary.

    ``model`` is an attributor's folder, or MLflow's name of one (see ``registered``).

    ``split`` keeps only the images of that split, and those that declare none; ``sources`` is the
    same for sources. ``rule`` makes decisions of probabilities. ``reading`` says how inputs are
    read, and which of their columns travel. ``duplicates`` adds the table of the corpus's own
    copies (see ``duplicates``); what is near has perceptual hashes within ``near_distance`` bits.
    ``ensemble`` names degraded views of each image to be asked beside it, by default those of
    ``ensemble.VIEWS``; their mean is the answer, and a column counts who agrees.
    """
    check_columns(reading.columns)
    started = time.monotonic()
    output = storage.absolute(output)
    selection = Selection((split,) if split else None, tuple(sources) if sources else None)
    units = plan(inputs, selection, reading=reading)
    with opened(model, manifolds) as found:
        attributor = Attributor.open(found.attributor)
        trained_targets(attributor, found.manifolds)
        copies, known = [duplicates, near_distance], attributor.manifest["key"]
        made_of = [content_key(units), vars(selection), known, copies, vars(rule)]
        views = () if ensemble is None else views_of(ensemble)
        key = storage.digest(made_of + ([list(map(str, views))] if views else []))
        pool = session.pool(demand, uses_gpu=True)
        if outputs.begin(output, "attributions", key, overwrite=overwrite):
            return storage.read_json(storage.join(output, SUMMARY))
        source = found.kept(output)
    targets = trained_targets(attributor, source.manifolds)
    projectors, pool = projectors_of(targets, search, pool)
    build = partial(
        AttributeStage,
        source.attributor,
        projectors,
        reading.columns,
        near_distance,
        rule,
        views,
    )
    records = project("attribute", units, selection, projectors, build, output, pool)
    counts, files = pipeline.totals(records), pipeline.parts(records)
    if duplicates:
        files.append(find_duplicates(output, files, near_distance, pool))
        counts["duplicates"] = {name: files[-1][name] for name in ("exact", "near")}
    counts["leaks"] = total_leaks([record["facts"] for record in records])
    seconds = time.monotonic() - started
    decisions: Counter[str] = Counter()
    for record in records:
        decisions.update(record["facts"].get("decisions", {}))
    summary = {
        **counts,
        "decisions": {name: decisions[name] for name in DECISIONS},
        "seconds": seconds,
        "images_per_second": counts["rows_in"] / seconds,
        **source.facts(),
        "manifolds": [target.manifold.uri for target in targets.values() if target.manifold],
        "inputs": describe(inputs, units),
        **({"ensemble": list(map(str, views))} if views else {}),
    }
    storage.write_json(storage.join(output, SUMMARY), summary)
    outputs.publish(output, "attributions", key, {**summary, "files": files})
    pipeline.clear_records(output)
    return summary
