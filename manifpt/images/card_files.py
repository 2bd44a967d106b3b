"""The files that the card of a benchmark lists, each with its source and split.

If a folder has such a card, only the files on the card are read. So a card counts only if
``zoo.benchmark_card`` could have written it and its paths lie inside the folder. Any other
``card.json`` is treated like any other file.
"""

import json
import os
import re
from typing import Any

from manifpt import storage
from manifpt.images.contents import content
from manifpt.images.decode import DecodeError
from manifpt.images.sources import CARD, PARQUET, SPLITS, TABLES, TARS, Input

MOST_BYTES = 64 * 2**20


def benchmark_files(given: Input) -> list[Input] | None:
    """Return the files of a benchmark, or None if the input is not a benchmark."""
    if given.uri.endswith((*TARS, *PARQUET, *TABLES)):
        return None
    try:
        card = json.loads(content(storage.join(given.uri, CARD), MOST_BYTES))
    except (DecodeError, ValueError, RecursionError):
        return None
    if not isinstance(card, dict) or "manifpt" not in card:
        return None
    files = card.get("files")
    if not isinstance(files, list) or not all(_is_listed(file, given.uri) for file in files):
        return None
    return [
        Input(storage.join(given.uri, file["path"]), file["source"], file["split"])
        for file in files
    ]


def _is_listed(file: Any, folder: str) -> bool:
    """Tell whether an entry of a card has our format, and a path inside its folder."""
    if not isinstance(file, dict) or file.get("split") not in SPLITS:
        return False
    path, source, sha256 = (file.get(name) for name in ("path", "source", "sha256"))
    if not (isinstance(path, str) and isinstance(source, str) and isinstance(sha256, str)):
        return False
    return re.fullmatch(r"[0-9a-f]{64}", sha256) is not None and _is_inside(folder, path)


def _is_inside(folder: str, path: str) -> bool:
    if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        return False
    if storage.is_remote(folder):
        return True
    root = os.path.realpath(folder)
    return os.path.realpath(os.path.join(root, path)).startswith(os.path.join(root, ""))
