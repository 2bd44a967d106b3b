"""Units of labelled images -> the properties of a few images of each source, always the same ones.

The sample of a source are the images whose ids have the smallest hashes. Files and tables name
their images before these are read, so only the sample is read. Tars and Parquet files are read from
their beginning, up to a bounded number of images.

An output keeps a sample in the file KEPT, so that a later job can judge it without the images.
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pandas as pd
import pyarrow as pa

from manifpt import storage
from manifpt.audit.properties import PROPERTIES, properties
from manifpt.errors import DamageError
from manifpt.images import DecodeRule, Selection, Unit
from manifpt.images.decode import DecodeError
from manifpt.images.raw import Raw, listed, raw_images
from manifpt.images.read import unit_from_json
from manifpt.images.sandbox import decode_all
from manifpt.outputs.formats import FileEntry

# Images that are looked at in tars and Parquet files, as multiples of the sample: in those of one
# source, and in those whose rows name their sources.
LOOKED, LOOKED_MIXED = 8, 64
# The rule of decoding, for formats whose headers ``properties`` does not read.
RULE = DecodeRule(size=1)
# Levels are counted in decoded pixels, and a sample is not decoded.
READ = tuple(name for name in PROPERTIES if name != "levels")
TABLE = {"id": pa.string(), "source": pa.string()} | PROPERTIES
KEPT = "properties/000000-000000.parquet"


def rank(name: str) -> int:
    """Return the place of an id in the order that samples are drawn by: 64 bits of its hash."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class FirstRanked:
    """At most ``most`` ids of each source, those of the smallest ``rank``, each with a value.

    >>> sample = FirstRanked(2)
    >>> for name in ("a", "b", "c"):
    ...     if sample.admits("real", name):
    ...         sample.add("real", name, name.upper())
    >>> sorted(("a", "b", "c"), key=rank)[:2]
    ['c', 'b']
    >>> sample.values()
    ['C', 'B']
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._heaps: dict[str, list[tuple[int, str]]] = {}  # the largest rank first
        self._values: dict[tuple[str, str], Any] = {}

    def admits(self, source: str, name: str) -> bool:
        """Tell whether ``add`` would take an id."""
        heap = self._heaps.get(source, [])
        if (source, name) in self._values:
            return False
        return len(heap) < self.most or (-rank(name), name) > heap[0]

    def add(self, source: str, name: str, value: Any) -> None:
        """Take in an id that is admitted, and drop the last one of a source that has too many."""
        heap = self._heaps.setdefault(source, [])
        heapq.heappush(heap, (-rank(name), name))
        self._values[source, name] = value
        if len(heap) > self.most:
            del self._values[source, heapq.heappop(heap)[1]]

    def values(self) -> list[Any]:
        """Return the values, source by source, in the order of their ids' ranks."""
        order = sorted(self._values, key=lambda key: (key[0], rank(key[1]), key[1]))
        return [self._values[key] for key in order]


def sampled_properties(texts: Sequence[str], selection: Selection, most: int) -> pa.Table:
    """Return TABLE of at most ``most`` images of each source in some units, in a task.

    ``texts`` are the units as JSON. Images that cannot be read, and images without a source, are
    left out.
    """
    units = [unit_from_json(text) for text in texts]
    sample = FirstRanked(most)
    named = [unit for unit in units if unit.kind in ("files", "table")]
    for raw in _of_named(named, selection, most):
        _take(sample, raw)
    containers = [unit for unit in units if unit.kind in ("tar", "parquet")]
    for mixed in (False, True):
        some = [unit for unit in containers if (unit.source is None) == mixed]
        for raw in _of_containers(some, most, LOOKED_MIXED if mixed else LOOKED):
            if selection.keeps(raw.source, raw.split):
                _take(sample, raw)
    return pa.Table.from_pylist(sample.values(), schema=pa.schema(TABLE))


def merged(tables: Sequence[pa.Table], most: int) -> pd.DataFrame:
    """Return the rows of tables of ``sampled_properties``, again at most ``most`` of a source."""
    sample = FirstRanked(most)
    for table in tables:
        for row in table.to_pylist():
            if sample.admits(row["source"], row["id"]):
                sample.add(row["source"], row["id"], row)
    found = pa.Table.from_pylist(sample.values(), schema=pa.schema(TABLE))
    return found.to_pandas(types_mapper=nullable)


def keep_sample(folder: str, rows: pd.DataFrame) -> FileEntry:
    """Write the rows of a sample into an output; return the file's entry."""
    table = pa.Table.from_pandas(rows, schema=pa.schema(TABLE), preserve_index=False)
    data = storage.parquet_bytes(table.replace_schema_metadata())  # equal rows, equal bytes
    return {"path": KEPT, **storage.write_bytes(storage.join(folder, KEPT), data)}


def kept_sample(folder: str, entry: FileEntry) -> pd.DataFrame:
    """Return the rows that ``keep_sample`` wrote."""
    uri = storage.join(folder, entry["path"])
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DamageError(f"{uri}: differs from its manifest's hash; make the output again")
    return storage.parquet_table(uri, data).to_pandas(types_mapper=nullable)


def nullable(kind: pa.DataType) -> Any:
    """Keep the types of integers and booleans with nulls; 64-bit hashes would lose bits."""
    return {
        pa.uint64(): pd.UInt64Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }.get(kind)


def _of_named(units: Sequence[Unit], selection: Selection, most: int) -> Iterator[Raw]:
    """Yield the sample of files and tables; only its images are read."""
    sample = FirstRanked(most)
    for unit in units:
        for raw in listed(unit):
            known = raw.source is not None and selection.keeps(raw.source, raw.split)
            if known and not raw.error and sample.admits(str(raw.source), raw.id):
                sample.add(str(raw.source), raw.id, raw.id)
    wanted = set(sample.values())
    for unit in units:
        if unit.kind == "table" or not wanted.isdisjoint(unit.ids):
            yield from raw_images(unit, RULE, wanted.__contains__)


def _of_containers(units: Sequence[Unit], most: int, looked: int) -> Iterator[Raw]:
    """Yield ``looked`` times ``most`` images, the first ones of each container alike."""
    left = looked * most
    each = max(most, left // max(1, len(units)))
    for unit in sorted(units, key=lambda unit: rank(unit.ids[0])):
        for raw in islice(raw_images(unit, RULE), min(each, left)):
            left -= 1
            yield raw


def _take(sample: FirstRanked, raw: Raw) -> None:
    """Add an image's row to a sample that it belongs to."""
    if raw.source is None or raw.data is None or not sample.admits(raw.source, raw.id):
        return
    row = properties(raw.data)
    if row["format"] is None:
        ((_, found),) = decode_all([(None, raw.data)], RULE)
        if isinstance(found, DecodeError):
            return
        row |= {"format": found.format, "width": found.width, "height": found.height}
    sample.add(raw.source, raw.id, {"id": raw.id, "source": raw.source} | row)
