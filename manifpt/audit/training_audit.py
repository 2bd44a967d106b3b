"""The audit before a training: whether files reveal the classes of its images.

It is a stage of the training's job, and its output lies in the folder ``audit`` of the attributor.
It judges the properties of a sample's files, one by one. Copies, grey levels and a classifier of
all properties are left to ``audit``, which reads all images.

The sample is read from images, or it was kept beside artifacts when these were computed. It is kept
in the output, too: the images that extend an attributor are compared with those of its training.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from manifpt import outputs, storage
from manifpt.audit import property_report
from manifpt.audit.audit import KIND, REPORT, TEXT
from manifpt.audit.audit_format import AuditManifest, AuditReport, AuditVerdict
from manifpt.audit.sample import (
    KEPT,
    READ,
    keep_sample,
    kept_sample,
    merged,
    sampled_properties,
)
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
# The class, in the audit of an extension, of all images that the attributor was trained on.
EARLIER = "earlier classes"
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

    def after(self, verdict: AuditVerdict | None) -> "Settings":
        """Return the settings of the trainings that follow an audit, which make no other one."""
        return replace(self, known=verdict) if verdict else replace(self, images=0)


USUAL, UNAUDITED = Settings(), Settings(images=0)


class Sampled(NamedTuple):
    """A sample to judge: the hash of all that decides it, its inputs, and its rows when needed.

    ``apart`` are places that the output must be apart from.
    """

    key: str
    inputs: InputsCard
    read: Callable[[], pd.DataFrame]
    apart: Sequence[tuple[str, str]]


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
    Raises FailedAuditError if the verdict is fail, unless ``settings`` accept that; nothing is then
    written.
    """
    if settings.known is not None or not settings.images:
        return settings.known
    selection = Selection(LEARNED_FROM, tuple(sources) or None)
    units = plan(inputs, selection, labelled=True, reading=labels, quiet=True)
    sampled = Sampled(
        _key(content_key(units), settings, sources),
        describe(inputs, units, labels),
        partial(read_sample, units, selection, settings.images, demand),
        input_places(inputs, output),
    )
    return _audited(sampled, output, settings, terms)


def audit_artifacts(
    folder: str,
    manifest: Mapping[str, Any],
    classes: Collection[str],
    output: str,
    settings: Settings = USUAL,
    *,
    terms: claims.Terms = claims.AS_IS,
) -> AuditVerdict | None:
    """Audit the images of artifacts in a folder by the sample kept there; see ``audit_before``.

    ``manifest`` is that of the artifacts. Artifacts of earlier versions have no sample, which a
    line says.
    """
    if settings.known is not None or not settings.images:
        return settings.known
    entry: FileEntry | None = manifest.get("properties")
    if entry is None:
        print_impossible(f"{folder} has no sample of file properties")
        return None

    def rows() -> pd.DataFrame:
        kept = kept_sample(folder, entry)
        kept = kept[kept["source"].isin(list(classes))]
        return kept.groupby("source").head(settings.images).reset_index(drop=True)

    key = _key(entry["sha256"], settings, classes)
    sampled = Sampled(key, manifest["inputs"], rows, [("--input", folder)])
    return _audited(sampled, output, settings, terms)


def audit_extension(
    model: str,
    additions: Sequence[str],
    units: Sequence[Unit],
    output: str,
    settings: Settings = USUAL,
    *,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> AuditVerdict | None:
    """Audit the images that extend an attributor beside the sample of its training.

    The images of the training are one class. ``units`` are those of ``additions``. See
    ``audit_before``; a line says if the folder ``model`` has no sample.
    """
    if not settings.images:
        return None
    folder = storage.join(model, FOLDER)
    manifest: AuditManifest | None = outputs.read(folder)
    files = manifest["files"] if manifest is not None else []
    entry = next((file for file in files if file["path"] == KEPT), None)
    if entry is None:
        print_impossible(f"{model} has no sample of the files of its training")
        return None
    selection = Selection(LEARNED_FROM)
    new = [unit for unit in units if selection.keeps(unit.source, unit.split)]

    def rows() -> pd.DataFrame:
        kept = kept_sample(folder, entry).assign(source=EARLIER)
        more = read_sample(new, selection, settings.images, demand)
        return pd.concat([kept, more], ignore_index=True)

    sampled = Sampled(
        _key([content_key(new), entry["sha256"]], settings, ()),
        describe(additions, new),
        rows,
        input_places(additions, output, "--add"),
    )
    return _audited(sampled, output, settings, terms, "--add")


def _key(content: Any, settings: Settings, sources: Collection[str]) -> str:
    """Return the hash of all that decides an audit."""
    return storage.digest([content, [settings.images, asdict(THRESHOLDS), sorted(sources)]])


def print_impossible(reason: str) -> None:
    """Print one line on why there is no audit."""
    text = f"audit: not possible: {reason}; manifpt audit audits the images themselves"
    print(text, file=sys.stderr, flush=True)


def _audited(
    sampled: Sampled, output: str, settings: Settings, terms: claims.Terms, option: str = "--input"
) -> AuditVerdict | None:
    """Judge a sample, publish the audit in an output, and return its verdict.

    The audit of a finished output stays, unless ``terms`` allow to overwrite the output. An
    unfinished one of other images, from an earlier training, is of no use.
    """
    folder, rows = storage.join(output, FOLDER), None
    made: AuditReport | None = outputs.read(folder)
    if made is None or made.get("key") != sampled.key:
        rows = sampled.read()
        if rows["source"].nunique() < 2:
            return None
        made = _judged(rows)
    found = verdict_of(made)
    if found["verdict"] == "fail" and not settings.accept:
        raise FailedAuditError(
            f"{option}: {found['says']}; manifpt normalize stores all images alike, or "
            "--accept-biased trains on these"
        )
    if rows is not None and (terms.overwrite or outputs.read(output) is None):
        again = claims.Terms(True, terms.take_over)
        with claims.claim(folder, KIND, sampled.key, apart=sampled.apart, terms=again) as claim:
            if claim.finished is None:
                _publish(claim, rows, made, sampled.inputs)
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


def _judged(rows: pd.DataFrame) -> AuditReport:
    """Return the report on the rows of a sample."""
    counts = rows["source"].value_counts()
    about = property_report.properties_by_class(rows)
    return property_report.summary(
        property_report.of_properties(rows, THRESHOLDS, READ),
        images=len(rows),
        sampled=len(rows),
        compared=0,
        classes={name: {"images": int(counts[name]), **about[name]} for name in sorted(about)},
        thresholds=asdict(THRESHOLDS),
    )


def _publish(
    claim: claims.Claim, rows: pd.DataFrame, found: AuditReport, given: InputsCard
) -> None:
    """Write the report and the sample, and publish them."""
    texts = {REPORT: storage.json_bytes(found), TEXT: property_report.markdown(found).encode()}
    claim.check()
    files: list[FileEntry] = [
        {"path": name, **storage.write_bytes(storage.join(claim.folder, name), data)}
        for name, data in texts.items()
    ]
    files.append(keep_sample(claim.folder, rows))
    body: AuditManifest = {**found, "inputs": given, "files": files}
    claim.publish(body)


def verdict_of(manifest: AuditReport) -> AuditVerdict:
    """Return the verdict in an audit's report or manifest, for an attributor's manifest.

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


def _sentence(findings: Sequence[FindingCard], manifest: AuditReport) -> str:
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
