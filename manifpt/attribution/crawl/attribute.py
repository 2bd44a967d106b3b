"""Any images -> the table of attributions: source, probability, decision and nearest real."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from manifpt import outputs, storage
from manifpt.artifacts.projection import Target, projectors_of, run_projection
from manifpt.attribution.crawl import grouping
from manifpt.attribution.crawl.crawl_format import (
    AttributionFacts,
    AttributionsManifest,
    AttributionSummary,
    WholeCounts,
)
from manifpt.attribution.crawl.duplicates import find_duplicates
from manifpt.attribution.crawl.leaks import LEAKS, total_leaks
from manifpt.attribution.crawl.registered import AttributorSource, model_places, opened_model
from manifpt.attribution.crawl.retry import (
    FOLDERS,
    ROWS,
    RetryReader,
    begin,
    check_codes,
    clean,
    merged_output,
    remove_unlisted,
    work_to_retry,
)
from manifpt.attribution.crawl.settings import AttributionSettings
from manifpt.attribution.crawl.verdicts import total_verdicts
from manifpt.attribution.model.targets import manifold_places, trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import DECISIONS
from manifpt.engine import pipeline, pools, shuffle
from manifpt.engine.rollup import rolled
from manifpt.engine.unique import check_ids
from manifpt.engine.work import Work
from manifpt.errors import ManifptError
from manifpt.images import Unit
from manifpt.images.inventory import Inventory
from manifpt.images.places import input_places
from manifpt.images.read import ImageReader, unit_to_json
from manifpt.outputs import claims
from manifpt.outputs.formats import PartEntry
from manifpt.outputs.records import Records
from manifpt.outputs.work_rate import rows_over_time

KIND = "attributions"
SUMMARY = "summary.json"
Files = list[PartEntry]


@dataclass(frozen=True)
class _Steps:
    """The steps of an attribution, with the settings that they share."""

    output: str
    settings: AttributionSettings
    attributor: TrainedAttributor
    source: AttributorSource
    search: pools.SearchDemand
    pool: pools.Pool

    @cached_property
    def targets(self) -> dict[str, Target]:
        """The spaces that images are embedded in, and their manifolds, by name."""
        return trained_targets(self.attributor, self.source.manifolds)

    def of_images(
        self,
        units: Sequence[Unit] | Work,
        read: Callable[..., ImageReader] = ImageReader,
        **options: Any,
    ) -> Records:
        """Attribute images one by one; ``options`` are those of ``run_projection``."""
        placed = projectors_of(self.targets, self.search, self.pool)
        read = partial(
            read, selection=self.settings.selection, metadata=self.settings.reading.columns
        )
        build = partial(self.settings.stage, self.source.attributor, placed.projectors)
        return run_projection("attribute", units, read, build, placed, self.output, **options)

    @property
    def each(self) -> shuffle.Each:
        """The runner of the tasks that come after the pipeline."""
        return shuffle.call_here if self.pool.here else shuffle.OnRay(self.pool.num_cpus)

    def of_the_whole(self, files: Files, generation: str = "") -> WholeCounts:
        """Check the ids of all images; add the tables about all to the files, and count rows."""
        counts: WholeCounts = {}
        output, settings, each = self.output, self.settings, self.each
        check_ids(output, [file for file in files if file["folder"] in ROWS], each)
        if settings.duplicates:
            copies = find_duplicates(output, files, settings.near_distance, each, generation)
            files += copies
            counts["duplicates"] = {
                "exact": sum(file["exact"] for file in copies),
                "near": sum(file["near"] for file in copies),
            }
        if settings.group_by is not None:
            pooling = settings.pooling(self.attributor)
            new_files, counts["groups"] = grouping.write_groups(
                output, files, pooling, each, generation
            )
            files += new_files
        return counts


def attribute(
    inputs: Sequence[str],
    model: str,
    output: str,
    settings: AttributionSettings = AttributionSettings(),
    *,
    manifolds: Sequence[str] = (),
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
    retry: Sequence[str] | None = None,
) -> AttributionSummary:
    """Attribute every image of ``inputs`` and publish the table; return the summary.

    The inputs are listed once. Until the output is finished, every later start uses that list (see
    ``work``). Afterwards an input that has changed counts as other settings.

    ``model`` is an attributor's folder, or MLflow's name of one (see ``registered``); ``manifolds``
    say where its manifolds lie now. ``retry`` tries again only the quarantined rows of a finished
    output with one of these codes, or with any code if none is given.
    """
    started = time.monotonic()
    settings = settings.with_columns()
    check_codes(retry or ())
    output = storage.absolute(output)
    inventory = Inventory(inputs, settings.selection, settings.reading)
    read = [*input_places(inputs, output), *model_places(model, manifolds)]
    with opened_model(model, manifolds) as source:
        attributor = TrainedAttributor.open(source.attributor)
        read += manifold_places(attributor, source.manifolds)
        made_of = [*settings.key(), attributor.manifest["key"]]
        key = storage.digest([inventory.given, *made_of])
        pool = pools.pool(demand, uses_gpu=True)
        before = None if retry is None else _finished(output, key)
        with claims.claim(
            output,
            KIND,
            key,
            apart=read,
            terms=terms,
            published=lambda: storage.digest([inventory.key(), *made_of]),
            again=before is not None,
        ) as claim:
            if claim.finished:
                clean(output, claim.finished)
                return storage.read_json(storage.join(output, SUMMARY))
            steps = _Steps(output, settings, attributor, source.kept(output), demand.search, pool)
            if before is not None:
                return _try_again(claim, _finished(output, key), retry or (), steps)
            work = Work.find(output) or _listed(inventory, claim)
            return _attributed(claim, work, made_of, steps, started)


def _attributed(
    claim: claims.Claim, work: Work, made_of: list[Any], steps: _Steps, started: float
) -> AttributionSummary:
    """Attribute all units and publish the table; return the summary."""
    output, settings, source = claim.folder, steps.settings, steps.source
    records = steps.of_images(work)
    files = rolled(output, records, FOLDERS, steps.each)
    rows = pipeline.totals(records)
    facts, whole = _facts(records), steps.of_the_whole(files)
    inputs: Any = {name: fact for name, fact in work.facts.items() if name != "skipped"}
    seconds = time.monotonic() - started
    summary: AttributionSummary = {
        **rows,
        **facts,
        **whole,
        "seconds": seconds,
        "images_per_second": rows["rows_in"] / seconds,
        **source.facts(),
        "manifolds": [t.manifold.uri for t in steps.targets.values() if t.manifold],
        "inputs": inputs,
        "skipped": work.facts.get("skipped", {}),
    }
    if settings.views:
        summary["ensemble"] = list(map(str, settings.views))
    if settings.group_by:
        summary["group_by"] = settings.group_by
    claim.check()
    storage.write_json(storage.join(output, SUMMARY), summary)
    body: AttributionsManifest = {
        "key": storage.digest([work.facts["content_key"], *made_of]),
        **summary,
        "claim": claim.key,
        "files": files,
        "rows_over_time": rows_over_time(records),
    }
    claim.publish(body)
    if any("units" in file for file in files):
        remove_unlisted(output, files)
    pipeline.clear_records(output, work=False)  # --retry-quarantined reads the units again
    shuffle.clear(output)  # until then they tell ``clean`` that files may be left over
    return summary


def check_any(summary: AttributionSummary, output: str) -> None:
    """Raise if none of the rows of a published output was attributed."""
    if summary["ok"] == 0:
        left = [f"{n} {code}" for code, n in summary["by_error"].items()]
        left += [f"{n} skipped: {why}" for why, n in summary.get("skipped", {}).items()]
        raise ManifptError(
            f"--input: none of {summary['rows_in']} images could be attributed "
            f"({', '.join(left) or 'there is none'}); {output}/quarantine says why"
        )


def _facts(records: Records) -> AttributionFacts:
    """Return the counts in the records of chunks besides rows: leaks, decisions, and verdicts."""
    decisions: Counter[str] = Counter()
    for record in records:
        decisions.update(record["facts"].get("decisions", {}))
    leaks = (record["facts"]["leaks"] for record in records if "leaks" in record["facts"])
    return {
        "leaks": total_leaks(leaks),
        "decisions": {name: decisions[name] for name in DECISIONS},
        **total_verdicts(record["facts"] for record in records),
    }


def _added(facts: AttributionFacts, more: AttributionFacts) -> AttributionFacts:
    """Return the sums of the facts of both."""
    decisions = {name: n + more["decisions"][name] for name, n in facts["decisions"].items()}
    leaks = facts["leaks"].copy()
    for name in LEAKS:
        leaks[name] += more["leaks"][name]
    return {"leaks": leaks, "decisions": decisions, **total_verdicts([facts, more])}


def _listed(inventory: Inventory, claim: claims.Claim) -> Work:
    """List the inputs and store their units; if that fails, the folder is as it was before."""
    with claim.abandoned_if_refused():
        return Work.store(claim.folder, map(unit_to_json, inventory), inventory.describe)


def _finished(output: str, claim: str) -> AttributionsManifest:
    """Return the manifest of a finished output of the same options."""
    manifest: AttributionsManifest = outputs.require(output, KIND, "--output")
    if manifest.get("claim") != claim:
        raise ManifptError(
            f"--output {output}: holds attributions made with other settings; --retry-quarantined "
            "wants the options of the command that made them"
        )
    return manifest


def _try_again(
    claim: claims.Claim, manifest: AttributionsManifest, codes: Sequence[str], steps: _Steps
) -> AttributionSummary:
    """Try the rows quarantined for one of ``codes`` again, and publish the changes."""
    output = claim.folder
    summary: AttributionSummary = storage.read_json(storage.join(output, SUMMARY))
    clean(output, manifest)
    parts = [file for file in manifest["files"] if file["folder"] in FOLDERS]
    tried = work_to_retry(output, parts, codes)
    if tried.files:
        generation = begin(output, manifest, codes)
        read = partial(RetryReader, output=output, codes=codes)
        records = steps.of_images(tried, read, only=tried.files, generation=generation)
        rolled_files = rolled(output, records, FOLDERS, steps.each, generation)
        files, counts = merged_output({**manifest, "files": parts}, tried, records, rolled_files)
        whole = steps.of_the_whole(files, generation)
        # A try that was cut short may have changed the summary, but not the manifest.
        summary = {**summary, **counts, **_added(manifest, _facts(records)), **whole}
        claim.check()
        storage.write_json(storage.join(output, SUMMARY), summary)
        body: AttributionsManifest = {
            **summary,
            "key": manifest["key"],
            "claim": manifest["claim"],
            "files": files,
            "retries": manifest.get("retries", 0) + 1,
            "rows_over_time": manifest.get("rows_over_time"),
        }
        clean(output, claim.publish(body))
    return summary
