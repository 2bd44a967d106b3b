"""The places of inputs, so that a job writes neither into them nor around them."""

import os
from collections.abc import Sequence

from manifpt import storage
from manifpt.images.patterns import braces, is_pattern, leads, root_of
from manifpt.images.sources import Input


def input_places(
    inputs: Sequence[str], output: str, option: str = "--input"
) -> list[tuple[str, str]]:
    """Return the option and the place of each input, for ``claims.claim``.

    The place of a pattern is the folder that it begins with, unless ``output`` lies in that folder
    and cannot match: ``*.png`` leaves room for a folder beside the pictures.
    """
    found = []
    for text in inputs:
        uri = Input.parse(text).uri
        if not is_pattern(uri):
            found.append((option, uri))
        elif any(_touches(choice, output) for choice in braces(uri)):
            found.append((option, root_of(uri)))
    return found


def _touches(pattern: str, output: str) -> bool:
    """Tell whether a folder holds the place of a pattern, or files that it may match."""
    root = root_of(pattern)
    if storage.is_remote(root) != storage.is_remote(output):
        return False
    here, there = (u if storage.is_remote(u) else os.path.realpath(u) for u in (output, root))
    if f"{there}/".startswith(f"{here}/") or here == there:
        return True
    if not here.startswith(f"{there}/"):
        return False
    return leads(here[len(there) + 1 :].split("/"), pattern[len(root) + 1 :].split("/"))
