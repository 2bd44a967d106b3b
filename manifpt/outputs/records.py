"""The records of finished chunks of a pipeline, and their sums.

Each process that works on a chunk writes its record as a file. The driver gathers ``GATHERED`` of
them into one file, a record a line, and removes theirs, so that millions of chunks leave hundreds
of files.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from manifpt import storage
from manifpt.outputs.formats import ChunkRecord, PartEntry, RowCounts

FOLDER = "_records"
GATHERED = 4096
_NAME = r"\d{6}-\d{6}\.json|\d{6}\.jsonl"


def uri_of(output: str, unit: int, chunk: int, generation: str = "") -> str:
    """Return the URI of the record of a chunk."""
    return storage.join(output, FOLDER + generation, f"{unit:06d}-{chunk:06d}.json")


class Records(Sequence[ChunkRecord]):
    """The records of chunks in order; held as text, which takes a tenth of the objects' memory."""

    def __init__(self, records: Iterable[ChunkRecord] = ()) -> None:
        self._texts: dict[tuple[int, int], bytes] = {}
        self._order: list[tuple[int, int]] | None = None
        for record in records:
            self.add(record)

    def add(self, record: ChunkRecord) -> None:
        """Add the record of a chunk, or replace it."""
        self._texts[record["unit"], record["chunk"]] = json.dumps(record).encode()
        self._order = None

    @overload
    def __getitem__(self, index: int) -> ChunkRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ChunkRecord]: ...
    def __getitem__(self, index: int | slice) -> ChunkRecord | list[ChunkRecord]:
        if self._order is None:
            self._order = sorted(self._texts)
        if isinstance(index, slice):
            return [json.loads(self._texts[key]) for key in self._order[index]]
        found: ChunkRecord = json.loads(self._texts[self._order[index]])
        return found

    def __len__(self) -> int:
        return len(self._texts)


def stored(output: str, generation: str = "") -> Iterator[ChunkRecord]:
    """Yield the records that an output has, of all starts; some twice, if a start was cut short."""
    folder = storage.join(output, FOLDER + generation)
    if not storage.exists(folder):
        return
    names = re.compile(_NAME)
    found = [uri for uri, _ in storage.files_under(folder)]
    uris = [uri for uri in found if names.fullmatch(storage.base_name(uri))]
    for data in storage.read_many(uris):
        yield from _parsed(data)


def _parsed(data: bytes) -> Iterator[ChunkRecord]:
    """Yield the records in a file: one, or one a line."""
    lines = [data] if data.startswith(b"{\n") else data.splitlines()
    yield from map(json.loads, lines)


class Gatherer:
    """Gathers the records of a run's chunks into few files, see GATHERED."""

    def __init__(self, output: str, generation: str = "") -> None:
        self.output, self.generation = output, generation
        self.waiting: list[ChunkRecord] = []
        self.files = len(_gathered(self._folder))

    @property
    def _folder(self) -> str:
        return storage.join(self.output, FOLDER + self.generation)

    def add(self, record: ChunkRecord) -> None:
        """Add a record whose file is there."""
        self.waiting.append(record)
        if len(self.waiting) >= GATHERED:
            lines = [json.dumps(record) + "\n" for record in self.waiting]
            uri = storage.join(self._folder, f"{self.files:06d}.jsonl")
            storage.write_bytes(uri, "".join(lines).encode())
            keys = [(record["unit"], record["chunk"]) for record in self.waiting]
            alone = [uri_of(self.output, *key, self.generation) for key in keys]
            storage.remove_listed(self._folder, alone)
            self.files, self.waiting = self.files + 1, []


def _gathered(folder: str) -> list[str]:
    """Return the files of gathered records."""
    there = storage.files_under(folder) if storage.exists(folder) else []
    return [uri for uri, _ in there if uri.endswith(".jsonl")]


def by_unit(found: Iterable[ChunkRecord]) -> tuple[set[int], dict[int, set[int]]]:
    """Return the units whose chunks all have records, and the recorded chunks of the others."""
    done: dict[int, set[int]] = {}
    last: dict[int, int] = {}
    for record in found:
        done.setdefault(record["unit"], set()).add(record["chunk"])
        if record["last"]:
            last[record["unit"]] = record["chunk"]
    closed = {unit for unit, chunk in last.items() if len(done[unit]) == chunk + 1}
    return closed, {unit: chunks for unit, chunks in done.items() if unit not in closed}


def totals(records: Iterable[ChunkRecord]) -> RowCounts:
    """Add up rows: ``rows_in`` = ``ok`` + ``quarantined``, and the quarantined by error."""
    rows_in = ok = 0
    by_error: dict[str, int] = {}
    for record in records:
        rows_in, ok = rows_in + record["rows_in"], ok + record["ok"]
        for code, count in record["by_error"].items():
            by_error[code] = by_error.get(code, 0) + count
    quarantined = sum(by_error.values())
    counts: RowCounts = {
        "rows_in": rows_in,
        "ok": ok,
        "quarantined": quarantined,
        "by_error": dict(sorted(by_error.items())),
    }
    if rows_in != ok + quarantined:
        raise AssertionError(f"rows are missing: {counts}")
    return counts


def parts(records: Iterable[ChunkRecord]) -> list[PartEntry]:
    """Return the parts of all records, in order."""
    return [part for record in records for part in record["parts"]]


def clear(output: str, generation: str = "") -> None:
    """Remove the records once a manifest has taken over from them."""
    storage.remove_files(storage.join(output, FOLDER + generation), _NAME)


def forget_chunks(output: str, paths: Iterable[str]) -> None:
    """Remove the records of the chunks whose parts lie at some paths, so that they are done again.

    Records of retries are named by their generation, which is in the name of a part, too.
    """
    wanted: dict[str, set[tuple[int, int]]] = {}
    for path in paths:
        match = re.fullmatch(r"(\d{6})-(\d{6})(-r\d+)?\.(parquet|tar)", storage.base_name(path))
        if match is not None:
            key = int(match[1]), int(match[2])
            wanted.setdefault(match[3] or "", set()).add(key)
            storage.remove_file(uri_of(output, *key, match[3] or ""))
    for generation, keys in wanted.items():
        for uri in _gathered(storage.join(output, FOLDER + generation)):
            data = storage.read_bytes(uri)
            kept = [r for r in _parsed(data) if (r["unit"], r["chunk"]) not in keys]
            lines = "".join(json.dumps(record) + "\n" for record in kept).encode()
            if lines != data:
                storage.write_bytes(uri, lines)
