"""New sources for a trained attributor from few images: its trunks stay, its last layers are new.

What a network makes of an image before a last layer are the image's features. Those of the old
training images and of the new ones give the last layer of each head anew (see ``heads``), and the
heads are weighed again on validation. Manifolds and projections are those of the old attributor.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from manifpt import outputs, session, storage, tensors
from manifpt.artifacts import EVALUATED, compute_artifacts
from manifpt.attribution.attribute import trained_targets
from manifpt.attribution.attributor import (
    SEEN,
    WEIGHTS,
    Attributor,
    described,
    seen_by,
    state_bytes,
)
from manifpt.attribution.fusion import fit_weights
from manifpt.attribution.heads import FITS
from manifpt.attribution.network import AttributionNetwork, Design, logits
from manifpt.backbone import last_layer
from manifpt.branches import Branch, artifact_column, open_artifacts, read_branches
from manifpt.device import device_and_precision
from manifpt.errors import ManifptError
from manifpt.images import Selection, plan
from manifpt.images.sources import content_key

# Of a class, more training images than this change a last layer little; it bounds the memory.
MOST_IMAGES = 2000
# What of a manifest is of the attributor itself and not of its training.
RENEWED = ("kind", "key", "written", "manifpt", "files", "history", "best_epoch")


@dataclass(frozen=True)
class _Refit:
    """Artifacts -> new last layers, in one process. ``sets`` are artifacts, each in all spaces."""

    attributor: Attributor
    sets: Sequence[Sequence[Branch]]
    classes: list[str]
    head: str
    threads: int

    def __call__(self) -> tuple[dict[str, Tensor], float, float]:
        """Return the weights of all, and the accuracy and loss on validation."""
        torch.set_num_threads(self.threads)
        device = device_and_precision()[0]
        old = replace(self.attributor, device=device).network
        features, labels = self._features(old, device)
        layers = [FITS[self.head](f, labels, len(self.classes)) for f in features]
        network = extended(old, layers, Design.from_card(self.attributor.manifest["design"]))
        network = network.eval().to(device)
        heads, right = self._validation(network, device)
        network.weights.copy_(fit_weights(heads, right))
        fused = network.fuse(heads)
        accuracy = float((fused.argmax(1) == right).float().mean())
        loss = float(torch.nn.functional.nll_loss(fused, right))
        return {k: v.cpu() for k, v in network.state_dict().items()}, accuracy, loss

    def _rows(self, split: str) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Yield the artifacts of each space, and the labels, file by file."""
        shapes = Design.from_card(self.attributor.manifest["design"]).shapes
        for branches in self.sets:
            for path in branches[0].files(split):
                uris = [storage.join(branch.uri, path) for branch in branches]
                table = read_branches(uris, ["id", "source", "artifact"])
                columns = [table[artifact_column(n)] for n in range(len(branches))]
                labels = [self.classes.index(source) for source in table["source"].to_pylist()]
                yield (
                    [
                        tensors.from_column(column).reshape(-1, *shape)
                        for column, shape in zip(columns, shapes, strict=True)
                    ],
                    np.array(labels, dtype=np.int64),
                )

    def _features(
        self, network: AttributionNetwork, device: str
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the features of each head, N x d, of the first MOST_IMAGES of each class."""
        room = Counter(dict.fromkeys(range(len(self.classes)), MOST_IMAGES))
        parts, labels = [], []
        for artifacts, found in self._rows("train"):
            kept = []
            for row, label in enumerate(found.tolist()):
                if room[label] > 0:
                    room[label] -= 1
                    kept.append(row)
            if kept:
                parts.append(features_of(network, [a[kept] for a in artifacts], device))
                labels.append(found[kept])
        features = [np.concatenate(head) for head in zip(*parts, strict=True)]
        return features, np.concatenate(labels)

    def _validation(self, network: AttributionNetwork, device: str) -> tuple[Tensor, Tensor]:
        """Return the logits of all validation images, N x heads x classes, and their labels."""
        found, labels = [], []
        for artifacts, right in self._rows("validation"):
            found.append(logits(network, artifacts, device))
            labels.append(right)
        return torch.from_numpy(np.concatenate(found)), torch.from_numpy(np.concatenate(labels))


def last_layers(network: AttributionNetwork) -> dict[str, nn.Linear]:
    """Return the last layer of each head by its name in the network."""
    if network.together is not None:
        tops = [last_layer(network.together)[1]]
    else:
        tops = [last_layer(branch)[1] for branch in network.branches]
    names = {module: name for name, module in network.named_modules()}
    return {names[top]: top for top in tops}


def features_of(
    network: AttributionNetwork, artifacts: Sequence[np.ndarray], device: str
) -> list[np.ndarray]:
    """Return what goes into the last layer of each head, N x d float32."""
    layers = list(last_layers(network).values())
    found: list[list[np.ndarray]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, into=into: into.append(given[0].float().cpu().numpy())
        )
        for layer, into in zip(layers, found, strict=True)
    ]
    try:
        logits(network, artifacts, device)
    finally:
        for hook in hooks:
            hook.remove()
    return [np.concatenate(parts) for parts in found]


def extended(
    network: AttributionNetwork, layers: Sequence[tuple[np.ndarray, np.ndarray]], design: Design
) -> AttributionNetwork:
    """Return the network with other last layers, one a head: weight and bias."""
    state = network.state_dict()
    for name, (weight, bias) in zip(last_layers(network), layers, strict=True):
        state |= {
            f"{name}.weight": torch.from_numpy(weight).float(),
            f"{name}.bias": torch.from_numpy(bias).float(),
        }
    made = AttributionNetwork(replace(design, classes=len(layers[0][1])))
    made.load_state_dict(state)
    return made


def training_sets(attributor: Attributor) -> list[list[Branch]]:
    """Return the artifacts of an attributor's training, and those of what it was extended by."""
    earlier = attributor.manifest.get("extensions", [])
    found = []
    for uris in (attributor.manifest["artifacts"], *(e["artifacts"] for e in earlier)):
        gone = next((uri for uri in uris if outputs.read(uri) is None), None)
        if gone is not None:
            raise ManifptError(
                f"--extend {attributor.uri}: the artifacts of its training, {gone}, are gone, and "
                "without them its classes can't be fitted again; compute them anew, there"
            )
        found.append(open_artifacts(uris))
    return found


def new_classes(attributor: Attributor, manifest: dict[str, Any]) -> list[str]:
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
    head: str = "linear",
    manifolds: Sequence[str] = (),
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish an attributor that tells further sources apart, too; return its manifest.

    ``additions`` are ``NAME=URI`` of images. Their artifacts, made as those of the attributor's
    training were, stay in ``output``/artifacts: by content, a tenth of them is for validation, a
    fifth is kept for evaluation, and the rest is trained on. ``head`` is one of ``heads.FITS``.
    """
    import ray

    output = storage.absolute(output)
    old = Attributor.open(model)
    targets = trained_targets(old, manifolds)
    sets = training_sets(old)
    units = plan(additions, Selection(EVALUATED), labelled=True)
    key = storage.digest([old.manifest["key"], content_key(units), head])
    pool = session.pool(demand, uses_gpu=True)
    finished = outputs.begin(output, "attributor", key, overwrite=overwrite)
    if finished:
        return finished
    made = storage.join(output, "artifacts")
    compute_artifacts(additions, made, targets=targets, demand=demand)
    branches = open_artifacts([made])
    try:
        added = new_classes(old, branches[0].manifest)
    except ManifptError:
        outputs.abandon(output)
        raise
    classes = [*old.classes, *added]
    refit = _Refit(old, [*sets, branches], classes, head, pool.threads)
    task = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(_Refit.__call__)
    weights, accuracy, loss = ray.get(task.remote(refit))
    facts = {"head": head, "validation_accuracy": accuracy, "validation_loss": loss}
    return _publish(output, key, old, branches, classes, weights, facts)


def _publish(
    output: str,
    key: str,
    old: Attributor,
    branches: Sequence[Branch],
    classes: list[str],
    weights: dict[str, Tensor],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write the extended attributor's files and its manifest; return it."""
    design = replace(Design.from_card(old.manifest["design"]), classes=len(classes))
    counts = branches[0].manifest["classes"]
    extension = {
        "model": old.uri,
        "key": old.manifest["key"],
        "inputs": branches[0].manifest["inputs"],
        "artifacts": [branch.uri for branch in branches],
        "classes": classes[len(old.classes) :],
    }
    seen = storage.read_parquet(storage.join(old.uri, SEEN))
    seen = pa.concat_tables([seen, seen_by(branches[0])])
    body = {
        **{name: value for name, value in old.manifest.items() if name not in RENEWED},
        **facts,
        "design": design.card(),
        "network": described([branch["name"] for branch in old.branches], design),
        "classes": classes,
        "weights": weights["weights"].tolist(),
        "rows": {split: n | counts[split] for split, n in old.manifest["rows"].items()},
        "extensions": [*old.manifest.get("extensions", []), extension],
        "files": {
            WEIGHTS: storage.write_bytes(storage.join(output, WEIGHTS), state_bytes(weights)),
            SEEN: storage.write_bytes(storage.join(output, SEEN), storage.parquet_bytes(seen)),
        },
    }
    return outputs.publish(output, "attributor", key, body)
