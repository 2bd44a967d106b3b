"""New sources for a trained attributor from few images: its trunks stay, its last layers are new.

The input of a last layer are the image's features. Those of the old training images and of the new
ones give the last layer of each head anew (see ``heads``), and the calibration is fitted again on
the validation images of all classes (see ``attributor_calibration``). Manifolds and projections are
those of the old attributor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from manifpt import outputs, storage
from manifpt.artifacts.artifact_stage import EVALUATED
from manifpt.artifacts.artifacts_format import ArtifactsManifest
from manifpt.artifacts.branches import (
    ArtifactBranch,
    artifact_column,
    check_unchanged,
    of_classes,
    open_artifacts,
    read_branches,
)
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.attribution.model.attributor_calibration import calibrate_attributor
from manifpt.attribution.model.attributor_format import (
    AttributorFacts,
    AttributorManifest,
    Extension,
)
from manifpt.attribution.model.heads import FITS, Layer
from manifpt.attribution.model.network import AttributionNetwork
from manifpt.attribution.model.network import outputs as network_outputs
from manifpt.attribution.model.stream import first_of
from manifpt.attribution.model.targets import manifold_places, trained_targets
from manifpt.attribution.model.trained import (
    AttributorParts,
    TrainedAttributor,
    near_training,
    sealed,
    seen_hashes,
    write_files,
)
from manifpt.audit import training_audit
from manifpt.audit.training_audit import worst
from manifpt.engine import pools
from manifpt.errors import ManifptError
from manifpt.images import Selection, plan
from manifpt.images.degraded_copies import Augmentation
from manifpt.images.places import input_places
from manifpt.images.sources import content_key
from manifpt.nets.device import device_and_precision
from manifpt.outputs import claims
from manifpt.storage import tensors

# More training images of a class than this change a last layer little. The limit bounds memory.
MOST_IMAGES = 2000
# Entries of the old manifest that belong to its own training.
DROPPED: tuple[Literal["key", "history", "best_epoch"], ...] = ("key", "history", "best_epoch")


def extended(network: AttributionNetwork, layers: Sequence[Layer]) -> AttributionNetwork:
    """Return the network with other last layers, one a head: weight and bias."""
    state = network.state_dict()
    names = {module: name for name, module in network.named_modules()}
    for top, (weight, bias) in zip(network.last_layers(), layers, strict=True):
        state |= {
            f"{names[top]}.weight": torch.from_numpy(weight).float(),
            f"{names[top]}.bias": torch.from_numpy(bias).float(),
        }
    made = AttributionNetwork(replace(network.design, classes=len(layers[0][1])))
    made.load_state_dict(state)
    return made.eval()


def _training_rows(
    sets: Sequence[Sequence[ArtifactBranch]], classes: list[str]
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Yield the artifacts in each space, and the labels, of the first MOST_IMAGES of each class."""
    room = np.full(len(classes), MOST_IMAGES)
    for branches in sets:
        for path in branches[0].files("train"):
            uris = [storage.join(branch.uri, path) for branch in branches]
            table = of_classes(read_branches(uris, ["id", "source", "artifact"]), classes)
            labels = np.array([classes.index(s) for s in table["source"].to_pylist()], dtype=int)
            kept = first_of(labels, room)
            if len(kept):
                table = table.take(kept)
                yield (
                    [
                        tensors.from_column(table[artifact_column(n)]).reshape(
                            -1, *branch.manifest["shape"]
                        )
                        for n, branch in enumerate(branches)
                    ],
                    labels[kept],
                )


def _refitted(
    old: TrainedAttributor, sets: Sequence[Sequence[ArtifactBranch]], classes: list[str], head: str
) -> AttributionNetwork:
    """Return the network with last layers for ``classes``, in a task."""
    device = device_and_precision()[0]
    network = replace(old, device=device).network()
    parts, labels = [], []
    for artifacts, numbers in _training_rows(sets, classes):
        parts.append(network_outputs(network, artifacts, device).features)
        labels.append(numbers)
    features = [np.concatenate(one) for one in zip(*parts, strict=True)]
    layers = [FITS[head](f, np.concatenate(labels), len(classes)) for f in features]
    return extended(network.cpu(), layers)


def training_sets(attributor: TrainedAttributor) -> list[list[ArtifactBranch]]:
    """Return the artifacts of an attributor's training, and those of its extensions."""
    earlier = attributor.manifest.get("extensions", [])
    found = []
    for uris in (attributor.manifest["artifacts"], *(e["artifacts"] for e in earlier)):
        gone = next((uri for uri in uris if outputs.read(uri) is None), None)
        if gone is not None:
            raise ManifptError(
                f"{attributor.uri}: the artifacts of its training, {gone}, are gone, and "
                "without them its classes can't be fitted again; compute them anew, there"
            )
        found.append(open_artifacts(uris))
    return found


def new_classes(attributor: TrainedAttributor, manifest: ArtifactsManifest) -> list[str]:
    """Return the classes that artifacts add; raise where they can't be trained on."""
    counts = manifest["classes"]
    names = sorted({*counts["train"], *counts["validation"], *counts["test"]})
    if "None" in names:
        raise ManifptError("--add: some images name no source; give NAME=URI")
    known = next((name for name in names if name in attributor.classes), None)
    if known is not None:
        raise ManifptError(f"--add {known}: the attributor has that class; choose another name")
    for name in names:
        for split in ("train", "validation"):
            if not counts[split].get(name):
                raise ManifptError(f"--add {name}: no image for {split}; give it more images")
    return names


def extend_attributor(
    model: str,
    additions: Sequence[str],
    output: str,
    *,
    head: str = "lda",
    recipe: ArtifactRecipe = ArtifactRecipe(),
    audit: training_audit.Settings = training_audit.USUAL,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> AttributorManifest:
    """Publish an attributor that tells further sources apart, too; return its manifest.

    ``additions`` are ``NAME=URI`` of images. Their artifacts, made as those of the attributor's
    training were, stay in ``output``/artifacts: by content, a tenth of them is for validation, a
    fifth is kept for evaluation, and the rest is trained on. ``head`` is one of ``heads.FITS``.
    ``recipe`` says where the attributor's ``manifolds`` lie now, and how additions are split and
    labelled; spaces, projections and degraded copies are those of the training. The files of
    additions are audited first, see ``audit_extension``.
    """
    output = storage.absolute(output)
    old = TrainedAttributor.open(model)
    targets = trained_targets(old, recipe.manifolds)
    sets = training_sets(old)
    units = plan(additions, Selection(EVALUATED), labelled=True, reading=recipe.labels)
    by = [recipe.split_by] if recipe.split_by else []
    key = storage.digest([old.manifest["key"], content_key(units), head, *by])
    read = [("the attributor", old.uri), *(("--manifold", uri) for uri in recipe.manifolds)]
    read += [*input_places(additions, output, "--add"), *manifold_places(old, recipe.manifolds)]
    read += [("the artifacts in", branch.uri) for branches in sets for branch in branches]
    claims.check_place(output, "attributor", read, terms)
    verdict = training_audit.audit_extension(
        old.uri, additions, units, output, audit, demand=demand, terms=terms
    )
    keep = ("audit",) if verdict else ()
    with claims.claim(output, "attributor", key, apart=read, terms=terms, keep=keep) as claim:
        if claim.finished:
            return claim.finished
        place, augment = storage.join(output, "artifacts"), old.manifest.get("augmentation")
        made_as = ArtifactRecipe(
            augmentation=Augmentation.from_card(augment) if augment else None,
            split_by=recipe.split_by,
            labels=recipe.labels,
        )
        compute_artifacts(additions, place, made_as, targets=targets, demand=demand)
        new = open_artifacts([place])
        with claim.abandoned_if_refused():
            classes = [*old.classes, *new_classes(old, new[0].manifest)]
        build = partial(_refitted, old, [*sets, new], classes, head)
        made, fit_facts = calibrate_attributor(build, sets[0], classes, demand, [*sets[1:], new])
        check_unchanged([branch for branches in (*sets, new) for branch in branches])
        facts: AttributorFacts = {**fit_facts, "head": head}
        audits = worst([{"audit": verdict}, old.manifest])
        if audits:
            facts["audit"] = audits["audit"]
        return _publish(claim, old, new, made, facts)


def _publish(
    claim: claims.Claim,
    old: TrainedAttributor,
    new: Sequence[ArtifactBranch],
    made: AttributorParts,
    facts: AttributorFacts,
) -> AttributorManifest:
    """Write the extended attributor's files and its manifest; return it."""
    counts = new[0].manifest["classes"]
    extension: Extension = {
        "model": old.uri,
        "key": old.manifest["key"],
        "inputs": new[0].manifest["inputs"],
        "artifacts": [branch.uri for branch in new],
        "classes": made.classes[len(old.classes) :],
    }
    if "split_by" in new[0].manifest:
        extension["split_by"] = new[0].manifest["split_by"]
    # New validation images are compared with new training images: the old table has no splits.
    seen = pa.concat_tables(
        [old.seen_table(), seen_hashes(new[0], made.classes)], promote_options="default"
    )
    body: AttributorManifest = {
        **old.manifest,
        **facts,
        "design": made.design.card(),
        "network": made.design.describe([branch["name"] for branch in old.branches]),
        "classes": made.classes,
        "weights": made.weights["weights"].tolist(),
        "rows": {split: n | counts[split] for split, n in old.manifest["rows"].items()},
        "extensions": [*old.manifest.get("extensions", []), extension],
        "near_training": near_training(seen),
        "files": write_files(claim, made, seen),
    }
    for name in DROPPED:
        body.pop(name, None)
    return claim.publish(sealed(body))
