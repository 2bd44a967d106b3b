"""The files of a manifold: which they are, how large, and a copy of them elsewhere."""

from collections.abc import Iterator
from typing import Any

from manifpt import outputs, storage
from manifpt.manifold.manifold import Manifold


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the entries of files in a manifest; images that could not be decoded are no part."""
    if isinstance(value, dict):
        if "path" in value and "sha256" in value:
            yield value
        else:
            for name, inside in value.items():
                if name != "quarantine":
                    yield from _entries(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _entries(inside)


def stored_bytes(manifold: Manifold) -> int:
    """Return the bytes of a manifold's files, those of its space's weights included."""
    sizes = dict(storage.files_under(manifold.uri))
    paths = [entry["path"] for entry in _entries(manifold.manifest)]
    return sum(sizes.get(storage.join(manifold.uri, path), 0) for path in paths)


def copy_manifold(manifold: Manifold, folder: str) -> None:
    """Copy what a manifold's manifest lists, each file checked by its hash, the manifest last."""
    for entry in _entries(manifold.manifest):
        source, target = (storage.join(uri, entry["path"]) for uri in (manifold.uri, folder))
        storage.copy(source, target, entry["sha256"])
    storage.write_json(storage.join(folder, outputs.MANIFEST), manifold.manifest)
