"""The manifest of a finished output: a folder is an output when it has a manifest.

See ``claims`` for the making of one, and ``layouts`` for the files that it holds. If there are more
than ``MOST_FILES`` files, their entries are in separate files, one a line, which the manifest names
as ``file_lists``; ``read`` and ``require`` return the entries in ``files``.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from manifpt import storage
from manifpt.errors import DamageError, ManifptError
from manifpt.outputs import layouts
from manifpt.outputs.formats import PartEntry
from manifpt.outputs.layouts import MANIFEST as MANIFEST

MOST_FILES = 10_000
FILE_LISTS = "_files"
_LIST = re.compile(r"[0-9a-f]{16}\.jsonl")


def read(folder: str) -> Any:
    """Return the manifest of a finished output; None without one, or for a stranger's file.

    The caller declares its type, which depends on the kind of the output.
    """
    found = layouts.read(folder, MANIFEST)
    if found is None or "file_lists" not in found:
        return found
    return found | {"files": files_of(folder, found)}


def files_of(folder: str, manifest: Mapping[str, Any]) -> list[PartEntry]:
    """Return the entries of the files of an output, from its manifest or its lists."""
    files: list[PartEntry] = list(manifest["files"])
    if files:
        return files
    for part in manifest.get("file_lists", ()):
        uri = storage.join(folder, part["path"])
        data = storage.read_bytes(uri)
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise DamageError(f"{uri}: differs from its manifest's hash; make the output again")
        files += map(json.loads, data.decode().splitlines())
    return files


def sharded(folder: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest whose list of files is in separate files, if it is long.

    They are named by their content: those of an older manifest stay until it is replaced.
    """
    files = body.get("files")
    if not isinstance(files, list) or len(files) <= MOST_FILES:
        return dict(body)
    lists = []
    for start in range(0, len(files), MOST_FILES):
        some = files[start : start + MOST_FILES]
        data = "".join(json.dumps(file, sort_keys=True) + "\n" for file in some).encode()
        path = f"{FILE_LISTS}/{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
        written = storage.write_bytes(storage.join(folder, path), data)
        lists.append({"path": path, "rows": len(some), **written})
    return {**body, "files": [], "file_lists": lists}


def clear_lists(folder: str, manifest: Mapping[str, Any]) -> None:
    """Remove lists of files that an older manifest named."""
    place = storage.join(folder, FILE_LISTS)
    if storage.exists(place):
        kept = {storage.join(folder, part["path"]) for part in manifest.get("file_lists", ())}
        there = (
            uri for uri, _ in storage.all_files(place) if _LIST.fullmatch(uri[len(place) + 1 :])
        )
        storage.remove_listed(place, [uri for uri in there if uri not in kept])


def require(folder: str, kind: str, option: str) -> Any:
    """Return the manifest of a finished output of a kind; raise if there is none.

    The caller declares its type.
    """
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
        raise ManifptError(
            f"{option} {folder}: no finished {kind} there; run manifpt {made_by} first"
        )
    if manifest.get("kind") != kind:
        holds = str(manifest.get("kind"))
        remedy = f"give {folder}/images" if holds == "normalized" else f"give a folder of {kind}"
        raise ManifptError(f"{option} {folder}: holds {holds}, not {kind}; {remedy}")
    return manifest
