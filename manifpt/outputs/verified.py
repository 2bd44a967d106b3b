"""Check that the files that a manifest lists still have the content that was written."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from manifpt import storage

AT_ONCE = 16


def entries(value: Any, name: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield path and sha256 of each file in a manifest; an entry may be keyed by its path."""
    if isinstance(value, dict):
        path = value.get("path", name)
        if isinstance(path, str) and isinstance(value.get("sha256"), str):
            if "path" in value or set(value) == {"bytes", "sha256"}:
                yield path, value["sha256"]
            return
        for key, inside in value.items():
            yield from entries(inside, key)
    elif isinstance(value, list):
        for inside in value:
            yield from entries(inside)


def wrong(folder: str, listed: Iterable[tuple[str, str]]) -> list[str]:
    """Return the paths of listed files that are missing or have another sha256 than listed."""

    def differs(entry: tuple[str, str]) -> bool:
        uri = storage.join(folder, entry[0])
        return not storage.exists(uri) or storage.sha256(uri) != entry[1]

    some = sorted(set(listed))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [e[0] for e, bad in zip(some, threads.map(differs, some), strict=True) if bad]
