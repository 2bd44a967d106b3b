"""Parts of chunks -> fewer and larger files, with the same rows in the same order.

A chunk of images has some hundred rows, and so have its parts: an output of 1e9 images would have
millions of files. Once all chunks are safe, runs of parts become files of about ``PART_ROWS`` rows.
The parts stay until the manifest names the files in their place; a job that was cut short in
between goes on with the files that are missing.

The entry of such a file has ``units``: the units of its rows, in order, and the rows of each.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from manifpt import storage
from manifpt.engine.shuffle import Each, Scratch
from manifpt.errors import DamageError
from manifpt.outputs import records as recorded
from manifpt.outputs.formats import PartEntry, RolledEntry
from manifpt.outputs.verified import wrong

PART_ROWS, PART_BYTES = 100_000, 128 * 2**20
FEW = 256  # fewer chunks stay as they are


def unit_of(file: PartEntry) -> int:
    """Return the first unit whose rows a file has, from its name."""
    return int(storage.base_name(file["path"]).split("-", 1)[0])


def units_of(file: PartEntry) -> list[tuple[int, int]]:
    """Return the units of a file's rows, in order, and the number of rows of each."""
    given: Any = file.get("units") or [(unit_of(file), file["rows"])]
    return [(unit, rows) for unit, rows in given]


def in_input_order(files: Iterable[PartEntry]) -> list[PartEntry]:
    """Return files of an output in the order of its input."""

    def key(file: PartEntry) -> tuple[int, str, str]:
        return unit_of(file), storage.base_name(file["path"]), file["folder"]

    return sorted(files, key=key)


def rolled(
    output: str, records: recorded.Records, folders: Sequence[str], each: Each, generation: str = ""
) -> list[PartEntry]:
    """Return the files of an output in order, with larger ones in place of the records' parts.

    If there are few chunks, these are the parts. A file of quarantined rows has all of a unit's.
    """
    if len(records) <= FEW:
        return recorded.parts(records)
    scratch = Scratch.of(output, "rolled", generation, len(records), recorded.totals(records))
    rolls = _Rolls(scratch, generation)
    runs = (run for folder in folders for run in _runs(records, folder))
    return in_input_order(each(rolls.roll, ((n, run) for n, run in enumerate(runs))))


def _runs(records: recorded.Records, folder: str) -> Iterator[list[PartEntry]]:
    """Yield the parts of a folder in runs that become one file each."""
    run: list[PartEntry] = []
    rows = size = 0
    for record in records:
        for part in record["parts"]:
            if part["folder"] != folder:
                continue
            within = folder == "quarantine" and run and unit_of(run[-1]) == unit_of(part)
            if (rows >= PART_ROWS or size >= PART_BYTES) and not within:
                yield run
                run, rows, size = [], 0, 0
            run.append(part)
            rows, size = rows + part["rows"], size + part["bytes"]
    if run:
        yield run


@dataclass(frozen=True)
class _Rolls:
    """The larger files of an output, and the place of the notes that they are written."""

    scratch: Scratch
    generation: str

    def roll(self, number: int, parts: Sequence[PartEntry]) -> PartEntry:
        """Write one file of some parts; return its entry."""
        if len(parts) == 1:
            return parts[0]
        note = self.scratch.uri("rolled", number, "json")
        if storage.exists(note):
            made: PartEntry = storage.read_json(note)
            if not wrong(self.scratch.output, [(made["path"], made["sha256"])]):
                return made
        tables = [self._read(part) for part in parts]
        table = pa.concat_tables(tables, promote_options="default").combine_chunks()
        first = storage.base_name(parts[0]["path"])[: len("000000-000000")]
        path = f"{parts[0]['folder']}/{first}-p{self.generation}.parquet"
        uri = storage.join(self.scratch.output, path)
        written = storage.write_bytes(uri, storage.parquet_bytes(table))
        units: dict[int, int] = {}
        for part in parts:
            units[unit_of(part)] = units.get(unit_of(part), 0) + part["rows"]
        entry: RolledEntry = {
            "path": path,
            "folder": parts[0]["folder"],
            "rows": table.num_rows,
            "units": [[unit, rows] for unit, rows in units.items()],
            **written,
        }
        storage.write_json(note, entry)
        return entry

    def _read(self, part: PartEntry) -> pa.Table:
        uri = storage.join(self.scratch.output, part["path"])
        data = storage.read_bytes(uri)
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            recorded.forget_chunks(self.scratch.output, [part["path"]])
            raise DamageError(
                f"{uri}: differs from the file that this run wrote; another process may have "
                "written there; the same command makes it again"
            )
        return storage.parquet_table(uri, data)
