"""Late fusion of trained attributors, in which only the weights of the heads are fitted."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from manifpt import storage
from manifpt.artifacts.branches import open_artifacts
from manifpt.attribution.model.attributor_calibration import calibrate_attributor
from manifpt.attribution.model.attributor_format import AttributorManifest, TrainingFacts
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.attribution.model.trained import TrainedAttributor, publish_attributor
from manifpt.audit.training_audit import worst
from manifpt.engine import pools
from manifpt.errors import ManifptError
from manifpt.outputs import claims


def fuse_attributors(
    members: Sequence[str],
    output: str,
    *,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> AttributorManifest:
    """Fuse attributors of the same images and classes; return the manifest.

    Their networks stay; the weight of each head is fitted on the validation images, in one task.
    Members that were trained on the same artifacts share one input.
    """
    output = storage.absolute(output)
    opened = [TrainedAttributor.open(member) for member in members]
    check_members(opened)
    uris = [uri for member in opened for uri in member.manifest["artifacts"]]
    branches = open_artifacts(list(dict.fromkeys(uris)))
    design = joined_design(opened)
    key = storage.digest([member.manifest["key"] for member in opened])
    read = [("the attributor", member.uri) for member in opened]
    read += [("the artifacts in", branch.uri) for branch in branches]
    with claims.claim(output, "attributor", key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        build = partial(joined_network, opened, design)
        made, found = calibrate_attributor(build, branches, opened[0].classes, demand)
        facts: TrainingFacts = {
            "members": [member.uri for member in opened],
            "seed": opened[0].manifest["seed"],
        }
        audited = worst([member.manifest for member in opened])
        if audited:
            facts["audit"] = audited["audit"]
        return publish_attributor(claim, made, {**facts, **found})


def check_members(members: Sequence[TrainedAttributor]) -> None:
    """Raise unless attributors can be fused."""
    if len(members) < 2:
        raise ManifptError("models: give two attributors or more")
    if any(Design.from_card(member.manifest["design"]).is_early for member in members):
        raise ManifptError(
            "models: an attributor of early fusion has no heads of its own; use --fusion late"
        )
    if any(member.classes != members[0].classes for member in members):
        raise ManifptError(
            "models: the attributors tell other classes apart; train them on the same"
        )


def joined_design(members: Sequence[TrainedAttributor]) -> Design:
    """Return the network that has all members' heads, in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    heads = []
    for member in members:
        design, uris = Design.from_card(member.manifest["design"]), member.manifest["artifacts"]
        shapes |= dict(zip(uris, design.shapes, strict=True))
        places = [list(shapes).index(uri) for uri in uris]
        heads += [replace(head, reads=places[head.reads]) for head in design.heads]
    return Design(tuple(shapes.values()), len(members[0].classes), tuple(heads), "late")


def joined_network(members: Sequence[TrainedAttributor], design: Design) -> AttributionNetwork:
    """Return the network of all members' heads, in a task."""
    network = AttributionNetwork(design).eval()
    given = [branch for member in members for branch in member.network().branches]
    for branch, trained in zip(network.branches, given, strict=True):
        branch.load_state_dict(trained.state_dict())
    return network
