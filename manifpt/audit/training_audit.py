"""The audit before a training: whether files reveal the classes of its images.

It is a stage of the training's job, and its output lies in the folder ``audit`` of the attributor.
It judges the properties of a sample's files, one by one. Copies, grey levels and a classifier of
all properties are left to ``audit``, which reads all images.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from manifpt import outputs, storage
from manifpt.audit import property_report
from manifpt.audit.audit import KIND, REPORT, TEXT
from manifpt.audit.audit_format import AuditManifest, AuditVerdict
from manifpt.audit.sample import READ, merged, sampled_properties
from manifpt.audit.verdict import ORDER, FindingCard, Thresholds
from manifpt.engine import pools, session
from manifpt.engine.tasks import results, task
from manifpt.errors import FailedAuditError
from manifpt.images import Selection, Unit, plan
from manifpt.images.places import input_places
from manifpt.images.read import unit_to_json
from manifpt.images.sources import AS_FOUND, InputsCard, Reading, content_key, describe
from manifpt.outputs import claims
from manifpt.outputs.formats import FileEntry

FOLDER = "audit"
IMAGES = 300
# The size of a file depends on the picture, and no share of it reaches 2: it warns alone.
THRESHOLDS = Thresholds(content_fail=2.0)
LEARNED_FROM = ("train", "validation")
TRAINED = "trained on images that failed the audit"
SHOWN = 4  # classes, and properties, that a line names


@dataclass(frozen=True)
class Settings:
    """The settings of the audit before a training.

    ``images`` is the number of images of each class, 0 for no audit. With ``accept`` the training
    goes on although the audit fails. ``known`` is the verdict of an audit that was made earlier in
    the job.
    """

    images: int = IMAGES
    accept: bool = False
    known: AuditVerdict | None = None


USUAL = Settings()


def audit_before(
    inputs: Sequence[str],
    output: str,
    settings: Settings = USUAL,
    *,
    sources: Sequence[str] = (),
    labels: Reading = AS_FOUND,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> AuditVerdict | None:
    """Audit a training's images; return the verdict for the attributor's manifest, and print it.

    ``output`` is that of the training. None is returned where nothing is audited: by ``settings``,
    or because images of fewer than two classes could be read.
    Raises FailedAuditError if the verdict is fail, unless ``settings`` accept that.
    """
    if settings.known is not None or not settings.images:
        return settings.known
    selection = Selection(LEARNED_FROM, tuple(sources) or None)
    units = plan(inputs, selection, labelled=True, reading=labels, quiet=True)
    folder = storage.join(output, FOLDER)
    how = [settings.images, asdict(THRESHOLDS), sorted(sources)]
    key = storage.digest([content_key(units), how])
    read, unfinished = input_places(inputs, output), outputs.read(output) is None
    # An unfinished audit of other images, from an earlier training, is of no use.
    terms = claims.Terms(terms.overwrite or unfinished, terms.take_over)
    with claims.claim(folder, KIND, key, apart=read, terms=terms) as claim:
        manifest = claim.finished
        if manifest is None:
            rows = read_sample(units, selection, settings.images, demand)
            if rows["source"].nunique() < 2:
                claim.abandon()
                storage.remove_empty(output)
                return None
            manifest = _publish(claim, rows, describe(inputs, units, labels))
    found = verdict_of(manifest)
    if found["verdict"] == "fail" and not settings.accept:
        raise FailedAuditError(
            f"--input: {found['says']}; manifpt normalize stores all images alike, or "
            "--accept-biased trains on these"
        )
    also = ": --accept-biased trains on them" if found["verdict"] == "fail" else ""
    print(f"audit: {found['verdict']}: {found['says']}{also}", file=sys.stderr, flush=True)
    return found


def read_sample(
    units: Sequence[Unit], selection: Selection, images: int, demand: pools.Demand
) -> pd.DataFrame:
    """Return the properties of at most ``images`` images of each source, a row an image.

    A task reads the units of each source.
    """
    pool = pools.pool(pools.Demand(1, 0, here=demand.here), uses_gpu=False)
    pool.wait()
    by_source: dict[str | None, list[str]] = {}
    for unit in units:
        by_source.setdefault(unit.source, []).append(unit_to_json(unit))
    how = {"scheduling_strategy": "DEFAULT"}
    asked = [
        task(pool, sampled_properties, texts, selection, images, **how)
        for texts in by_source.values()
    ]
    if pool.here:
        return merged(results(pool, asked), images)
    with session.lost():
        return merged(results(pool, asked), images)


def _publish(claim: claims.Claim, rows: pd.DataFrame, given: InputsCard) -> AuditManifest:
    """Judge the sample, write the report, and return the manifest."""
    counts = rows["source"].value_counts()
    about = property_report.properties_by_class(rows)
    found = property_report.summary(
        property_report.of_properties(rows, THRESHOLDS, READ),
        images=len(rows),
        sampled=len(rows),
        compared=0,
        classes={name: {"images": int(counts[name]), **about[name]} for name in sorted(about)},
        thresholds=asdict(THRESHOLDS),
    )
    texts = {REPORT: storage.json_bytes(found), TEXT: property_report.markdown(found).encode()}
    claim.check()
    files: list[FileEntry] = [
        {"path": name, **storage.write_bytes(storage.join(claim.folder, name), data)}
        for name, data in texts.items()
    ]
    body: AuditManifest = {**found, "inputs": given, "files": files}
    return claim.publish(body)


def verdict_of(manifest: AuditManifest) -> AuditVerdict:
    """Return the verdict in an audit's manifest, for an attributor's manifest.

    ``says`` is the verdict as a sentence. ``findings`` are the properties that do not pass, the
    worst first. ``note`` is TRAINED where the verdict is fail.
    """
    findings = [one for one in manifest["findings"] if one["verdict"] != "pass"]
    findings.sort(key=lambda one: (-ORDER.index(one["verdict"]), -round(one["share"], 2)))
    kept: AuditVerdict = {
        "verdict": manifest["verdict"],
        "images": manifest["sampled"],
        "says": _sentence(findings, manifest),
        "findings": [
            {"name": one["name"], "share": one["share"], "verdict": one["verdict"]}
            for one in findings
        ],
    }
    if manifest["verdict"] == "fail":
        kept["note"] = TRAINED
    return kept


def _sentence(findings: Sequence[FindingCard], manifest: AuditManifest) -> str:
    classes = manifest["classes"]
    of = f"in a sample of {manifest['sampled']} images of {len(classes)} classes"
    if not findings:
        return f"no file property reveals the class, {of}"
    first, *rest = [one["name"] for one in findings if one["verdict"] == manifest["verdict"]]
    values = [f"{name} {_value(facts[first])}" for name, facts in classes.items()]
    shown = ", ".join(values[:SHOWN]) + (", ..." if len(values) > SHOWN else "")
    also = f", and so {'do' if len(rest) > 1 else 'does'} {', '.join(rest[:SHOWN])}" if rest else ""
    return f"the file property {first} reveals the class ({shown}){also}, {of}"


def _value(facts: Mapping[str, Any]) -> str:
    """Return the commonest value of a property in a class, or the median of a number."""
    if "median" in facts:
        return f"{facts['median']:g}"
    value, share = next(iter(facts.items()))
    return value[:30] if share == 1 else f"{value[:30]} in {share:.0%}"


def worst(manifests: Sequence[Mapping[str, Any]]) -> dict[str, AuditVerdict]:
    """Return the worst verdict in manifests of attributors, as a fact; empty if they have none."""
    found = [manifest["audit"] for manifest in manifests if manifest.get("audit")]
    if not found:
        return {}
    return {"audit": max(found, key=lambda audit: ORDER.index(audit["verdict"]))}
