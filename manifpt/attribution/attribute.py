"""Any images -> the attributions table: which generator, how surely, nearest to which real."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from manifpt import outputs, pipeline, session, storage
from manifpt.attribution import grouping
from manifpt.attribution.attributor import Attributor
from manifpt.attribution.decision import DECISIONS, USUAL, Rule
from manifpt.attribution.duplicates import find_duplicates
from manifpt.attribution.ensemble import views_of
from manifpt.attribution.groups import EPS, Pooling
from manifpt.attribution.leaks import LEAKS, total_leaks
from manifpt.attribution.registered import opened
from manifpt.attribution.retry import (
    FOLDERS,
    ROWS,
    again,
    begin,
    check_codes,
    clean,
    merged,
    read_again,
)
from manifpt.attribution.stage import AttributeStage, check_columns, trained_targets
from manifpt.errors import ManifptError
from manifpt.images import Selection
from manifpt.images.inventory import Inventory
from manifpt.images.perceptual import DISTANCE
from manifpt.images.read import IMAGES, unit_to_json
from manifpt.images.sources import AS_FOUND, Reading
from manifpt.progress import alive
from manifpt.projection import project, projectors_of
from manifpt.records import Records
from manifpt.unique import check_ids
from manifpt.work import FOLDER, Work

KIND = "attributions"
SUMMARY = "summary.json"
Find = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
# The same for the table of groups: its files, and how many groups and images are in it.
Judge = Callable[[Sequence[dict[str, Any]]], tuple[list[dict[str, Any]], dict[str, int]]]


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
        judge = None
        if group_by is not None:
            pooling = Pooling.of(attributor.manifest, foreign, rule.sure)
            judge = partial(grouping.write_groups, output, pooling=pooling, pool=pool)
        if manifest is not None and retry is not None:
            return _try_again(output, manifest, retry, to_do, find, judge)
        records = to_do(units=work)
        files = pipeline.parts(records)
        check_ids(output, [file for file in files if file["folder"] in ROWS])
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
        check_ids(output, [file for file in files if file["folder"] in ROWS])
        summary |= counts | _added(summary, _facts(records)) | _with_copies(files, find)
        summary |= _with_groups(files, judge)
        storage.write_json(storage.join(output, SUMMARY), summary)
        body = {"claim": manifest["claim"], "files": files}
        body["retries"] = manifest.get("retries", 0) + 1
        manifest = outputs.publish(output, KIND, manifest["key"], summary | body)
        clean(output, manifest)
    return summary
