"""The provenance of a page's results: outputs, hashes, versions, and the audit."""

import csv
import io
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from manifpt import outputs, storage
from manifpt.attribution.crawl.registered import ATTRIBUTOR, KEPT
from manifpt.attribution.model.attributor_format import AttributorManifest
from manifpt.audit.audit_format import AuditManifest, FindingSummary
from manifpt.errors import ManifptError, public
from manifpt.evaluation.design_choices import RECIPES

Facts = list[tuple[str, str]]


class Part(NamedTuple):
    """An output that results come from: its title, and its facts by name."""

    title: str
    facts: Facts


class FoundAttributor(NamedTuple):
    """The attributor that an output was made with: its folder and its manifest."""

    uri: str
    manifest: AttributorManifest


class Designs(NamedTuple):
    """Rows of a benchmark's recipes by generator, and the columns in which they differ."""

    rows: dict[str, dict[str, str]]
    columns: list[str]


class ShownAudit(NamedTuple):
    """The verdict of an audit and its findings.

    An audit that the user names has a ``place``. The one before a training has its verdict as a
    sentence, ``says``, and a ``note`` if the training was made in spite of it.
    """

    verdict: str
    findings: list[FindingSummary]
    place: str = ""
    says: str = ""
    note: str = ""


def shown_inputs(described: Mapping[str, Any]) -> Facts:
    """Return the facts in a manifest's description of its inputs."""
    given = [public(text) for text in described.get("given", ())]
    facts = [("inputs", "\n".join(given[:20]) + ("\n..." if len(given) > 20 else ""))]
    facts += [(n, f"{described[n]:,}") for n in ("units", "bytes") if n in described]
    facts.append(("content", str(described.get("content_key", ""))))
    return [(name, text) for name, text in facts if text]


def output_part(title: str, uri: str, manifest: Mapping[str, Any]) -> Part:
    """Return the place, time, versions and hashes of an output."""
    facts = [
        ("place", public(uri)),
        ("made", str(manifest.get("written", ""))),
        ("manifpt", str(manifest.get("manifpt", ""))),
        ("commit", str(manifest.get("commit", ""))),
        ("versions", versions_text(manifest.get("versions", {}))),
        ("key", str(manifest.get("key", ""))),
        ("content", str(manifest.get("content_sha256", ""))),
    ]
    described = manifest.get("inputs")
    if isinstance(described, dict):
        facts += shown_inputs(described)
    return Part(title, [(name, text) for name, text in facts if text])


def versions_text(found: Mapping[str, str]) -> str:
    """Return the versions of packages as text."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def model_parts(uri: str, manifest: Mapping[str, Any]) -> list[Part]:
    """Return the facts of an attributor, and of the manifolds that it was trained with."""
    part = output_part("Attributor", uri, manifest)
    files = manifest.get("files", {})
    facts = [
        ("classes", ", ".join(manifest["classes"])),
        ("heads", ", ".join(manifest.get("heads", ()))),
        ("training images", _rows(manifest.get("rows", {}))),
        ("audit of these", _audited(manifest.get("audit") or {})),
        ("weights", files.get("weights.pt", {}).get("sha256", "")),
    ]
    found = [Part(part.title, part.facts + [(name, text) for name, text in facts if text])]
    for branch in manifest["branches"]:
        if branch["manifold"]:
            card = [f"{name} {value}" for name, value in (branch["projection"] or {}).items()]
            facts = [
                ("place", public(branch["manifold"])),
                ("content", str(branch["manifold_sha256"])),
                ("projection", ", ".join(card)),
            ]
            found.append(Part(f"Manifold in the space {branch['name']}", facts))
    return found


def _rows(rows: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(f"{split} {sum(counts.values()):,}" for split, counts in rows.items())


def _audited(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    note = f"; {found['note']}" if "note" in found else ""
    return f"{found['verdict']}: {found['says']}{note}"


def designs_of(described: Mapping[str, Any], sources: Collection[str]) -> Designs:
    """Return the choices in which a benchmark's generators differ; empty without a benchmark.

    ``described`` are the inputs of artifacts. ``rows`` are by name of the generator.
    """
    rows: list[dict[str, str]] = []
    for text in described.get("given", ()):
        uri = storage.join(text.rpartition("=")[2], RECIPES)
        try:
            data = storage.read_bytes(uri).decode() if storage.exists(uri) else ""
        except (ManifptError, OSError, ValueError):
            continue
        rows += [row for row in csv.DictReader(io.StringIO(data)) if row.get("name") in sources]
    names = [name for name in (rows[0] if rows else ()) if name not in ("name", "seed", None)]
    varied = [name for name in names if len({row.get(name) for row in rows}) > 1]
    return Designs({row["name"]: row for row in rows}, varied)


def audit_of(uri: str | None, model: FoundAttributor | None = None) -> ShownAudit | None:
    """Return the verdict of an audit and its findings.

    If no audit is named, it is the one before the training of ``model``; None if there was none.
    """
    if uri is None:
        found = model.manifest.get("audit") if model else None
        if not found:
            return None
        texts = {"says": found["says"], "note": found.get("note", "")}
        return ShownAudit(found["verdict"], found["findings"], **texts)
    manifest: AuditManifest | None = outputs.read(storage.absolute(uri))
    if manifest is None or manifest["kind"] != "audit":
        raise ManifptError(f"--audit {uri}: no finished audit there; run manifpt audit first")
    findings: list[FindingSummary] = [
        {"name": one["name"], "share": one["share"], "verdict": one["verdict"]}
        for one in manifest["findings"]
    ]
    order = {"fail": 0, "warn": 1, "pass": 2}
    findings.sort(key=lambda one: order.get(one["verdict"], 3))
    return ShownAudit(manifest["verdict"], findings, public(uri))


def readable(uri: str, kind: str) -> Any:
    """Return the manifest of an output of a kind; None if it is gone, or cannot be read.

    The caller declares its type.
    """
    try:
        manifest = outputs.read(storage.absolute(uri))
    except (ManifptError, OSError):
        return None
    return manifest if manifest is not None and manifest["kind"] == kind else None


def attributor_of(
    output: str, facts: Mapping[str, Any], given: str | None
) -> FoundAttributor | None:
    """Find the attributor that an output was made with.

    ``facts`` are those of the output; an attributor from MLflow's registry was copied into the
    output. ``given`` is its present place. The result is None if it is gone.
    """
    uri = given or facts["model"]
    if given is None and facts.get("registered"):
        copied = storage.join(output, KEPT, storage.digest(facts["registered"])[:12])
        uri = storage.join(copied, ATTRIBUTOR)
    manifest = readable(uri, "attributor")
    return None if manifest is None else FoundAttributor(storage.absolute(uri), manifest)
