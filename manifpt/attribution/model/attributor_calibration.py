"""The calibration of an attributor on validation images, after its network is trained.

It fits the weights of the heads, which calibrate the probabilities (see ``fusion``), and the scores
of the unknown (see ``open_set``). The epoch was chosen on the same images, so measures on them are
a little better than on new images.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from manifpt import storage
from manifpt.artifacts.branches import ArtifactBranch, artifact_column, of_classes, read_branches
from manifpt.attribution.model.attributor_format import FitFacts, OpenSetCard
from manifpt.attribution.model.fusion import fit_weights
from manifpt.attribution.model.network import AttributionNetwork, Design, outputs
from manifpt.attribution.model.stream import MOST_ROWS, first_of
from manifpt.attribution.model.tiled import pooled_tiles, rows_per_image
from manifpt.attribution.model.trained import AttributorParts
from manifpt.attribution.unknown.decision import USUAL
from manifpt.attribution.unknown.known import Known, Outputs
from manifpt.attribution.unknown.open_set import SCORES, Fitted, fit_open_set, rejected_by_class
from manifpt.engine import pools
from manifpt.engine.tasks import result
from manifpt.images.degrade import IDENTITY, Degradation
from manifpt.images.degraded_copies import COLUMN
from manifpt.images.stacks import image_starts
from manifpt.nets.device import device_and_precision, threads_of
from manifpt.storage import tensors

Build = Callable[[], AttributionNetwork]


def network_of(design: Design, weights: dict[str, Tensor]) -> AttributionNetwork:
    """Return a network with its trained weights, ready for inference."""
    network = AttributionNetwork(design)
    network.load_state_dict(weights)
    return network.eval()


def calibrate_attributor(
    build: Build,
    branches: Sequence[ArtifactBranch],
    classes: list[str],
    demand: pools.Demand,
    more: Sequence[Sequence[ArtifactBranch]] = (),
) -> tuple[AttributorParts, FitFacts]:
    """Fit on validation, in one task; return the parts of the attributor, and facts of the fit.

    ``build`` returns the trained network, in the task. ``more`` are artifacts of further images, in
    the same spaces.
    """
    pool = pools.pool(pools.Demand(1, demand.num_gpus, here=demand.here), uses_gpu=True)
    pool.wait()
    # A trial of Ray Tune holds a placement group, in which a task of its own would find no room.
    holds = {"scheduling_strategy": "DEFAULT", "num_gpus": pool.num_gpus}
    arguments = (build, [branches, *more], classes, pool.threads)
    made, facts = result(pool, _calibrated, *arguments, **holds)
    if made.open_set is None:
        print(
            "no decision 'unknown': a class has fewer than two validation images",
            file=sys.stderr,
            flush=True,
        )
    return made, facts


def _calibrated(
    build: Build, sets: Sequence[Sequence[ArtifactBranch]], classes: list[str], threads: int
) -> tuple[AttributorParts, FitFacts]:
    with threads_of(threads):
        return _fitted(build, sets, classes)


def _fitted(
    build: Build, sets: Sequence[Sequence[ArtifactBranch]], classes: list[str]
) -> tuple[AttributorParts, FitFacts]:
    device = device_and_precision()[0]
    network = build().to(device)
    known = _joined([validation_outputs(network, of, classes, device) for of in sets])
    branches = sets[0]
    network = network.cpu()
    heads, right = torch.from_numpy(known.outputs.logits), torch.from_numpy(known.labels)
    before = _loss(network, heads, right)
    network.weights.copy_(fit_weights(heads, right))
    weights, after = network.weights.double().numpy(), _loss(network, heads, right)
    fitted = fit_open_set(known, len(classes), weights, network.design.discriminants)
    hits = (network.fuse(heads).argmax(1) == right).numpy()
    facts: FitFacts = {
        "validation_accuracy": float(hits.mean()),
        "validation_accuracy_by_degradation": _by_degradation(hits, known.degradations),
        "validation_loss": after,
        "calibration": {"rows": len(right), "loss_before": before, "loss": after},
        "open_set": _described(fitted, known.labels, classes),
    }
    open_set = fitted.open_set if fitted else None
    return AttributorParts(branches, network.design, classes, network.state_dict(), open_set), facts


def _loss(network: AttributionNetwork, heads: Tensor, right: Tensor) -> float:
    return float(torch.nn.functional.nll_loss(network.fuse(heads), right))


def _by_degradation(hits: np.ndarray, degradations: np.ndarray) -> dict[str, float]:
    """Return the accuracy on images as they are (identity), and on those degraded by each kind."""
    kinds = sorted(set(degradations))
    return {kind or IDENTITY: float(hits[degradations == kind].mean()) for kind in kinds}


def _described(
    fitted: Fitted | None, labels: np.ndarray, classes: Sequence[str]
) -> OpenSetCard | None:
    """Return the scores' names, and the share of each class that the usual rule rejects."""
    if fitted is None:
        return None
    names, limit = np.array(classes, dtype=object)[labels], USUAL.false_rejection
    shares = rejected_by_class(names, fitted.p_values <= limit, classes)
    return {"scores": list(SCORES), "false_rejection": limit, "false_rejection_by_class": shares}


def validation_outputs(
    network: AttributionNetwork, branches: Sequence[ArtifactBranch], classes: list[str], device: str
) -> Known:
    """Return the network's outputs for validation images, pooled where they have tiles."""
    found = []
    room = np.full(len(classes), max(1, MOST_ROWS // len(classes)))
    for path in branches[0].files("validation"):
        table = of_classes(
            read_branches([storage.join(branch.uri, path) for branch in branches]), classes
        )
        begins, sources = image_starts(table), table["source"].to_pylist()
        numbers = np.array([classes.index(sources[row]) for row in begins], dtype=np.int64)
        kept = first_of(numbers, room)
        if not len(kept):
            continue
        images = np.repeat(np.arange(len(begins)), rows_per_image(begins, table.num_rows))
        table = table.filter(pa.array(np.isin(images, kept)))
        begins = image_starts(table)
        artifacts = [
            tensors.from_column(table[artifact_column(n)]).reshape(-1, *branch.manifest["shape"])
            for n, branch in enumerate(branches)
        ]
        of_images = pooled_tiles(outputs(network, artifacts, device), begins)
        found.append(Known(of_images, numbers[kept], _kinds(table, begins)))
    return _joined(found)


def _kinds(table: pa.Table, begins: np.ndarray) -> np.ndarray:
    """Return the kind by which each image of artifacts is degraded, "" for none."""
    if COLUMN not in table.column_names:
        return np.full(len(begins), "", dtype=object)
    texts = table[COLUMN].take(pa.array(begins)).to_pylist()
    return np.array([Degradation.parse(text).kind if text else "" for text in texts], dtype=object)


def _joined(known: Sequence[Known]) -> Known:
    """Return the outputs and labels of several sets of images as one."""
    logits = np.concatenate([one.outputs.logits for one in known])
    heads = zip(*(one.outputs.features for one in known), strict=True)
    features = [np.concatenate(head) for head in heads]
    labels = np.concatenate([one.labels for one in known])
    kinds = np.concatenate([one.degradations for one in known])
    return Known(Outputs(logits, features), labels, kinds)
