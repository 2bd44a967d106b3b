"""Splits of images that declare none, by their content or by a value of a column.

A split is a function of one image's own row, so it depends on neither order, parts nor other
images. Two images of the same pixels, or of the same value of a column, have the same split.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from manifpt.engine.columns import ColumnTypes
from manifpt.errors import ManifptError
from manifpt.images import Reading, Unit, uri_tables
from manifpt.images.container import BrokenError
from manifpt.images.ids import escaped
from manifpt.images.read import is_own
from manifpt.images.sources import AS_FOUND

# The shares of validation and test; the rest is train.
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
CONTENT = "content"
# The pseudo-column: the folder that holds an image, or the tar, from its id.
FOLDER = "folder"


def split_of(sha256: str) -> str:
    """Return the split of a hash, by its last digits."""
    position = int(sha256[-15:], 16) / 16**15
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


class Splits(NamedTuple):
    """The split of each row; the number of rows split by a column's value, and of those without."""

    names: list[str]
    by_value: int
    without_value: int


def splits_of(table: pa.Table, undeclared: str, split_by: str | None) -> Splits:
    """Return the splits of an images table: those that rows declare, else by ``undeclared``.

    With CONTENT the value of the column ``split_by`` decides, if that is given and the row has one,
    else the pixels' hash; another ``undeclared`` is the split of all. The source does not matter:
    images of two sources with one prompt have one split.
    """
    names, found = [], [0, 0]
    values = [None] * len(table) if split_by is None else values_of(table, split_by)
    columns = (table[name].to_pylist() for name in ("split", "pixel_sha256"))
    for declared, sha, value in zip(*columns, values, strict=True):
        if declared or undeclared != CONTENT:
            names.append(declared or undeclared)
        else:
            found[value is None] += 1
            names.append(split_of(sha if value is None else _hash(value)))
    return Splits(names, *(found if split_by else (0, 0)))


def split_columns(split_by: str | None) -> ColumnTypes:
    """Return the columns that ``splits_of`` takes."""
    names = {"split", "pixel_sha256"}
    names |= {"id", "source"} if split_by == FOLDER else {split_by} if split_by else set()
    return dict.fromkeys(sorted(names), pa.string())


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def values_of(table: pa.Table, split_by: str) -> list[str | None]:
    """Return the value of each row, None where it has none."""
    if split_by != FOLDER:
        return [value or None for value in table[split_by].to_pylist()]
    rows = zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True)
    return [_folder(name, source) for name, source in rows]


def _folder(name: str, source: str | None) -> str | None:
    """Return the folder of an id inside its source's; None for an image that lies there itself."""
    folders = name.split("/")[:-1]
    if folders and source is not None and folders[0] == escaped(source):
        folders = folders[1:]
    return "/".join(folders) or None


def reading_with_split(
    split_by: str | None, taken: Iterable[str], labels: Reading = AS_FOUND
) -> Reading:
    """Return the reading of inputs that includes the column ``split_by``.

    ``taken`` are the columns that tables of the output have themselves; ``labels`` says which
    columns name sources and splits.
    """
    if split_by in {None, FOLDER}:
        return labels
    if split_by in {*taken, ""} or is_own(str(split_by)):
        raise ManifptError(
            f"--split-by {split_by}: taken by the output; name a column of the input, or folder"
        )
    return replace(labels, columns=(str(split_by),))


def check_column(units: Sequence[Unit], split_by: str | None) -> None:
    """Raise if no unit can have the column, as far as their headers tell."""
    tables_once = {unit.uris[0]: unit for unit in units}.values()
    if split_by in {None, FOLDER} or any(_may_have(unit, str(split_by)) for unit in tables_once):
        return
    raise no_values(str(split_by))


def no_values(split_by: str) -> ManifptError:
    """Return the error that no image has a value to be split by."""
    return ManifptError(
        f"--split-by {split_by}: no image of --input has a value of it; check the name, "
        "or give folder for the folders that images are in"
    )


def _may_have(unit: Unit, column: str) -> bool:
    """Tell whether a unit may have a column; a unit without a header, as a tar, may have any."""
    if unit.kind in {"files", "tar"}:
        return unit.kind == "tar"
    try:
        return column in uri_tables.names_of(unit.uris[0], column)
    except BrokenError:
        return False
