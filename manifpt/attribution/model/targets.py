"""The spaces and projections with which an attributor was trained, to apply to other images."""

from collections.abc import Sequence
from dataclasses import replace

from manifpt.artifacts.projection import Target
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule
from manifpt.manifold.manifold_format import ProjectionCard
from manifpt.manifold.projector import Projection
from manifpt.manifold.stored import StoredManifold, open_manifolds
from manifpt.spaces import space_from_card


def manifold_places(
    attributor: TrainedAttributor, manifolds: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the places of the manifolds that an attributor uses, for ``claims.claim``."""
    targets = trained_targets(attributor, manifolds).values()
    return [("the manifold", target.manifold.uri) for target in targets if target.manifold]


def _trained_projection(card: ProjectionCard, reals: StoredManifold) -> Projection:
    """Return the projection of a card; cards of earlier versions name no metric."""
    trained = Projection(**card)
    return replace(trained.on(reals.manifest), whitened=trained.whitened)


def trained_targets(attributor: TrainedAttributor, manifolds: Sequence[str]) -> dict[str, Target]:
    """Return the spaces and projections of the attributor's training images.

    ``manifolds`` say where its manifolds lie now; by default, where they were. Other manifolds
    raise ManifptError.
    """
    branches = attributor.branches
    where = manifolds or [b["manifold"] for b in branches if b["manifold"]]
    opened = open_manifolds(where)
    wanted = sum(b["manifold"] is not None for b in branches)
    if len(opened) != wanted:
        raise ManifptError(f"--manifold: the attributor has {wanted}, not {len(opened)}")
    left = iter(opened)
    found: list[StoredManifold | None] = [next(left) if b["manifold"] else None for b in branches]
    hashes = [reals.sha256 if reals else None for reals in found]
    attributor.check_manifolds(hashes, "--manifold")
    projections = [
        _trained_projection(branch["projection"], reals) if reals and branch["projection"] else None
        for branch, reals in zip(branches, found, strict=True)
    ]
    if [p and p.card() for p in projections] != [branch["projection"] for branch in branches]:
        raise ManifptError("--manifold: its geometry is not that of training; give that manifold")
    return {
        branch["name"]: Target(
            reals.space if reals else space_from_card(branch["space"]),
            DecodeRule.from_card(branch["decode"]),
            reals,
            projection,
        )
        for branch, reals, projection in zip(branches, found, projections, strict=True)
    }
