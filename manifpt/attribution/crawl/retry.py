"""Another try of the quarantined rows of a finished output, for temporary causes.

A file that storage could not deliver may be there now; another try of a corrupt file fails again,
and does no harm. Only the rows that failed are read and decoded again. New parts have a name of
their own (``-r1``, then ``-r2``), and count once the manifest lists them in place of the old; a try
that was cut short goes on with the same command. Where a file of quarantined rows is replaced, the
rows of its other units come again as they were.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pyarrow as pa

from manifpt import outputs, storage
from manifpt.attribution.crawl.crawl_format import AttributionsManifest
from manifpt.engine import shuffle
from manifpt.engine.rollup import in_input_order, units_of
from manifpt.engine.work import Work
from manifpt.errors import ManifptError
from manifpt.images.decode import ERRORS, DecodeRule
from manifpt.images.read import (
    CHUNK_ROWS,
    ImageReader,
    blank,
    images_table,
    read_unit,
    unit_from_json,
)
from manifpt.images.sources import Selection
from manifpt.outputs import records as recorded
from manifpt.outputs.formats import PartEntry, RowCounts

MARK = "_retry.json"
_PART = re.compile(r"\d{6}(-\d{6})?(-p)?(-r\d+)?\.parquet")
# Each input row is in one of these tables, by its id.
ROWS = ("attributions", "quarantine")
FOLDERS = (*ROWS, "evidence")
# Tables about all rows together, written anew with each try.
WHOLE = ("duplicates", "groups")


class FileRows(TypedDict):
    """The rows of one unit in a file of an output: the first one and their number."""

    path: str
    folder: str
    start: int
    rows: int


@dataclass(frozen=True)
class RetryWork(Work):
    """The stored units, and the files of those that are tried again, by unit.

    ``errors`` are all quarantined rows of these units by code.
    """

    files: dict[int, list[FileRows]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def spec(self, unit: int) -> str:
        """Return a unit with the files that hold its rows."""
        return json.dumps({"unit": super().spec(unit), "files": self.files[unit]})


def check_codes(codes: Sequence[str]) -> None:
    """Raise if one of the codes does not exist."""
    wrong = sorted(set(codes) - set(ERRORS))
    if wrong:
        raise ManifptError(f"--retry-quarantined {wrong[0]}: no such code; one of {list(ERRORS)}")


def work_to_retry(output: str, files: Sequence[PartEntry], codes: Sequence[str]) -> RetryWork:
    """Return the units of a finished output with rows quarantined for one of ``codes``, or any."""
    stored = Work.find(output)
    if stored is None:
        raise ManifptError(
            f"--output {output}: its list of units is gone; make it again with --overwrite"
        )
    errors: dict[int, Counter[str]] = {}
    quarantined = [file for file in files if file["folder"] == "quarantine"]
    for file in quarantined:
        found = storage.read_parquet(storage.join(output, file["path"]), ["error"])["error"]
        for unit, start, rows in _slices(file):
            errors.setdefault(unit, Counter()).update(found.slice(start, rows).to_pylist())
    units = {u for u, found in errors.items() if not codes or set(codes) & set(found)}
    units = _together(units, [{unit for unit, _ in units_of(file)} for file in quarantined])
    by_unit: dict[int, list[FileRows]] = {}
    for file in files:
        for unit, start, rows in _slices(file):
            if unit in units:
                part = FileRows(path=file["path"], folder=file["folder"], start=start, rows=rows)
                by_unit.setdefault(unit, []).append(part)
    total = sum((errors[unit] for unit in units), Counter[str]())
    return RetryWork(**vars(stored), files=by_unit, errors=total)


def _together(units: set[int], files: Sequence[set[int]]) -> set[int]:
    """Return units and all that share a file with one of them; a file is given by its units."""
    more = units.union(*(some for some in files if some & units))
    return more if more == units else _together(more, files)


def _slices(file: PartEntry) -> Iterator[tuple[int, int, int]]:
    """Yield the units of a file, each with its first row and its number of rows."""
    start = 0
    for unit, rows in units_of(file):
        yield unit, start, rows
        start += rows


@dataclass(frozen=True)
class RetryReader(ImageReader):
    """Reads images to try again and other rows of ``RetryWork``: see ``read_retried``."""

    output: str = ""
    codes: Sequence[str] = ()

    def __call__(self, spec: str) -> Iterator[pa.Table]:
        """Yield the images table of a unit, in chunks."""
        rule, sizes = self.decoding
        chunk = self.chunk or CHUNK_ROWS
        return read_retried(spec, self.output, self.codes, rule, self.selection, chunk, sizes)


def read_retried(
    text: str,
    output: str,
    codes: Sequence[str],
    rule: DecodeRule,
    selection: Selection,
    chunk: int,
    other_sizes: Sequence[int],
) -> Iterator[pa.Table]:
    """Yield the images of a unit that are tried again, and then its other quarantined rows.

    Where a container broke off, all images that are not in the output yet are new. A row that is
    not met again stays as it was, except the row of a container that is whole now.
    """
    given = json.loads(text)
    old = [row for file in given["files"] for row in _rows(output, file, "quarantine")]
    tried = {row["id"]: row for row in old if not codes or row["error"] in codes}
    stay = {row["id"]: row for row in old if row["id"] not in tried}
    broken = any(row["error"] == "broken_archive" for row in tried.values())
    files = given["files"] if broken else []
    known = {row["id"] for file in files for row in _rows(output, file, "attributions", ["id"])}

    def wanted(id_: str) -> bool:
        return id_ not in known and id_ not in stay if broken else id_ in tried

    met: set[str] = set()
    unit = unit_from_json(given["unit"])
    made = read_unit(unit, rule, selection, chunk, other_sizes, wanted) if tried else iter(())
    for table in made:
        met.update(table["id"].to_pylist())
        yield table
    lost = (r for i, r in tried.items() if i not in met and r["error"] != "broken_archive")
    rows = [*stay.values(), *lost]
    for start in range(0, len(rows), chunk):
        some = rows[start : start + chunk]
        nothing = [blank(rule, other_sizes)] * len(some)
        yield images_table(some, nothing, other_sizes, unit.reading.columns)


def _rows(
    output: str, file: FileRows, folder: str, columns: list[str] | None = None
) -> list[dict[str, Any]]:
    if file["folder"] != folder:
        return []
    table = storage.read_parquet(storage.join(output, file["path"]), columns)
    return list(table.slice(file["start"], file["rows"]).to_pylist())


def begin(output: str, manifest: AttributionsManifest, codes: Sequence[str]) -> str:
    """Begin another try, or go on with one of the same codes; return its generation."""
    number = manifest.get("retries", 0) + 1
    uri, mark = storage.join(output, MARK), {"retry": number, "codes": sorted(set(codes))}
    if not storage.exists(uri) or storage.read_json(uri) != mark:
        recorded.clear(output, f"-r{number}")
        storage.write_json(uri, mark)
    return f"-r{number}"


def clean(output: str, manifest: AttributionsManifest) -> None:
    """Remove left-over files of a published run or try that was cut short while it removed them."""
    uri = storage.join(output, MARK)
    retries = manifest.get("retries", 0)
    marked = storage.exists(uri)
    if marked and storage.read_json(uri)["retry"] != retries:
        return  # of a try that has not been published
    if not marked and not storage.exists(storage.join(output, shuffle.FOLDER)):
        return
    remove_unlisted(output, outputs.files_of(output, manifest))
    recorded.clear(output, f"-r{retries}" if retries else "")
    if marked:
        storage.remove_file(uri)
    shuffle.clear(output)


def remove_unlisted(output: str, files: Sequence[PartEntry]) -> None:
    """Remove parts that a published manifest does not list."""
    listed = {storage.join(output, file["path"]) for file in files}
    for folder in (storage.join(output, name) for name in (*FOLDERS, *WHOLE)):
        there = storage.files_under(folder) if storage.exists(folder) else []
        names = [uri for uri, _ in there if _PART.fullmatch(storage.base_name(uri))]
        storage.remove_listed(folder, [uri for uri in names if uri not in listed])


def merged_output(
    manifest: AttributionsManifest,
    tried: RetryWork,
    found: recorded.Records,
    made: Sequence[PartEntry],
) -> tuple[list[PartEntry], RowCounts]:
    """Return the files and the counts of an output with the rows of another try in their place.

    ``made`` are the files of the try, ``found`` its records.
    """
    kept = [
        file
        for file in manifest["files"]
        if file["folder"] != "quarantine" or not {u for u, _ in units_of(file)} & set(tried.files)
    ]
    files = in_input_order([*kept, *made])
    new = recorded.totals(found)
    errors = Counter(manifest["by_error"])
    errors.subtract(tried.errors)
    errors.update(new["by_error"])
    counts: RowCounts = {
        "rows_in": manifest["rows_in"] - tried.errors.total() + new["rows_in"],
        "ok": manifest["ok"] + new["ok"],
        "quarantined": errors.total(),
        "by_error": {code: count for code, count in sorted(errors.items()) if count},
    }
    if counts["rows_in"] != counts["ok"] + counts["quarantined"]:
        raise AssertionError(f"rows are missing: {counts}")
    return files, counts
