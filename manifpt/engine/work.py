"""The units of work of an output, listed once and stored under it; every later start reads them.

``_work/00000.jsonl`` and so on hold one unit a line, the JSON that the job's reader understands;
``_work/index.json``, written last, has their number and the sums of their facts. A listing that was
cut short has no index and is made again.

While an output is unfinished, the job processes the listed files: files that come later change
nothing, and files that are removed become rows of ``quarantine``.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from manifpt import storage
from manifpt.errors import DamageError

FOLDER = "_work"
INDEX = "index.json"
# A reader holds one shard at a time.
SHARD_BYTES = 4 * 2**20
SHARD_UNITS = 4096


@dataclass(frozen=True)
class Work:
    """Stored units: shard i holds those from ``first[i]`` on, in a file of hash ``sha256[i]``."""

    output: str
    units: int
    first: tuple[int, ...]
    sha256: tuple[str, ...]
    facts: Mapping[str, Any]

    @classmethod
    def store(
        cls, output: str, specs: Iterable[str], facts: Callable[[], Mapping[str, Any]] = dict
    ) -> "Work":
        """Write units one by one as they come; ``facts`` returns facts of all at their end."""
        first: list[int] = []
        hashes: list[str] = []
        units = 0
        for lines in _shards(specs):
            data = "\n".join(lines).encode()
            uri = storage.join(output, FOLDER, f"{len(first):05d}.jsonl")
            hashes.append(storage.write_bytes(uri, data)["sha256"])
            first.append(units)
            units += len(lines)
        made = cls(output, units, tuple(first), tuple(hashes), facts())
        index = {"units": units, "first": first, "sha256": hashes, "facts": made.facts}
        storage.write_json(storage.join(output, FOLDER, INDEX), index)
        return made

    @classmethod
    def find(cls, output: str) -> "Work | None":
        """Return the work stored under an output, or None if it was not listed to its end."""
        uri = storage.join(output, FOLDER, INDEX)
        if not storage.exists(uri):
            return None
        index = storage.read_json(uri)
        first, hashes = tuple(index["first"]), tuple(index["sha256"])
        return cls(output, index["units"], first, hashes, index["facts"])

    def spec(self, unit: int) -> str:
        """Return a unit by its number; its shard is read, and kept until the next one's."""
        shard = bisect_right(self.first, unit) - 1
        uri = storage.join(self.output, FOLDER, f"{shard:05d}.jsonl")
        return _lines(uri, self.sha256[shard])[unit - self.first[shard]]

    def pinned(self, name: str, value: int) -> int:
        """Return the first start's value of ``name``; ``value``, if this is the first start.

        A value may depend on the machines, and decide a result's last bit or the cut of rows into
        files. It must not change when the job goes on elsewhere.
        """
        uri = storage.join(self.output, FOLDER, f"{name}.json")
        if storage.exists(uri):
            return int(storage.read_json(uri)["value"])
        storage.write_json(uri, {"value": value})
        return value

    @staticmethod
    def clear(output: str) -> None:
        """Remove the stored units of a finished output that needs them no more."""
        storage.remove_files(storage.join(output, FOLDER), r"\d{5}\.jsonl|[a-z]+\.json")


def _shards(specs: Iterable[str]) -> Iterator[list[str]]:
    lines: list[str] = []
    size = 0
    for spec in specs:
        if lines and (len(lines) == SHARD_UNITS or size + len(spec) > SHARD_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(spec)
        size += len(spec)
    if lines:
        yield lines


# By its hash, too: a process of Ray's outlives the job, and a folder may be written anew.
@lru_cache(maxsize=1)
def _lines(uri: str, sha256: str) -> list[str]:
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamageError(f"{uri}: differs from its index's hash; start again with --overwrite")
    return data.decode().split("\n")
