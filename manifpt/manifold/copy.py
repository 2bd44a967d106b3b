"""The files of a manifold: their list and sizes, and a copy of them in another place."""

from collections.abc import Iterator

from manifpt import outputs, storage
from manifpt.manifold.stored import StoredManifold
from manifpt.outputs.verified import entries


def _listed(manifold: StoredManifold) -> Iterator[tuple[str, str]]:
    """Yield path and sha256 of each file, without the quarantine."""
    kept = {name: value for name, value in manifold.manifest.items() if name != "quarantine"}
    return entries(kept)


def stored_bytes(manifold: StoredManifold) -> int:
    """Return the bytes of a manifold's files, those of its space's weights included."""
    sizes = dict(storage.files_under(manifold.uri))
    return sum(sizes.get(storage.join(manifold.uri, path), 0) for path, _ in _listed(manifold))


def copy_manifold(manifold: StoredManifold, folder: str) -> None:
    """Copy the files of a manifold's manifest, each checked by its hash, the manifest last."""
    for path, sha256 in _listed(manifold):
        source, target = (storage.join(uri, path) for uri in (manifold.uri, folder))
        storage.copy(source, target, sha256)
    storage.write_json(storage.join(folder, outputs.MANIFEST), manifold.manifest)
