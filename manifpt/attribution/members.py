"""Late fusion of attributors that are trained already: nothing is trained, heads are weighed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifpt import outputs, session, storage, tensors
from manifpt.attribution.attributor import Attributor, Made, publish_attributor
from manifpt.attribution.fusion import fit_weights
from manifpt.attribution.network import AttributionNetwork, Design, logits
from manifpt.branches import Branch, artifact_column, open_artifacts, read_branches
from manifpt.errors import ManifptError


def fuse_attributors(
    members: Sequence[str],
    output: str,
    *,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fuse attributors of the same images and classes, one a space; return the manifest.

    Their weights stay; what each is worth is fitted on the validation images, in one task.
    """
    import ray

    output = storage.absolute(output)
    opened = [Attributor.open(member) for member in members]
    branches = open_artifacts([member.manifest["artifacts"][0] for member in opened])
    design = _design(opened)
    key = storage.digest([member.manifest["key"] for member in opened])
    pool = session.pool(demand, uses_gpu=False)
    finished = outputs.begin(output, "attributor", key, overwrite=overwrite)
    if finished:
        return finished
    weigh = ray.remote(num_cpus=pool.num_cpus)(_weighed)
    weights, accuracy, loss = ray.get(weigh.remote(opened, branches, design, pool.threads))
    facts = {
        "members": [member.uri for member in opened],
        "seed": opened[0].manifest["seed"],
        "validation_accuracy": accuracy,
        "validation_loss": loss,
    }
    return publish_attributor(
        output, key, Made(branches, design, opened[0].classes, weights), facts
    )


def _design(members: Sequence[Attributor]) -> Design:
    """Return the network that has all members' branches."""
    designs = [Design.from_card(member.manifest["design"]) for member in members]
    if len(members) < 2 or any(len(design.shapes) > 1 for design in designs):
        raise ManifptError("--fuse: give two attributors or more, each of one space")
    if any(member.classes != members[0].classes for member in members):
        raise ManifptError(
            "--fuse: the attributors tell other classes apart; train them on the same"
        )
    maps = [design for design in designs if len(design.shapes[0]) == 3] or designs
    if len({(design.backbone, design.stem) for design in maps}) > 1:
        raise ManifptError("--fuse: the attributors have other backbones; train them alike")
    shapes = tuple(design.shapes[0] for design in designs)
    return Design(shapes, designs[0].classes, maps[0].backbone, maps[0].stem, "late")


def _weighed(
    members: Sequence[Attributor], branches: Sequence[Branch], design: Design, threads: int
) -> tuple[dict[str, Tensor], float, float]:
    """Return the weights of all, and the accuracy and loss of the fused on validation."""
    torch.set_num_threads(threads)
    network = AttributionNetwork(design).eval()
    for branch, member in zip(network.branches, members, strict=True):
        branch.load_state_dict(member.network.branches[0].state_dict())
    found, labels = [], []
    for path in branches[0].files("validation"):
        table = read_branches([storage.join(branch.uri, path) for branch in branches])
        columns = [table[artifact_column(n)] for n in range(len(branches))]
        artifacts = [
            tensors.from_column(column).reshape(-1, *shape)
            for column, shape in zip(columns, design.shapes, strict=True)
        ]
        found.append(logits(network, artifacts))
        labels += [members[0].classes.index(source) for source in table["source"].to_pylist()]
    heads, right = torch.from_numpy(np.concatenate(found)), torch.tensor(labels)
    network.weights.copy_(fit_weights(heads, right))
    fused = network.fuse(heads)
    accuracy = float((fused.argmax(1) == right).float().mean())
    loss = float(torch.nn.functional.nll_loss(fused, right))
    return network.state_dict(), accuracy, loss
