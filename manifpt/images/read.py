"""Units of work -> the images table, decoded, in chunks that fit in memory."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt.engine.columns import ColumnTypes, GivenColumns
from manifpt.errors import public
from manifpt.images.decode import Decoded, DecodeError, DecodeRule
from manifpt.images.perceptual import perceptual_hashes
from manifpt.images.raw import Raw, Wanted, raw_images
from manifpt.images.sandbox import decode_all
from manifpt.images.sources import Selection, Unit
from manifpt.images.stacks import (
    PLACE_LIST,
    PLACES,
    TILE,
    is_stacked,
    placed,
    reading_rule,
    sizes_beside,
    stacked,
    unstacked,
)

CHUNK_BYTES = 16 * 2**20
CHUNK_ROWS = 1024
ALL = Selection()

# The images table. A row that could not be decoded has `error` set and an image of zeros.
IMAGES = {
    "id": pa.string(),
    "uri": pa.string(),
    "source": pa.string(),
    "split": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "perceptual_hash": pa.uint64(),
    "format": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "error": pa.string(),
    "message": pa.string(),
}


def chunk_rows(size: int) -> int:
    """Return the number of size x size images of a chunk."""
    return max(16, min(CHUNK_ROWS, CHUNK_BYTES // (3 * size * size)))


def row_of(
    raw: Raw, found: Decoded | DecodeError, rule: DecodeRule, other_sizes: Sequence[int] = ()
) -> tuple[dict[str, object], list[np.ndarray]]:
    """Return an image's row of the images table, and its pixels in each size.

    ``found`` is the result of decoding. Pixels are ``blank`` where the row has an error. ``looks``
    is in the row in place of the perceptual hash, see ``images_table``.
    """
    row: dict[str, object] = dict.fromkeys(IMAGES)
    row |= {"id": raw.id, "uri": raw.uri, "source": raw.source, "split": raw.split}
    row |= raw.columns or {}
    if raw.data is None:
        found = DecodeError(raw.error, raw.message)
    else:
        row["sha256"] = hashlib.sha256(raw.data).hexdigest()
    if isinstance(found, DecodeError):
        row |= {"error": found.code, "message": public(str(found))}
        return row, blank(rule, other_sizes)
    row |= {"format": found.format, "width": found.width, "height": found.height}
    row["looks"] = found.looks
    if rule.tiles:
        row[PLACES] = found.places
    pixels = [found.pixels, *found.others]
    for size, array in zip((None, *other_sizes), pixels, strict=True):
        row[_named("pixel_sha256", size)] = hashlib.sha256(array.tobytes()).hexdigest()
    return row, pixels


def blank(rule: DecodeRule, other_sizes: Sequence[int] = ()) -> list[np.ndarray]:
    """Return the pixels of an image that could not be decoded: zeros, and no tile."""
    whole = [np.zeros((size, size, 3), np.uint8) for size in (rule.size, *other_sizes)]
    return [np.stack(whole[:1])[:0], *whole[1:]] if rule.tiles else whole


def _named(column: str, size: int | None) -> str:
    """Return the name of a column of the images table, of its own size or of another."""
    return column if size is None else f"{column}_{size}"


def is_own(column: str) -> bool:
    """Tell whether an images table may have a column of this name by itself."""
    pixels = re.fullmatch(r"artifact|(image|pixel_sha256)(_\d+)?", column)
    return column in IMAGES or column == PLACES or column in TILE or pixels is not None


def metadata_of(table: pa.Table) -> list[str]:
    """Return the names of the metadata columns of an images table."""
    return [name for name in table.column_names if not is_own(name)]


def pixel_columns(rules: Sequence[DecodeRule]) -> ColumnTypes:
    """Return the columns of an images table that hold the images by all of some rules."""
    rule, types = reading_rule(rules), dict[str, pa.DataType | None]()
    for size in (None, *sizes_beside(rule, rules)):
        types |= {_named("image", size): None, _named("pixel_sha256", size): pa.string()}
    return types | ({PLACES: PLACE_LIST} if rule.tiles else {})


def metadata_of_units(units: Sequence[Unit]) -> tuple[str, ...]:
    """Return the names of the metadata columns that units are read with."""
    return tuple(dict.fromkeys(name for unit in units for name in unit.reading.columns))


def images_table(
    rows: list[dict[str, Any]],
    pixels: list[list[np.ndarray]],
    other_sizes: Sequence[int] = (),
    columns: Sequence[str] = (),
) -> pa.Table:
    """Build an images table from its rows and the size x size x 3 uint8 pixels of each.

    The first pixels of a row may be a stack of tiles instead, see ``stacks``. ``columns`` are the
    metadata of the images. Rows with ``looks`` get their perceptual hashes here.
    """
    seen = [row for row in rows if "looks" in row]
    for row, value in zip(seen, perceptual_hashes([r.pop("looks") for r in seen]), strict=True):
        row["perceptual_hash"] = value
    metadata = dict.fromkeys(columns, pa.string())
    hashes = {_named("pixel_sha256", size): pa.string() for size in other_sizes}
    places = [row.pop(PLACES, ()) for row in rows]
    table = pa.Table.from_pylist(rows, schema=pa.schema(IMAGES | metadata | hashes))
    for size, column in zip((None, *other_sizes), zip(*pixels, strict=True), strict=True):
        if column[0].ndim == 4:
            table = table.append_column("image", stacked(column))
            table = table.append_column(PLACES, placed(places))
        else:
            tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(column))
            table = table.append_column(_named("image", size), tensor)
    return table


def as_space_sees(table: pa.Table, rule: DecodeRule) -> pa.Table:
    """Return the images table for a space with this rule, with a row for each tile if it has any.

    The table was read by ``reading_rule`` of all spaces.
    """
    tiled = rule.tiles and is_stacked(table)
    return unstacked(table) if tiled else sized(table, rule.size)


def sized(table: pa.Table, size: int) -> pa.Table:
    """Return the images table with its images, and their pixel hashes, of one of its sizes."""
    for name in ("image", "pixel_sha256"):
        other = _named(name, size)
        if other in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[other]).drop_columns([other])
    return table


def pixels_of(table: pa.Table) -> np.ndarray:
    """Return the images of an images table, N x H x W x 3 uint8."""
    array: np.ndarray = table["image"].combine_chunks().to_numpy_ndarray()
    return array


def read_unit(
    unit: Unit,
    rule: DecodeRule,
    selection: Selection = Selection(),
    chunk: int | None = None,
    other_sizes: Sequence[int] = (),
    wanted: Wanted | None = None,
) -> Iterator[pa.Table]:
    """Yield the images table of one unit in chunks of at most ``chunk`` rows.

    Where images have tiles, a chunk ends once it has ``chunk`` tiles; an image is never divided.
    All images of all sources are read by this function: the rows that ``selection`` keeps and whose
    id is ``wanted``, in the unit's own order, each decoded in a separate process, or with its
    error. Chunks of long metadata have fewer rows. See ``sized`` for ``other_sizes``.
    """
    raws = raw_images(unit, rule, wanted)
    kept = (raw for raw in raws if selection.keeps(raw.source, raw.split))
    return read_raw(kept, rule, chunk, other_sizes, unit.reading.columns)


def read_raw(
    raws: Iterable[Raw],
    rule: DecodeRule,
    chunk: int | None = None,
    other_sizes: Sequence[int] = (),
    columns: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """Yield the images table of undecoded images in chunks, as ``read_unit`` does of a unit."""
    limit = chunk or chunk_rows(max(rule.size, *other_sizes, 1))
    text = held = 0
    rows: list[dict[str, object]] = []
    pixels: list[list[np.ndarray]] = []
    items = ((raw, raw.data or b"") for raw in raws)
    for raw, found in decode_all(items, rule, other_sizes):
        row, images = row_of(raw, found, rule, other_sizes)
        rows.append(row)
        pixels.append(images)
        text += sum(len(value or "") for value in (raw.columns or {}).values())
        held += max(1, len(images[0])) if rule.tiles else 1
        if held >= limit or text > CHUNK_BYTES:
            yield images_table(rows, pixels, other_sizes, columns)
            rows, pixels, text, held = [], [], 0, 0
    if rows:
        yield images_table(rows, pixels, other_sizes, columns)


@dataclass(frozen=True)
class ImageReader:
    """Units given as text, as the pipeline hands them out -> the images table, by some rules.

    ``metadata`` are the columns that the units' reading names; see ``read_unit`` for the others.
    """

    rules: Sequence[DecodeRule]
    selection: Selection = ALL
    metadata: Sequence[str] = ()
    chunk: int | None = None

    @property
    def decoding(self) -> tuple[DecodeRule, tuple[int, ...]]:
        """The rule by which images are decoded, and the other sizes."""
        rule = reading_rule(self.rules)
        return rule, sizes_beside(rule, self.rules)

    @property
    def gives(self) -> GivenColumns:
        """The columns of the images table."""
        types = IMAGES | dict.fromkeys(self.metadata, pa.string())
        remedy = "name it as a column of the input (--columns)"
        return GivenColumns(types | pixel_columns(self.rules), "the table of images", remedy)

    def __call__(self, spec: str) -> Iterator[pa.Table]:
        """Yield the images table of a unit, in chunks."""
        rule, sizes = self.decoding
        return read_unit(unit_from_json(spec), rule, self.selection, self.chunk, sizes)


def unit_to_json(unit: Unit) -> str:
    """Return a unit as text."""
    return json.dumps(asdict(unit))


def unit_from_json(text: str) -> Unit:
    """Read a unit from text of ``unit_to_json``."""
    return Unit.from_json(json.loads(text))
