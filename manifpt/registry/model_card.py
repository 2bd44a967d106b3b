"""A model card in Markdown: the data of an attributor, its metrics, and its limits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifpt import storage
from manifpt.attribution.model.attributor_format import AttributorManifest
from manifpt.attribution.unknown.decision import USUAL
from manifpt.errors import ManifptError, public
from manifpt.evaluation.closed_set import closed_set_metrics
from manifpt.evaluation.evaluation_format import EvaluationMetrics
from manifpt.images.sources import CARD, Input
from manifpt.manifold import StoredManifold

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Facts:
    """The facts for a card; ``manifolds`` are in the order of the branches that have one.

    ``metrics`` are those of an evaluation, None if none was given; ``included`` tells whether the
    model holds its manifolds.
    """

    manifest: AttributorManifest
    manifolds: Sequence[StoredManifold]
    metrics: EvaluationMetrics | None
    included: bool
    commit: str


def licence_of(given: str) -> str:
    """Return the licence that the card of an input benchmark names."""
    uri = storage.join(Input.parse(given).uri, CARD)
    try:
        card = storage.read_json(uri) if storage.exists(uri) else {}
    except ManifptError:
        card = {}
    return str(card.get("licence") or NOT_STATED)


def card(facts: Facts) -> str:
    """Return the whole card."""
    manifest = facts.manifest
    parts = [
        f"# Attributor of {len(manifest['classes'])} sources\n\n{_purpose(manifest)}",
        f"## Data\n\n{_data(facts)}",
        f"## Audit of the training images\n\n{audited(manifest)}",
        f"## Metrics\n\n{_metrics(facts)}",
        f"## Limits\n\n{_limits(facts)}",
        f"## Licence\n\n{_licences(facts)}",
        f"## Manifold\n\n{_manifolds(facts)}",
        f"## Network\n\n{manifest['network']}.",
        f"## Spaces\n\n```json\n{_spaces(manifest)}\n```",
        f"## Origin\n\n{_origin(facts)}",
    ]
    return "\n\n".join(parts) + "\n"


def description(facts: Facts) -> str:
    """Return the card in short, for the registered version: MLflow takes 5,000 characters."""
    parts = [
        _purpose(facts.manifest),
        f"Audit of the training images: {audited(facts.manifest)}",
        _metrics(facts),
        f"Manifold: {_manifolds(facts)}",
        f"{_unknown(facts.manifest)} The whole card is in the model, artifacts/model_card.md.",
    ]
    return "\n\n".join(parts)[:5000]


def _purpose(manifest: AttributorManifest) -> str:
    return (
        f"Says which of {', '.join(manifest['classes'])} an image comes from, how surely, and "
        "which real image is nearest, by the image's deviation from the manifold of reals."
    )


def _data(facts: Facts) -> str:
    """Return the inputs, and a line of images per split for each source."""
    given = [public(g) for g in (facts.manifest.get("inputs") or {}).get("given", [])]
    rows = facts.manifest["rows"]
    measured = facts.metrics["per_class"] if facts.metrics else {}
    lines = [
        f"Inputs: {', '.join(given) or 'not recorded'}.",
        "",
        "| source | train | validation | test |",
        "|---|---|---|---|",
    ]
    for name in facts.manifest["classes"]:
        counts = [rows[split].get(name, 0) for split in ("train", "validation")]
        test = measured[name]["images"] if name in measured else "-"
        lines.append(f"| {name} | {counts[0]} | {counts[1]} | {test} |")
    return "\n".join([*lines, "", "Test images are those of the evaluation below."])


def audited(manifest: AttributorManifest) -> str:
    """Return a line on whether the files of the training images reveal their classes."""
    found = manifest.get("audit")
    if not found:
        return "none by the training; `manifpt audit` audits images."
    note = f" This attributor was {found['note']}." if "note" in found else ""
    return f"{found['verdict']}: {found['says']}.{note}"


def _metrics(facts: Facts) -> str:
    """Return the metrics of the evaluation, else the accuracy on validation."""
    metrics = facts.metrics
    if metrics is None:
        return (
            f"Validation accuracy {facts.manifest['validation_accuracy']:.3f}, on the images that "
            "chose the epoch or the weights. No evaluation on unseen images was given: register "
            "again with --evaluation."
        )
    again: Mapping[str, Any] = closed_set_metrics(
        np.array(metrics["confusion"]), metrics["classes"]
    )
    lines = [
        f"On {again['images']} unseen images; 95 % intervals by bootstrap over images.",
        "",
        "| metric | value | 95 % interval |",
        "|---|---|---|",
        *(
            f"| {name.replace('_', ' ')} | {again[name]:.3f} | "
            f"{again[f'{name}_low']:.3f} to {again[f'{name}_high']:.3f} |"
            for name in ("accuracy", "balanced_accuracy", "macro_f1")
        ),
        f"| chance (the largest class) | {again['chance']:.3f} | - |",
        "",
        "| source | images | recall | precision |",
        "|---|---|---|---|",
    ]
    for name, row in again["per_class"].items():
        found = "-" if row["recall"] is None else f"{row['recall']:.3f}"
        lines.append(f"| {name} | {row['images']} | {found} | {row['precision']:.3f} |")
    return "\n".join([*lines, "", *_confidence(metrics)])


def _confidence(metrics: EvaluationMetrics) -> list[str]:
    """Return the metrics of probabilities and of unknown generators."""
    lines = []
    if "calibration" in metrics:
        error, brier = (
            [f"{metrics['calibration'][when][name]:.3f}" for when in ("before", "after")]
            for name in ("expected_calibration_error", "brier_score")
        )
        lines.append(
            f"Calibration: expected calibration error {error[1]} (before {error[0]}), Brier score "
            f"{brier[1]} (before {brier[0]})."
        )
    shares = metrics.get("false_rejection_by_class")
    if shares:
        most = max(shares, key=lambda name: shares[name])
        lines.append(
            f"Of images of known sources, those of {most} are called unknown most often: "
            f"{shares[most]:.3f}."
        )
    near = metrics.get("near_training")
    if near and near["images"]:
        verb = "counted" if near["counted"] else "left out"
        lines.append(
            f"{near['images']} images that look like one of training are {verb}; with them the "
            f"accuracy is {near['accuracy_with']:.3f}."
        )
    if "open_set" in metrics:
        found = metrics["open_set"]
        lines += [
            "",
            f"Unknown generators ({', '.join(found['sources'])}; {found['unknown_images']} images):"
            f" AUROC {found['auroc']:.3f} ({found['auroc_low']:.3f} to {found['auroc_high']:.3f}), "
            f"FPR at 95 % TPR {found['fpr_at_95_tpr']:.3f}, OSCR {found['oscr']:.3f}; called "
            f"unknown: {found['unknown_found']:.3f} of them, and {found['false_rejection']:.3f} of "
            f"images of known sources, where {found['rule']['false_rejection']:g} was allowed.",
        ]
    return lines


def _unknown(manifest: AttributorManifest) -> str:
    """Describe the answer for an image of a generator that is not listed."""
    if not manifest.get("open_set"):
        return "Closed set: an image of any other generator gets one of these names, too."
    return (
        "An image of another generator gets one of these names, too, unless `decision` is "
        f"`unknown`: it is where at most a share of {USUAL.false_rejection:g} of images of the "
        "listed sources is as strange (`unknown_p`; another share may be chosen). Near relatives "
        "of a listed generator are seldom found."
    )


def _seen(size: int, tiles: int) -> str:
    """Describe the part of an image that the network sees."""
    if tiles:
        return (
            f"Of an image larger than {size} x {size} pixels, at most {tiles} tiles of that size "
            "are seen, and the rest is not; a smaller image is resized to one."
        )
    return (
        f"Images are resized to {size} x {size} pixels, whatever their own size; traces "
        "finer than that are lost."
    )


def _limits(facts: Facts) -> str:
    decode = facts.manifest["branches"][0]["decode"]
    unseen = "" if facts.metrics else " It was not tested on unseen images at all."
    return "\n".join(
        [
            f"- {_unknown(facts.manifest)} `decision` is `unsure` below a probability of "
            f"{USUAL.sure:g}; that does not find unknown generators.",
            f"- {_seen(decode['size'], decode.get('tiles', 0))}",
            "- Not tested: reals of another subject or camera than the inputs, other versions or "
            "settings of the generators, images that were compressed again, cropped, resized, "
            f"edited or made to deceive.{unseen}",
            "- A probability is the network's, not a proof; it is no ground for judging a person.",
        ]
    )


def _licences(facts: Facts) -> str:
    given = (facts.manifest.get("inputs") or {}).get("given", [])
    for manifold in facts.manifolds:
        given = [*given, *manifold.manifest["inputs"]["given"]]
    lines = [f"- {public(uri)}: {licence_of(uri)}" for uri in dict.fromkeys(given)]
    return "\n".join(["Code: Apache-2.0. Images:", "", *(lines or [f"- {NOT_STATED}"])])


def _manifolds(facts: Facts) -> str:
    """Return a line a manifold: its present or former place, its hash, and its number of reals."""
    if not facts.manifolds:
        return "none: the network sees the images themselves."
    where = "in the model, copied from" if facts.included else "not in the model, needed at"
    return "\n".join(
        f"- {m.manifest['space']['name']}, {m.manifest['reals']} reals, {where} "
        f"{public(m.uri)}, sha256 {m.sha256}"
        for m in facts.manifolds
    )


def _spaces(manifest: AttributorManifest) -> str:
    cards = {branch["name"]: branch["space"] for branch in manifest["branches"]}
    return json.dumps(cards, indent=1, sort_keys=True)


def _origin(facts: Facts) -> str:
    manifest = facts.manifest
    commit = f" (commit {manifest['commit']})" if "commit" in manifest else ""
    return (
        f"Attributor {manifest['key']}, written {manifest['written']} by manifpt "
        f"{manifest['manifpt']}{commit}; registered from commit {facts.commit}."
    )
