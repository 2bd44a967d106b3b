"""Units of work -> undecoded images, each with its id: from files, tars and Parquet."""

import json
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images.decode import DecodeRule
from manifpt.images.sources import SPLITS, Unit

# Members of a WebDataset sample that describe the image and are none.
SIDECARS = {"json", "txt", "cls", "cls2", "csv", "caption", "id", "index", "md5", "npy", "pyd"}


class Raw(NamedTuple):
    """An image before decoding; ``data`` is None where there is none, and ``error`` says why."""

    id: str
    uri: str
    data: bytes | None
    source: str | None = None
    split: str | None = None
    error: str = "missing_image"
    message: str = ""


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
