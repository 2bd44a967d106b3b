"""Outputs appear whole or not at all: a folder is one when its manifest is there.

While a job works, ``_plan.json`` says which settings the folder belongs to, so that a later start
with the same settings goes on and one with other settings is refused.
"""

import time
from collections.abc import Callable
from typing import Any

from manifpt import __version__, storage
from manifpt.errors import ManifptError

MANIFEST = "manifest.json"
PLAN = "_plan.json"


def read(folder: str) -> dict[str, Any] | None:
    """Return the manifest of a finished output, or None."""
    uri = storage.join(folder, MANIFEST)
    return storage.read_json(uri) if storage.exists(uri) else None


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


def begin(
    folder: str,
    kind: str,
    key: str,
    *,
    overwrite: bool = False,
    published: Callable[[], str] | None = None,
) -> dict[str, Any] | None:
    """Claim a folder for an output; return its manifest if that same output is finished.

    ``key`` is a hash of all that decides the content. A folder of another key or kind is an
    error, unless ``overwrite`` empties it first. Where a long listing decides the content, too,
    ``key`` is of the rest, and ``published``, called if there is a manifest, of both.
    """
    manifest = read(folder)
    if (
        manifest is not None
        and manifest["kind"] == kind
        and manifest["key"] == (published() if published else key)
    ):
        return manifest
    plan_uri = storage.join(folder, PLAN)
    plan = storage.read_json(plan_uri) if storage.exists(plan_uri) else None
    claimed = manifest or plan
    if claimed is not None and (manifest or claimed != {"kind": kind, "key": key}):
        if not overwrite:
            remedy = "choose another --output or add --overwrite"
            raise ManifptError(
                f"--output {folder}: holds {claimed['kind']} made with other settings; {remedy}"
            )
        storage.remove(folder)
        plan = None
    if plan is None:
        storage.check_writable(folder)
        storage.write_json(plan_uri, {"kind": kind, "key": key})
    return None


def release(folder: str, *made: str) -> None:
    """Give a folder back in which nothing is but what the claim made; other files stay."""
    for name in (*made, PLAN):
        storage.remove(storage.join(folder, name))
    storage.remove_empty(folder)


def abandon(folder: str) -> None:
    """Give a claimed folder back, with all that was written there."""
    storage.remove(folder)


def publish(folder: str, kind: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest that makes the files of a folder an output; return it."""
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = {"kind": kind, "key": key, "written": written, "manifpt": __version__, **body}
    storage.write_json(storage.join(folder, MANIFEST), manifest)
    storage.remove(storage.join(folder, PLAN))
    return manifest
