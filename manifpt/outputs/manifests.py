"""Outputs appear whole or not at all: a folder is one when its manifest is there.

See ``claims`` for how one is made, and ``layouts`` for the files that it holds.
"""

from typing import Any

from manifpt.errors import ManifptError
from manifpt.outputs import layouts
from manifpt.outputs.layouts import MANIFEST as MANIFEST


def read(folder: str) -> dict[str, Any] | None:
    """Return the manifest of a finished output; None without one, or for a stranger's file."""
    return layouts.read(folder, MANIFEST)


def require(folder: str, kind: str, option: str) -> dict[str, Any]:
    """Return the manifest of a finished output of a kind; anything else is an error."""
    manifest = read(folder)
    if manifest is None:
        job = {
            "manifold": "build_manifold",
            "artifacts": "compute_artifacts",
            "attributions": "attribute",
            "encoder": "pretrain_embedding",
            "evaluation": "evaluate",
        }
        made_by = job.get(kind, "train_attribution")
        raise ManifptError(f"{option} {folder}: no finished {kind} there; run jobs.{made_by} first")
    if manifest.get("kind") != kind:
        raise ManifptError(f"{option} {folder}: holds {manifest.get('kind')}, not {kind}")
    return manifest
