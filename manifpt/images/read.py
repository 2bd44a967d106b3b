"""Units of work -> the images table, decoded, in chunks that fit in memory."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images.decode import DecodeError, DecodeRule, decode
from manifpt.images.sources import SPLITS, Selection, Unit

CHUNK_BYTES = 16 * 2**20
CHUNK_ROWS = 1024
# Members of a WebDataset sample that describe the image and are none.
SIDECARS = {"json", "txt", "cls", "cls2", "csv", "caption", "id", "index", "md5", "npy", "pyd"}

# The images table. A row that could not be decoded has `error` set and an image of zeros.
IMAGES = {
    "id": pa.string(),
    "uri": pa.string(),
    "source": pa.string(),
    "split": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "format": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "error": pa.string(),
    "message": pa.string(),
}


class Raw(NamedTuple):
    """An image before decoding; ``data`` is None where there is none, and ``error`` says why."""

    id: str
    uri: str
    data: bytes | None
    source: str | None = None
    split: str | None = None
    error: str = "missing_image"
    message: str = ""


def chunk_rows(size: int) -> int:
    """Return how many size x size images make a chunk."""
    return max(16, min(CHUNK_ROWS, CHUNK_BYTES // (3 * size * size)))


def _raw_files(unit: Unit) -> Iterator[Raw]:
    fs, _ = storage.filesystem(unit.uris[0])
    remote = storage.is_s3(unit.uris[0])
    step = 64 if remote else 1  # an object store answers many requests at once
    for start in range(0, len(unit.uris), step):
        uris = unit.uris[start : start + step]
        paths = [storage.filesystem(uri)[1] for uri in uris]
        contents = fs.cat(paths, on_error="return") if remote else _local_contents(paths)
        for uri, path, key in zip(uris, paths, unit.ids[start : start + step], strict=True):
            data = contents[path]
            if isinstance(data, bytes):
                yield Raw(key, uri, data)
            else:
                text = f"{type(data).__name__}: {data}".splitlines()[0][:200]
                yield Raw(key, uri, None, error="unreadable", message=text)


def _local_contents(paths: list[str]) -> dict[str, bytes | Exception]:
    contents: dict[str, bytes | Exception] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                contents[path] = file.read()
        except OSError as error:
            contents[path] = error
    return contents


def _sample(members: dict[str, bytes], key: str, unit: Unit) -> Iterator[Raw]:
    """Yield the images of one WebDataset sample: members that share a name up to its first dot."""
    facts: dict[str, Any] = {}
    if "json" in members:
        try:
            parsed = json.loads(members["json"])
            facts = parsed if isinstance(parsed, dict) else {}
        except ValueError:
            facts = {}
    source, split = facts.get("source"), facts.get("split")
    source = source if isinstance(source, str) else None
    split = split if split in SPLITS else None
    images = [name for name in members if name.rsplit(".", 1)[-1].lower() not in SIDECARS]
    for name in images:
        inside = key if len(images) == 1 else f"{key}.{name}"
        row_id = storage.join(unit.ids[0], inside)
        yield Raw(row_id, f"{unit.uris[0]}#{key}.{name}", members[name], source, split)
    if not images:
        yield Raw(storage.join(unit.ids[0], key), f"{unit.uris[0]}#{key}", None, source, split)


def _raw_tar(unit: Unit, max_bytes: int) -> Iterator[Raw]:
    fs, path = storage.filesystem(unit.uris[0])
    key, members = None, dict[str, bytes]()
    seen: set[str] = set()
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                # Ids must be unique, and a tar may hold a name twice.
                following = f"{folder}/{stem}" if folder else stem
                if key is not None and (following != key or extension in members):
                    yield from _sample(members, _unique(key, seen), unit)
                    members = {}
                key = following
                content = tar.extractfile(member)
                # One byte past the limit is enough for the decoder to refuse it.
                members[extension] = content.read(max_bytes + 1) if content else b""
        if key is not None:
            yield from _sample(members, _unique(key, seen), unit)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if key is not None and members:
            yield from _sample(members, _unique(key, seen), unit)
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        broken = storage.join(unit.ids[0], "~broken")
        yield Raw(broken, unit.uris[0], None, error="broken_archive", message=text)


def _unique(key: str, seen: set[str]) -> str:
    candidate, count = key, 1
    while candidate in seen:
        count += 1
        candidate = f"{key}~{count}"
    seen.add(candidate)
    return candidate


def _raw_parquet(unit: Unit) -> Iterator[Raw]:
    fs, path = storage.filesystem(unit.uris[0])
    row = 0
    seen: set[str] = set()
    try:
        with fs.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            image = _image_column(parquet.schema_arrow, unit.uris[0])
            extra = [c for c in ("id", "key", "source", "split") if c in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(batch_size=64, columns=[image, *extra]):
                for values in batch.to_pylist():
                    cell = values[image]
                    data = cell.get("bytes") if isinstance(cell, dict) else cell
                    key = values.get("id", values.get("key"))
                    inside = _unique(f"{row:08d}" if key is None else str(key), seen)
                    split = values.get("split")
                    split = split if split in SPLITS else None
                    row_id, uri = storage.join(unit.ids[0], inside), f"{unit.uris[0]}#{row}"
                    yield Raw(row_id, uri, data, values.get("source"), split)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        broken = storage.join(unit.ids[0], "~broken")
        yield Raw(broken, unit.uris[0], None, error="broken_archive", message=text)


def _image_column(schema: pa.Schema, uri: str) -> str:
    """Find the column of image bytes: ``image`` or ``bytes``, plain or Hugging Face's struct."""
    for name in ("image", "bytes", "image_bytes", "jpg", "png"):
        if name in schema.names:
            kind = schema.field(name).type
            if (
                pa.types.is_struct(kind)
                or pa.types.is_binary(kind)
                or pa.types.is_large_binary(kind)
            ):
                return name
    raise ManifptError(f"{uri}: no column of image bytes; name it 'image'")


def raw_images(unit: Unit, rule: DecodeRule) -> Iterator[Raw]:
    """Yield the undecoded images of a unit in a fixed order; what the unit declares wins."""
    if unit.kind == "files":
        found = _raw_files(unit)
    elif unit.kind == "tar":
        found = _raw_tar(unit, rule.max_bytes)
    else:
        found = _raw_parquet(unit)
    for raw in found:
        yield raw._replace(source=unit.source or raw.source, split=unit.split or raw.split)


def row_of(
    raw: Raw, rule: DecodeRule, other_sizes: Sequence[int] = ()
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Decode one image: its row of the images table, and its pixels in each size.

    Pixels are zeros where the row has an error.
    """
    row: dict[str, Any] = dict.fromkeys(IMAGES)
    row |= {"id": raw.id, "uri": raw.uri, "source": raw.source, "split": raw.split}
    if raw.data is not None:
        row["sha256"] = hashlib.sha256(raw.data).hexdigest()
    try:
        if raw.data is None:
            raise DecodeError(raw.error, raw.message)
        image = decode(raw.data, rule, other_sizes)
    except DecodeError as error:
        row |= {"error": error.code, "message": str(error)}
        return row, [np.zeros((size, size, 3), np.uint8) for size in (rule.size, *other_sizes)]
    row |= {"format": image.format, "width": image.width, "height": image.height}
    pixels = [image.pixels, *image.others]
    for size, array in zip((None, *other_sizes), pixels, strict=True):
        row[_named("pixel_sha256", size)] = hashlib.sha256(array.tobytes()).hexdigest()
    return row, pixels


def _named(column: str, size: int | None) -> str:
    """Return the name of a column of the images table, of its own size or of another."""
    return column if size is None else f"{column}_{size}"


def images_table(
    rows: list[dict[str, Any]], pixels: list[list[np.ndarray]], other_sizes: Sequence[int] = ()
) -> pa.Table:
    """Build an images table from its rows and the size x size x 3 uint8 pixels of each."""
    hashes = {_named("pixel_sha256", size): pa.string() for size in other_sizes}
    table = pa.Table.from_pylist(rows, schema=pa.schema(IMAGES | hashes))
    for size, column in zip((None, *other_sizes), zip(*pixels, strict=True), strict=True):
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(column))
        table = table.append_column(_named("image", size), tensor)
    return table


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
) -> Iterator[pa.Table]:
    """Yield the images table of one unit in chunks of at most ``chunk`` rows.

    This is the one way from any source to images: the rows that ``selection`` keeps, in the
    unit's own order, each decoded or with its error. See ``sized`` for ``other_sizes``.
    """
    limit = chunk or chunk_rows(max(rule.size, *other_sizes, 1))
    rows: list[dict[str, Any]] = []
    pixels: list[list[np.ndarray]] = []
    for raw in raw_images(unit, rule):
        if not selection.keeps(raw.source, raw.split):
            continue
        row, images = row_of(raw, rule, other_sizes)
        rows.append(row)
        pixels.append(images)
        if len(rows) == limit:
            yield images_table(rows, pixels, other_sizes)
            rows, pixels = [], []
    if rows:
        yield images_table(rows, pixels, other_sizes)


def read_unit_text(
    text: str,
    rule: DecodeRule,
    selection: Selection = Selection(),
    chunk: int | None = None,
    other_sizes: Sequence[int] = (),
) -> Iterator[pa.Table]:
    """Yield the images table of a unit given as text, as the pipeline hands units to readers."""
    return read_unit(unit_from_json(text), rule, selection, chunk, other_sizes)


def unit_to_json(unit: Unit) -> str:
    """Return a unit as text."""
    return json.dumps(asdict(unit))


def unit_from_json(text: str) -> Unit:
    """Return the unit that ``unit_to_json`` wrote."""
    value = json.loads(text)
    return Unit(**value | {"uris": tuple(value["uris"]), "ids": tuple(value["ids"])})


def encode_table(table: pa.Table) -> bytes:
    """Return a table as Arrow IPC bytes."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def decode_table(data: bytes) -> pa.Table:
    """Return the table that ``encode_table`` wrote."""
    return pa.ipc.open_stream(data).read_all()
