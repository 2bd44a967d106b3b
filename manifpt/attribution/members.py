"""Late fusion of attributors that are trained already: nothing is trained, heads are weighed."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from manifpt import claims, session, storage
from manifpt.attribution.attributor import Attributor, publish_attributor
from manifpt.attribution.calibrate import calibrate
from manifpt.attribution.network import AttributionNetwork, Design
from manifpt.branches import open_artifacts
from manifpt.errors import ManifptError


def fuse_attributors(
    members: Sequence[str],
    output: str,
    *,
    demand: session.Demand = session.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> dict[str, Any]:
    """Fuse attributors of the same images and classes, one a space; return the manifest.

    Their weights stay; what each is worth is fitted on the validation images, in one task.
    """
    output = storage.absolute(output)
    opened = [Attributor.open(member) for member in members]
    branches = open_artifacts([member.manifest["artifacts"][0] for member in opened])
    design = _design(opened)
    key = storage.digest([member.manifest["key"] for member in opened])
    read = [("--fuse", member.uri) for member in opened]
    read += [("the artifacts in", branch.uri) for branch in branches]
    with claims.claim(output, "attributor", key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        build = partial(_joined, opened, design)
        made, found = calibrate(build, branches, opened[0].classes, demand)
        facts = {"members": [member.uri for member in opened], "seed": opened[0].manifest["seed"]}
        return publish_attributor(claim, made, facts | found)


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


def _joined(members: Sequence[Attributor], design: Design) -> AttributionNetwork:
    """Return the network of all members' branches, in a task."""
    network = AttributionNetwork(design).eval()
    for branch, member in zip(network.branches, members, strict=True):
        branch.load_state_dict(member.network().branches[0].state_dict())
    return network
