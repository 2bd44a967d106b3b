"""Any images -> the attributions table: which generator, how surely, nearest to which real."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, pipeline, session, storage
from manifpt.attribution import grouping
from manifpt.attribution.attributor import Attributor
from manifpt.attribution.decision import DECISIONS, USUAL, Rule, decide
from manifpt.attribution.duplicates import find_duplicates
from manifpt.attribution.ensemble import pooled_views, views_of
from manifpt.attribution.groups import EPS, Pooling
from manifpt.attribution.leaks import LEAKS, Leaks, total_leaks
from manifpt.attribution.registered import opened
from manifpt.attribution.retry import (
    FOLDERS,
    again,
    begin,
    check_codes,
    clean,
    merged,
    read_again,
)
from manifpt.device import device_and_precision
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection
from manifpt.images.copies import view
from manifpt.images.degrade import Degradation
from manifpt.images.inventory import Inventory
from manifpt.images.perceptual import DISTANCE
from manifpt.images.read import IMAGES, is_own, sized, unit_to_json
from manifpt.images.sources import AS_FOUND, Reading
from manifpt.manifold.manifold import Manifold, open_manifolds
from manifpt.manifold.projector import Projection
from manifpt.progress import alive
from manifpt.projection import Projector, Target, project, projectors_of
from manifpt.records import Records
from manifpt.spaces import space_from_card
from manifpt.unique import check_ids
from manifpt.work import FOLDER, Work

KIND = "attributions"
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
Find = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
# The same for the table of groups: its files, and how many groups and images are in it.
Judge = Callable[[Sequence[dict[str, Any]]], tuple[list[dict[str, Any]], dict[str, int]]]

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
    group_by: str | None = None

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
        rows, probabilities = self._attributed(table)
        attributions, leaks = self.leaks.marked(rows)
        decisions = dict(Counter(attributions["decision"].to_pylist()))
        facts = {"leaks": leaks, "decisions": decisions}
        tables = {"attributions": attributions}
        if self.group_by is not None:
            evidence = grouping.evidence_of(table, self.group_by, rows, probabilities)
            tables[grouping.EVIDENCE] = evidence
        return pipeline.Result(tables, facts)

    def attributions(self, table: pa.Table) -> pa.Table:
        """Return the attributions table of an images table; ``source`` is what the input said.

        Neighbour and distance are those of the first space with a manifold.
        """
        return self._attributed(table)[0]

    def _attributed(self, table: pa.Table) -> tuple[pa.Table, np.ndarray]:
        """Return the attributions table and all probabilities, N x classes."""
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
        rows = pa.table({name: pa.array(columns[name], kind) for name, kind in schema.items()})
        return rows, probabilities

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
    group_by: str | None = None,
    foreign: float = EPS,
    search: session.SearchDemand = session.ANY_SEARCH,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
    retry: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Attribute every image of ``inputs`` and publish the table; return the summary.

    The inputs are listed once; until the output is finished, every later start is about what was
    listed then (see ``work``). Once it is, an input that has changed makes other settings.

    ``model`` is an attributor's folder, or MLflow's name of one (see ``registered``).

    ``split`` keeps only the images of that split, and those that declare none; ``sources`` is the
    same for sources. ``rule`` makes decisions of probabilities. ``reading`` says how inputs are
    read, and which of their columns travel. ``duplicates`` adds the table of the corpus's own
    copies (see ``duplicates``); what is near has perceptual hashes within ``near_distance`` bits.
    ``ensemble`` names degraded views of each image to be asked beside it, by default those of
    ``ensemble.VIEWS``; their mean is the answer, and a column counts who agrees.
    ``group_by`` is a column of the images, or ``folder``: the images of each of its values are
    judged together, too, where a share of ``foreign`` may be of other sources.

    ``retry`` tries again only what a finished output has quarantined, for one of these codes, or
    for any if there is none.
    """
    if group_by not in {None, grouping.FOLDER, *IMAGES, *reading.columns}:
        reading = replace(reading, columns=(*reading.columns, str(group_by)))
    check_columns(reading.columns)
    started = time.monotonic()
    check_codes(retry or ())
    output = storage.absolute(output)
    selection = Selection((split,) if split else None, tuple(sources) if sources else None)
    inventory = Inventory(inputs, selection, reading)
    with opened(model, manifolds) as found:
        attributor = Attributor.open(found.attributor)
        trained_targets(attributor, found.manifolds)
        views = () if ensemble is None else views_of(ensemble)
        made_of = [
            vars(selection),
            asdict(reading),
            attributor.manifest["key"],
            [duplicates, near_distance],
            vars(rule),
            list(map(str, views)),
            *([[group_by, foreign]] if group_by else []),
        ]
        claim = storage.digest([inventory.given, *made_of])
        pool = session.pool(demand, uses_gpu=True)
        manifest: dict[str, Any] | None
        if retry is not None:
            manifest = _finished(output, claim)
        elif manifest := outputs.begin(
            output,
            KIND,
            claim,
            overwrite=overwrite,
            published=lambda: storage.digest([inventory.key(), *made_of]),
        ):
            clean(output, manifest)
            return storage.read_json(storage.join(output, SUMMARY))
        work = Work.find(output) or _listed(inventory, output)
        source = found.kept(output)
    with alive(output):
        targets = trained_targets(attributor, source.manifolds)
        projectors, pool = projectors_of(targets, search, pool)
        stage = partial(
            AttributeStage,
            source.attributor,
            projectors,
            reading.columns,
            near_distance,
            rule,
            views,
            group_by,
        )
        to_do = partial(
            project, "attribute", selection=selection, projectors=projectors, build=stage,
            output=output, pool=pool,
        )  # fmt: skip
        find = (
            partial(find_duplicates, output, distance=near_distance, pool=pool)
            if duplicates
            else None
        )
        pooling = Pooling.of(attributor.manifest, foreign, rule.sure)
        judge = (
            partial(grouping.write_groups, output, pooling=pooling, pool=pool) if group_by else None
        )
        if manifest is not None and retry is not None:
            return _try_again(output, manifest, retry, to_do, find, judge)
        records = to_do(units=work)
        files = pipeline.parts(records)
        check_ids(output, files)
        counts = pipeline.totals(records) | _facts(records) | _with_copies(files, find)
        counts |= _with_groups(files, judge)
    seconds = time.monotonic() - started
    summary = {
        **counts,
        "seconds": seconds,
        "images_per_second": counts["rows_in"] / seconds,
        **source.facts(),
        "manifolds": [target.manifold.uri for target in targets.values() if target.manifold],
        "inputs": work.facts,
        **({"ensemble": list(map(str, views))} if views else {}),
    }
    storage.write_json(storage.join(output, SUMMARY), summary)
    key = storage.digest([work.facts["content_key"], *made_of])
    outputs.publish(output, KIND, key, {**summary, "claim": claim, "files": files})
    pipeline.clear_records(output, work=False)  # --retry-quarantined reads the units again
    return summary


def _facts(records: Records) -> dict[str, Any]:
    """Return what the records of chunks count besides rows: leaks, and decisions."""
    facts = [record["facts"] for record in records]
    decisions: Counter[str] = Counter()
    for fact in facts:
        decisions.update(fact.get("decisions", {}))
    return {
        "leaks": total_leaks(facts),
        "decisions": {name: decisions[name] for name in DECISIONS},
    }


def _added(facts: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of both, added up."""
    decisions = {name: n + more["decisions"][name] for name, n in facts["decisions"].items()}
    leaks = {name: facts["leaks"][name] + more["leaks"][name] for name in LEAKS}
    return {"leaks": facts["leaks"] | leaks, "decisions": decisions}


def _with_copies(files: list[dict[str, Any]], find: Find | None) -> dict[str, Any]:
    """Add the table of duplicates to an output's files; return how many there are."""
    if find is None:
        return {}
    files.append(find(files))
    return {"duplicates": {name: files[-1][name] for name in ("exact", "near")}}


def _with_groups(files: list[dict[str, Any]], judge: Judge | None) -> dict[str, Any]:
    """Add the table of groups to an output's files; return how many groups and images it has."""
    if judge is None:
        return {}
    made, counts = judge(files)
    files += made
    return {"groups": counts}


def _listed(inventory: Inventory, output: str) -> Work:
    """List the inputs and store their units; if that fails, the folder is as it was before."""
    try:
        with alive(output):
            return Work.store(output, map(unit_to_json, inventory), inventory.describe)
    except ManifptError:
        outputs.release(output, FOLDER)
        raise


def _finished(output: str, claim: str) -> dict[str, Any]:
    """Return the manifest of a finished output of the same options."""
    manifest = outputs.require(output, KIND, "--output")
    if manifest.get("claim") != claim:
        raise ManifptError(
            f"--output {output}: holds attributions made with other settings; --retry-quarantined "
            "wants the options of the command that made them"
        )
    return manifest


def _try_again(
    output: str,
    manifest: dict[str, Any],
    codes: Sequence[str],
    to_do: Callable[..., Records],
    find: Find | None,
    judge: Judge | None,
) -> dict[str, Any]:
    """Try the rows quarantined for one of ``codes`` again, and publish what that changes."""
    summary = storage.read_json(storage.join(output, SUMMARY))
    clean(output, manifest)
    parts = [file for file in manifest["files"] if file["folder"] in FOLDERS]
    tried = again(output, parts, codes)
    if tried.files:
        generation = begin(output, manifest, codes)
        read = partial(read_again, output=output, codes=codes)
        records = to_do(units=tried, read=read, only=tried.files, generation=generation)
        files, counts = merged(manifest | {"files": parts}, tried, records)
        check_ids(output, files)
        summary |= counts | _added(summary, _facts(records)) | _with_copies(files, find)
        summary |= _with_groups(files, judge)
        storage.write_json(storage.join(output, SUMMARY), summary)
        body = {"claim": manifest["claim"], "files": files}
        body["retries"] = manifest.get("retries", 0) + 1
        manifest = outputs.publish(output, KIND, manifest["key"], summary | body)
        clean(output, manifest)
    return summary
