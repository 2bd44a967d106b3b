"""The files that an output of each kind may hold; a job removes only these files.

Any other file in an output belongs to the user, and stays however the job ends. The patterns match
whole paths inside the output's folder.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from manifpt import storage
from manifpt.errors import ManifptError

PLAN, ALIVE, MANIFEST = "_plan.json", "_alive.json", "manifest.json"
COST = "_cost.json"

_PART = r"\d{6}-\d{6}(-p)?(-r\d+)?\.parquet"  # with p of several chunks
_TAR = r"\d{6}-\d{6}\.tar"
_WHOLE = r"\d{6}(-r\d+)?\.parquet"
_SPACE = r"([a-z0-9_]+(-\d+)?/)?"  # with several spaces, each has a folder with its name
_SHARD = r"shard-([0-9a-f]{12}-|c\d{3}-)?\d{5}"
# Files that exist only while a job works, and those that name an output's files.
_WORKING = (
    rf"{PLAN}|{ALIVE}|{MANIFEST}|{COST}|{re.escape(storage.LOCK)}",
    r"_records(-r\d+)?/(\d{6}-\d{6}\.json|\d{6}\.jsonl)",
    r"_files/[0-9a-f]{16}\.jsonl",
    r"_work/(\d{5}\.jsonl|[a-z]+\.json)",
    r"_attempts/[\w-]+/[0-9a-f]{32}",
)
# Files that exist only while a network trains; the second is Ray Train's own storage.
_TRAINING = (r"_epochs/\w+\.json", r"_training/[0-9a-f]{16}/.+")
_ARTIFACTS = (
    rf"{_SPACE}(train|validation|test|quarantine|properties)/{_PART}",
    rf"{_SPACE}certificate\.json",
)
_MANIFOLD = (
    rf"{_SPACE}{_SHARD}/(rows\.parquet|vectors\.npy|keys\.npy)",
    rf"{_SPACE}(basis\.npy|whitening\.npy|geometry\.pt|denoiser\.pt|index\.faiss|weights\.\w+)",
    r"_embedded/[0-9a-f]{64}\.parquet",
    rf"quarantine/([0-9a-f]{{8}}-)?{_PART}",
)
# A copy of a registered model, see attribution.registered.
_MODEL = (r"model/[0-9a-f]{12}/.+",)
_FILES: dict[str, tuple[str, ...]] = {
    "append": (r"_embedded/[0-9a-f]{64}\.parquet", rf"quarantine/{_PART}"),
    "artifacts": _ARTIFACTS,
    "attributions": (
        rf"(attributions|quarantine|evidence)/{_PART}",
        rf"(duplicates|groups)/{_WHOLE}",
        r"_buckets/([0-9a-f]{12}/)?([a-z]+-)?\d{6}\.(arrow|parquet|json)",
        r"summary\.json|_retry\.json|report\.html",
        *_MODEL,
    ),
    "attributor": (r"weights\.pt|seen\.parquet|unknown\.npz", *_TRAINING),
    "audit": (rf"(properties|quarantine)/{_PART}", r"audit\.(json|md)"),
    "benchmark": (
        r"[^/]+/(manifold|train|validation|test)\.tar\.gz",
        r"card\.json|README\.md|recipes\.csv|samples\.png",
    ),
    "chain": (r"(comparison|open_set)\.json",),
    "combination": _ARTIFACTS,
    "encoder": (rf"(_images/(train|validation)|quarantine)/{_PART}", r"weights\.pt", *_TRAINING),
    "evaluation": (
        rf"(scores|near_training|unknown|quarantine)/{_PART}",
        r"confusion\.(csv|png)|(reliability|triplets)\.png|(metrics|groups)\.json|report\.html",
        *_MODEL,
    ),
    "export": (r"img_emb/img_emb_\d+\.npy", r"metadata/metadata_\d+\.parquet"),
    "manifold": _MANIFOLD,
    "manifolds": _MANIFOLD,
    "normalized": (rf"images/[^/]+/{_TAR}", rf"quarantine/{_PART}"),
    "robustness": (
        rf"(scores|quarantine)/{_PART}",
        r"robustness\.(csv|json|png)|report\.html",
        *_MODEL,
    ),
    "sweep": (
        r"leaderboard\.json",
        r"trials/[^/]+/(trial\.json|result\.json|start-\d+\.pt)",
        r"_tune/\d+-\d+/.+",
    ),
}
KINDS = frozenset(_FILES)
# Outputs inside an output.
_OUTPUTS = {
    "attributor": r"artifacts|audit|manifold",
    "combination": r"[a-z0-9_]+(-\d+)?",
    "evaluation": r"artifacts",
    "manifold": r"_append-[0-9a-f]{12}",
    "manifolds": r"[a-z0-9_]+(/_append-[0-9a-f]{12})?",
    "sweep": r"audit|cache/[\w-]+|trials/[^/]+/[\w/-]+",
}
# Folders that a job makes before it knows the key of the output that they belong to.
BEFORE = {
    "attributor": r"(artifacts|audit|manifold)/",
    "chain": r"(encoder|manifolds?|artifacts|attributor|evaluation|attributions|split)[\w+@-]*/",
    "evaluation": r"(artifacts|model)/",
    "robustness": r"model/",
    "sweep": r"audit/",
}
_BEGUN = re.compile(rf"({PLAN}|{ALIVE})\.[0-9a-f]{{8}}{re.escape(storage.PARTIAL)}")
_HALF = rf"(\.[0-9a-f]{{8}}{re.escape(storage.PARTIAL)})?"


def ours(value: object) -> bool:
    """Tell whether a JSON value is a plan or a manifest that a job wrote."""
    return (
        isinstance(value, dict)
        and value.get("kind") in KINDS
        and re.fullmatch(r"[0-9a-f]{64}", str(value.get("key"))) is not None
    )


def read(folder: str, name: str) -> Any:
    """Return the plan or manifest of a folder; None if there is none, or no job wrote it.

    The caller declares its type.
    """
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        return None
    try:
        return parsed(storage.read_bytes(uri))
    except ManifptError:
        if storage.exists(uri):
            raise
        return None  # it was removed between these two calls


def parsed(data: bytes) -> Any:
    """Return the plan or manifest in a file's bytes; None if no job wrote it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if ours(found) else None


def output_kind(folder: str) -> str | None:
    """Return the kind of an output that a job has begun or finished; None for another folder."""
    found = read(folder, MANIFEST) or read(folder, PLAN)
    return found["kind"] if found else None


def unexpected_file(folder: str, kind: str) -> str | None:
    """Return the name of a file or folder that keeps a job from using this folder, or None.

    The folder is one that has neither a plan nor a manifest.
    """
    if kind == "benchmark" and (card := _card(folder)) is not None:
        return _unlisted(folder, card)
    for name in storage.names(folder):
        inner = storage.join(folder, name.rstrip("/"))
        if _BEGUN.fullmatch(name) or (name in {ALIVE, COST, storage.LOCK} and _is_left(inner)):
            continue
        if not re.fullmatch(BEFORE.get(kind, r"(?!)"), name):
            return name.rstrip("/")
        if name == "model/":
            known = _is_model(folder, inner)
        else:  # an output, or a folder that holds nothing but outputs
            known = output_kind(inner) is not None or unexpected_file(inner, "chain") is None
        if not known:
            return name.rstrip("/")
    return None


def _is_model(folder: str, inner: str) -> bool:
    """Tell whether all files in a folder's ``model`` are copies of registered models."""
    inside = (uri[len(folder) :].strip("/") for uri, _ in storage.all_files(inner))
    return all(re.fullmatch(_MODEL[0], path) for path in inside)


def _is_left(uri: str) -> bool:
    """Tell whether a file is a lock, a sign of life or a cost that a killed run has left."""
    data = storage.read_bytes(uri)
    if data == storage.LOCK_MARK:
        return True
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and set(found) in ({"token", "started", "beat"}, {"spent"})


def _card(folder: str) -> Any:
    """Return the card of a benchmark's folder; None for another folder."""
    uri = storage.join(folder, "card.json")
    try:
        card = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None
    except (ValueError, RecursionError):
        return None
    return card if isinstance(card, dict) and {"files", "gate", "manifpt"} <= set(card) else None


def _unlisted(folder: str, card: Mapping[str, Any]) -> str | None:
    """Return a file in a benchmark's folder that looks like one of its tars, but is not listed."""
    tars, listed = re.compile(_FILES["benchmark"][0]), {file["path"] for file in card["files"]}
    inside = (uri[len(folder) :].strip("/") for uri, _ in storage.all_files(folder))
    return next((path for path in inside if tars.fullmatch(path) and path not in listed), None)


def clear(folder: str, kind: str, keep: Collection[str] = ()) -> None:
    """Remove the files of an output, and the outputs inside it except those in ``keep``.

    The manifest is removed first; the plan and the sign of life stay.
    """
    storage.remove_file(storage.join(folder, MANIFEST))
    for name, inner in _outputs_in(folder, kind):
        if name not in keep:
            clear(storage.join(folder, name), inner)
            forget(storage.join(folder, name))
    skipped = rf"(?!{PLAN}|{ALIVE})" + "".join(rf"(?!{re.escape(name)}/)" for name in keep)
    storage.remove_files(folder, skipped + _pattern((*_WORKING, *_FILES[kind])))


def clear_halves(folder: str, kind: str) -> None:
    """Remove files that killed processes left half written; object stores have no such files."""
    if not storage.is_remote(folder):
        half = rf"(?!{PLAN}|{ALIVE})(?=.*{re.escape(storage.PARTIAL)}$)"  # a run may begin now
        storage.remove_files(folder, half + _pattern((*_WORKING, *_FILES[kind])))


def forget(folder: str) -> None:
    """Remove the plan and the sign of life, and the folder if it is then empty."""
    for name in (ALIVE, PLAN, storage.LOCK):
        storage.remove_file(storage.join(folder, name))
    storage.remove_empty(folder)


def _outputs_in(folder: str, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the kind of each output inside an output."""
    matches = re.compile(_OUTPUTS.get(kind, r"(?!)")).fullmatch
    inside = (uri[len(folder) :].strip("/").rpartition("/") for uri, _ in storage.all_files(folder))
    for above in sorted({above for above, _, name in inside if name in {PLAN, MANIFEST}}):
        inner = output_kind(storage.join(folder, above)) if matches(above) else None
        if inner is not None:
            yield above, inner


def _pattern(patterns: tuple[str, ...]) -> str:
    return rf"({'|'.join(patterns)}){_HALF}"
